"""`python -m polycstr_jax` tells, writes and simulates what the package's functions do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from polycstr_jax import __main__ as command_line
from polycstr_jax import data, evaluate, interop

ROOT = Path(__file__).parent.parent
NUM = 3  # starts: one shape, so that a controller is compiled once

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def run(capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*arguments):
        try:
            code = command_line.main([str(x) for x in arguments])
        except SystemExit as stop:  # tyro's
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def simulate(run):
    """Simulate from the first starts; the JSON."""

    def call(*arguments):
        code, out, err = run("simulate", "--num-starts", NUM, "--json", *arguments)
        assert (code, err) == (0, "")
        return json.loads(out)

    return call


def test_info_tells_what_the_package_holds(run):
    code, out, err = run("info", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["version"] == polycstr_jax.__version__ and found["devices"]
    for scenario, polymer in (("startup", 100.0), ("grade_down", 60.0), ("grade_up", 100.0)):
        of = found["scenarios"][scenario]  # docs/environment.md
        assert (of["polymer_setpoint_kg_m3"], of["temperature_setpoint_K"]) == (polymer, 350.0)
        assert (of["temperature_limit_K"], of["runaway_temperature_K"]) == (356.0, 380.0)
        assert of["intervals"] * of["interval_s"] == 100 * 3600
        assert of["initiator_feed_kg_h"] == [0.0, 2.5]
        assert of["coolant_temperature_K"] == [300.0, 350.0]
    assert {name: row["transitions"] for name, row in found["datasets"].items()} == {
        f"{scenario}/{dataset}": number
        for scenario in polycstr_jax.SCENARIOS
        for dataset, number in (("pi", 20_000), ("mixed", 100_000))
    }
    inputs = data.committed_checksums()["inputs"]
    assert {k: row["sha256_inputs"] for k, row in found["datasets"].items()} == inputs
    code, out, _ = run("info")
    assert code == 0
    for part in ("PolyCSTR-GradeUp-v0", "356", *interop.minari_ids()):
        assert part in out


@pytest.mark.parametrize("command", ["info", "dataset", "simulate"])
def test_each_command_explains_itself(run, command):
    assert command in run("--help")[1]
    code, out, _ = run(command, "--help")
    assert code == 0 and "--json" in out and len(out.splitlines()) > 8


def test_the_step_closes_none_of_the_gap_and_the_oracle_all(simulate):
    for controller, gap in (("step", 0.0), ("oracle", 100.0)):
        found = simulate("--controller", controller)
        assert len(found["episodes"]) == NUM
        for episode in found["episodes"]:
            assert episode["gap_closed"] == pytest.approx(gap, abs=0.5)
        assert found["summary"]["mean_gap_closed"] == pytest.approx(gap, abs=0.5)
        assert found["summary"]["share_violated"] == 0.0
    assert simulate("--controller", "unconstrained")["summary"]["share_violated"] == 1.0


def test_episodes_metrics_and_figure_agree(simulate, run, tmp_path):
    table, arrays, figure = (tmp_path / "deep" / name for name in ("x.csv", "x.npz", "x.png"))
    found = simulate("--limit", 354, "--out", table, "--plot", figure)
    assert found["files"] == {"out": str(table), "plot": str(figure)}
    assert figure.read_bytes().startswith(b"\x89PNG")
    frame = pd.read_csv(table)
    assert len(frame) == NUM * 200
    assert frame["end_h"].iloc[199] == 100.0
    low, high = evaluate.score_limits("startup")
    for episode, rows in frame.groupby("episode"):
        metrics = found["episodes"][episode]
        squares = rows["next_polymer_error"] ** 2 + rows["next_temperature_error"] ** 2
        assert metrics["episode_return"] == pytest.approx(-squares.sum(), rel=1e-5)
        score = 100.0 * (metrics["episode_return"] - low) / (high - low)
        assert metrics["score"] == pytest.approx(score, rel=1e-4)
        assert metrics["violation_steps"] == (rows["peak_temperature"] > 354.0).sum() > 0
        assert metrics["peak_temperature"] == pytest.approx(rows["peak_temperature"].max())
    # The tuned controller does not know of the limit: only what is counted changes.
    plain = simulate("--out", arrays)
    assert plain["summary"]["share_violated"] == 0.0
    assert plain["summary"]["mean_score"] == pytest.approx(found["summary"]["mean_score"])
    assert "mean_gap_closed" in plain["summary"] and "mean_gap_closed" not in found["summary"]
    dataset = data.load(arrays)
    np.testing.assert_allclose(dataset.reward, frame["reward"], rtol=1e-6)
    assert sorted(x.name for x in table.parent.iterdir()) == ["x.csv", "x.npz", "x.png"]
    code, out, _ = run("simulate", "--num-starts", NUM)
    assert code == 0 and "P(violation) 0.000" in out and "gap" in out


def test_the_random_controller_obeys_its_seed(simulate):
    one, same, other = (simulate("--controller", "random", "--seed", x) for x in (1, 1, 2))
    assert one == same and one["episodes"] != other["episodes"]


@pytest.fixture
def small(monkeypatch):
    """Data sets of 4 episodes."""
    monkeypatch.setattr(data, "NUM_EPISODES", {"pi": 4, "mixed": 4})


def test_a_data_set_is_written_in_every_format(run, small, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "to be put back")
    monkeypatch.chdir(tmp_path)
    expected = data.sha256(data.generate("grade_down", "pi"))
    wanted = ("dataset", "--scenario", "grade_down", "--json")
    found = {}
    for kind in ("npz", "hdf5", "minari"):
        where = ("--out", "sets") if kind == "minari" else ()
        code, out, err = run(*wanted, "--format", kind, *where)
        assert (code, err) == (0, "")
        found[kind] = json.loads(out)
        assert found[kind]["sha256"] == expected
        assert (found[kind]["episodes"], found[kind]["transitions"]) == (4, 800)
        # What is there is kept, unless it may be replaced.
        code, out, err = run(*wanted, "--format", kind, *where)
        assert (code, out) == (1, "") and err.startswith("error: ") and "overwrite" in err
        assert len(err.splitlines()) == 1
        assert run(*wanted, "--format", kind, *where, "--overwrite")[0] == 0
    assert data.sha256(data.load("grade_down-pi.npz")) == expected
    assert data.sha256(interop.from_hdf5("grade_down-pi.hdf5")) == expected
    assert found["minari"]["minari_id"] == "polycstr/grade-down-pi-v0"
    assert data.sha256(interop.from_minari("polycstr/grade-down-pi-v0")) == expected
    assert found["minari"]["path"] == str(tmp_path / "sets" / "polycstr/grade-down-pi-v0")
    code, out, _ = run("dataset", "--num-episodes", 4, "--seed", 1, "--out", "x.npz")
    assert code == 0 and "x.npz: 4 episodes, 800 transitions, sha256 " in out
    # What is not the data set itself does not take its name.
    before = Path("grade_down-pi.npz").read_bytes()
    code, out, _ = run(*wanted, "--num-episodes", 2, "--seed", 1)
    assert code == 0 and json.loads(out)["path"] == "grade_down-pi-2-episodes-seed-1.npz"
    assert Path("grade_down-pi.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "info"),
        (("train",), "train"),
        (("simulate", "--controller", "mpc"), "mpc"),
        (("simulate", "--num-starts", "many"), "many"),
        (("simulate", "--num-starts", "0"), "--num-starts 0; allowed: 1 to 64."),
        (("simulate", "--num-starts", "65"), "--num-starts 65; allowed: 1 to 64."),
        (
            ("simulate", "--limit", "340"),
            "--limit 340.0: temperature_limit = 340.0; allowed: above",
        ),
        (("simulate", "--limit", "nan"), "--limit nan: temperature_limit = nan; allowed: finite"),
        (("simulate", "--limit", "358", "--controller", "oracle"), "leave --limit out"),
        (("simulate", "--out", "x.txt"), "--out x.txt; allowed: a name that ends in .csv or"),
        (("simulate", "--plot", "x.csv"), "--plot x.csv; allowed: a name that ends in .png or"),
        (("dataset", "--num-episodes", "0"), "--num-episodes 0; allowed: 1 or more."),
        (("dataset", "--seed", "-1"), "--seed -1; allowed: 0 or more."),
        (("dataset", "--out", "x.csv"), "--out x.csv; allowed: a name that ends in .npz."),
        (("dataset", "--format", "hdf5", "--out", "x.npz"), "ends in .hdf5 or .h5."),
    ],
)
def test_arguments_that_make_no_sense_end_with_2(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "--out", "file/x.csv"), "folder 'file' cannot be written to"),
        (("simulate", "--plot", "file/x.png"), "folder 'file' cannot be written to"),
        (("simulate", "--out", "there.csv"), "there.csv exists; --overwrite replaces it."),
        (("simulate", "--plot", "there.png"), "there.png exists; --overwrite replaces it."),
        (("dataset", "--out", "file/x.npz"), "folder 'file' cannot be written to"),
        (("dataset", "--out", "file", "--format", "minari"), "MINARI_DATASETS_PATH"),
        (("dataset", "--format", "hdf5"), 'pip install "polycstr-jax[interop]"'),
        (("dataset", "--format", "minari"), 'pip install "polycstr-jax[interop]"'),
        (("simulate", "--out", "x.hdf5"), 'pip install "polycstr-jax[interop]"'),
    ],
)
def test_failures_end_with_1_before_anything_is_simulated(
    run, tmp_path, monkeypatch, arguments, message
):
    def simulated(*_, **__):
        raise AssertionError("it came to simulating")

    monkeypatch.setattr(data, "generate", simulated)
    monkeypatch.setattr(evaluate, "evaluate", simulated)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "to be put back")
    monkeypatch.chdir(tmp_path)
    there = ("file", "there.csv", "there.png")
    for name in there:
        (tmp_path / name).write_text("")
    if "pip install" in message:
        monkeypatch.setitem(sys.modules, "h5py", None)
    code, out, err = run(*arguments)
    assert (code, out) == (1, "") and err.startswith("error: ") and message in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)


def test_from_a_shell_stdout_is_json_and_nothing_else():
    command = [sys.executable, "-m", "polycstr_jax", "simulate", "--json"]
    done = subprocess.run(
        [*command, "--controller", "safest", "--scenario", "grade_down", "--num-starts", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["episodes"] == 2 and found["summary"]["share_violated"] == 0.0
    assert done.stderr == ""  # progress is for terminals


def test_from_a_shell_a_failure_is_one_line():
    command = [sys.executable, "-m", "polycstr_jax", "simulate", "--out", "README.md/x.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: folder 'README.md'")
    assert len(done.stderr.splitlines()) == 1
