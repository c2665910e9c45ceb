"""The throughput benchmark, at its smallest size, in a process of its own: it sets the number of
CPU devices, which has to come before the first computation."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import solvers, throughput
from polycstr_jax.env import EnvParams

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """What a smoke run wrote and printed."""
    path = tmp_path_factory.mktemp("throughput") / "new" / "speed.json"
    finished = run("--smoke", "--json", path)
    assert finished.returncode == 0, finished.stderr
    return path, finished.stdout


def test_the_json_holds_the_promised_figures(smoke):
    path, _ = smoke
    found = json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    for name in (
        "env_intervals_per_second",
        "ratio_vs_scipy_bdf",
        "ratio_vs_kvaerno3",
        "ratio_vs_lsoda",
        "compile_seconds",
        "peak_memory_mb",
    ):
        assert isinstance(found[name], float) and found[name] > 0.0, name
    assert set(found["versions"]) == {"python", "jax", "jaxlib", "diffrax", "numpy", "scipy"}
    for name in ("device", "date", "command"):
        assert isinstance(found[name], str) and found[name], name
    assert found["command"] == "python -m benchmarks.throughput --smoke"
    assert str(path.parent) not in path.read_text(), "a machine's path"
    for name in ("work_precision", "lane_counts", "stragglers", "rosenbrock", "closed_loop"):
        assert found[name], name
    answers = {row["what"]: row for row in found["answers"]["rows"]}
    speeds = [answers[name]["states_per_second"] for name in ("viability", "plain vmap")]
    assert min(speeds) > 0.0
    # Not that it is above 1: with a smoke run's 1,024 states it is not always (8 with 131,072).
    assert answers["viability"]["ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert answers["oracle, grade_down"]["seconds_each"] > 0.0
    assert answers["oracle, grade_down"]["iterations"] > 1.0
    by_case = {row["case"]: row for row in found["closed_loop"]}
    for name, row in by_case.items():
        if "igniting" in name:
            assert row["ignited_share"] > 0.0, name
        elif "calm" in name:
            assert row["ignited_share"] == 0.0, name


def test_the_figure_and_the_tables_are_there(smoke):
    path, printed = smoke
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(x.name for x in path.parent.iterdir()) == ["speed.json", "speed.png"]
    for title in ("Work-precision", "Oracle", "Rosenbrock", "Closed loop", "Lanes", "stragglers"):
        assert title in printed


def test_ratios_of_the_json_are_at_equal_or_better_accuracy(smoke):
    found = json.loads(smoke[0].read_text())
    rows = {(row["solver"], row["rtol"], row["bits"]): row for row in found["work_precision"]}
    for ratio in found["ratios"]:
        if ratio["ratio"] is None:
            continue
        other = rows[ratio["solver"], ratio["rtol"], ratio["bits"]]
        ours = rows["engine", ratio["engine_rtol"], ratio["bits"]]
        assert ours["error_T"] <= other["error_T"] and ours["error_P"] <= other["error_P"]
        assert ratio["ratio"] == pytest.approx(
            ours["intervals_per_second"] / other["intervals_per_second"]
        )


def row(solver="engine", error_T=1.0, error_P=1.0, speed=1.0, rtol=1e-3, bits=64):
    return {
        "solver": solver,
        "rtol": rtol,
        "bits": bits,
        "error_T": error_T,
        "error_P": error_P,
        "intervals_per_second": speed,
    }


def test_a_faster_row_has_to_be_as_accurate_in_both_errors():
    reference = row("SciPy BDF", 1e-3, 1e-2)
    fits = row(error_T=1e-3, error_P=1e-2, speed=5.0)
    slower = row(error_T=1e-9, error_P=1e-9, speed=4.0)
    too_wrong_in_p = row(error_T=1e-9, error_P=1.1e-2, speed=100.0)
    too_wrong_in_t = row(error_T=1.1e-3, error_P=1e-9, speed=100.0)
    not_a_number = row(error_T=math.nan, error_P=1e-9, speed=100.0)
    single = row(error_T=1e-9, error_P=1e-9, speed=100.0, bits=32)
    wrong = [too_wrong_in_p, too_wrong_in_t, not_a_number, single]
    assert throughput.fastest_as_accurate([slower, *wrong, fits], reference) is fits
    assert throughput.fastest_as_accurate(wrong, reference) is None


def test_the_headline_is_the_smallest_ratio_over_the_other_solvers_tolerances():
    rows = [
        row(error_T=1.0, error_P=1.0, speed=100.0, rtol=1e-3),
        row(error_T=0.1, error_P=0.1, speed=30.0, rtol=1e-4),
        row("Kvaerno3", 2.0, 2.0, speed=2.0, rtol=1e-3),  # 100 / 2
        row("Kvaerno3", 0.5, 2.0, speed=1.0, rtol=1e-4),  # 30 / 1
        row("Kvaerno3", 0.01, 0.01, speed=0.5, rtol=1e-5),  # none of ours is as accurate
    ]
    found = throughput.comparisons(rows)
    assert [x["ratio"] for x in found] == [50.0, 30.0, None]
    assert throughput.smallest_ratio(found, "Kvaerno3") == 30.0
    assert throughput.smallest_ratio(found, "Kvaerno5") is None


def test_scipy_is_given_the_same_closed_loops_as_the_engine(double):
    """Gains, starts and increment limits included: the trajectories agree to SciPy's errors, even
    in the one that ignites."""
    params = EnvParams()
    problem = solvers.random_problem(2, params)
    loops = zip(*problem, strict=True)
    expected = [solvers.scipy_episode("LSODA", params.max_increment, *loop) for loop in loops]
    setting = solvers.Setting(params.max_increment, None)
    engine = jax.jit(solvers.make_engine(1e-5))
    states = engine(setting, solvers.to_lanes(problem, params))[0]
    np.testing.assert_allclose(states[..., 4], np.stack(expected, 1)[..., 4], rtol=0.0, atol=0.2)
    np.testing.assert_allclose(states[..., 3], np.stack(expected, 1)[..., 3], rtol=0.0, atol=1.0)


def test_lane_counts_are_rounded_up_to_the_devices():
    assert [throughput.whole_lanes(n, 3) for n in (12, 13, 15)] == [12, 15, 15]


def test_an_output_that_cannot_be_written_is_an_error_before_measuring(tmp_path):
    file = tmp_path / "file"
    file.touch()
    folders = [file / "folder"]
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may write everywhere
        folders.append(tmp_path / "locked")
        folders[-1].mkdir(mode=0o500)
    for folder in folders:
        finished = run("--smoke", "--json", folder / "speed.json")
        assert finished.returncode == 1
        assert str(folder) in finished.stderr and "cannot be written" in finished.stderr
        assert "Traceback" not in finished.stderr
        assert finished.stdout == "", "it measured first"


@pytest.mark.parametrize("arguments", [("--lanes", 4), ("--repeats", 0), ("--compared-lanes", 1)])
def test_sizes_that_make_no_sense_are_refused(arguments, tmp_path):
    finished = run(*arguments, "--json", tmp_path / "speed.json")
    assert finished.returncode == 1
    assert "allowed" in finished.stderr and "Traceback" not in finished.stderr
