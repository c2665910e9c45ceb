"""What the pages of docs/ tell a user to do, done: every block of code runs, and comes out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from benchmarks import plan
from polycstr_jax import oracle, reactor

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """A user's precision, whatever JAX_ENABLE_X64 says."""
    with jax.enable_x64(False):
        yield


def blocks(page, language):
    """The fenced code of a page, in its order."""
    parts = (ROOT / "docs" / page).read_text().split(f"```{language}\n")[1:]
    return [part.split("```")[0] for part in parts]


# --- docs/own-plants.md ---

SMALLER = {  # as the page has it -> here
    "num_episodes=16, num_steps=200": "num_episodes=4, num_steps=120",
    # 14 are drawn for 5 without a runaway: one program for both.
    'NUM_EPISODES = {"pi": 100, "mixed": 500}': 'NUM_EPISODES = {"pi": 5, "mixed": 14}',
    "NUM_SEEDS, NUM_UPDATES = 4, 6_000": "NUM_SEEDS, NUM_UPDATES = 2, 200",
    "bc.Config(": "bc.Config(hidden=(32,), ",
    "iql.Config(": "iql.Config(hidden=(32,), ",
    "NUM_STARTS = 64": "NUM_STARTS = 6",
}


@pytest.fixture(scope="module")
def own_plants(tmp_path_factory, quick_to_compile):
    """The names that the blocks of the page leave, after each of them."""
    pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
    code = blocks("own-plants.md", "python")
    for large in SMALLER:
        assert sum(large in block for block in code) == 1, large
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("own"))
    names, after = {}, []
    try:
        for number, block in enumerate(code):
            for large, small in SMALLER.items():
                block = block.replace(large, small)
            exec(compile(block, f"own-plants.md, block {number}", "exec"), names)
            after.append(dict(names))
        yield after
    finally:
        os.chdir(before)


def block_with(after, name):
    """The names after the first block that has made this one."""
    return next(names for names in after if name in names)


def test_the_page_of_own_plants_holds_its_set_points(own_plants):
    names = block_with(own_plants, "episodes")
    state = names["episodes"].state
    assert state.shape == (120, 4, 5)
    np.testing.assert_allclose(state[-1, :, 3], 80.0, atol=0.5)
    np.testing.assert_allclose(state[-1, :, 4], 351.0, atol=0.2)
    peak = np.asarray(names["episodes"].peak_temperature)
    np.testing.assert_array_equal(names["episodes"].cost, peak > 354.0)


def test_a_fouled_reactor_gets_hotter(own_plants):
    names = block_with(own_plants, "hotter")
    assert names["hotter"].peak_temperature.max() > names["episodes"].peak_temperature.max() + 0.5
    assert names["fouled"].reactor.heat_transfer == 400.0
    assert names["params"].reactor.heat_transfer == 500.0


def test_a_scenario_of_ones_own_has_data_from_its_own_starts(own_plants):
    names = block_with(own_plants, "mixed")
    params, pi, mixed = (names[name] for name in ("params", "pi", "mixed"))
    assert pi.obs.shape == (5 * 200, 9) and mixed.obs.shape == (14 * 200, 9)
    first = np.concatenate([pi.obs[::200], mixed.obs[::200]])
    assert np.all(np.abs(first[:, 3] - 80.0) <= 0.05 * 80.0 + 1e-3) and first[:, 3].std() > 1.0
    np.testing.assert_allclose(pi.obs[:, 3] + pi.obs[:, 5], 95.0, atol=1e-3)
    np.testing.assert_array_equal(mixed.cost, mixed.constraint > 0.0)
    np.testing.assert_allclose(first[:, 7:], np.tile(params.initial_control, (19, 1)), rtol=1e-6)
    assert 0.0 < mixed.cost.mean() < 1.0
    # What they begin with is the old grade's steady state: nothing moves under its inputs.
    old = names["old_state"], names["old_control"]
    after, _ = reactor.simulate_interval(
        jax.numpy.asarray(old[0], jax.numpy.float32),
        jax.numpy.float32(old[1][0]),
        jax.numpy.asarray(old[1], jax.numpy.float32),
    )
    np.testing.assert_allclose(after, old[0], rtol=1e-3, atol=1e-5)
    assert Path("runs/mine-mixed.npz").exists()


def test_policies_trained_on_it_are_evaluated_on_it(own_plants):
    names = block_with(own_plants, "metrics")
    assert set(names["metrics"]) == {"bc", "iql"}
    low, high = names["limits"]
    assert low < high < 0.0
    assert not names["starts"].doomed.any()
    for found in names["metrics"].values():
        assert found.score.shape == (2, 6) and np.all(np.isfinite(found.score))
        expected = 100.0 * (found.episode_return - low) / (high - low)
        np.testing.assert_allclose(found.score, expected, rtol=1e-3)
    # The errors that are scored are those from 95 kg/m3.
    plans = oracle.step_to_setpoint(names["params"].initial_control, names["params"])
    assert plans.shape == (200, 2)


def test_what_was_trained_on_it_is_kept_and_leaves_the_package(own_plants):
    names = block_with(own_plants, "one")
    jax.tree.map(
        np.testing.assert_array_equal,
        names["one"],
        jax.tree.map(lambda x: x[1], names["trained"]["bc"]),
    )
    described = json.loads(Path("runs/mine-bc/policy.json").read_text())
    assert described["plant"] == {
        "polymer_setpoint": 95.0,
        "temperature_setpoint": 350.0,
        "temperature_limit": 355.0,
    }


def test_in_a_batch_of_plants_each_removes_the_same_heat_with_its_own_coolant(own_plants):
    names = own_plants[-1]
    coolant = np.asarray(names["runs"].control[:, -1, :, 1])  # (3, 8), K
    # UA (T - Tc) is the heat of the same reaction, at 350 K and 100 kg/m3.
    _, control = reactor.nominal_steady_state(100.0, 350.0, polycstr_jax.ReactorParams())
    heat = 500.0 * (350.0 - control[1])  # J/s
    ua = np.asarray([[500.0], [450.0], [400.0]])
    np.testing.assert_allclose(ua * (350.0 - coolant), np.full((3, 8), heat), rtol=0.02)
    assert names["reward"].shape == (3,) and names["obs"].shape == (3, 9)
    play, plant, steady = names["play"], names["plants"][1], names["steady"]
    single = jax.jit(lambda p: play(p, steady, num_episodes=8, num_steps=120))(plant)
    np.testing.assert_allclose(names["runs"].state[1, -1], single.state[-1], rtol=1e-3, atol=1e-6)


def test_the_lines_to_edit_are_there():
    text = (ROOT / "docs/own-plants.md").read_text().split("### What needs an edit")[1]
    rows = [row.split("|")[1:3] for row in text.splitlines() if row.startswith("| `")]
    assert len(rows) == 5
    literal = 'scenario: Literal["startup", "grade_down", "grade_up"]'
    for files, lines in rows:
        for file in files.split("`")[1::2]:
            path = ROOT / file if "/" in file else ROOT / "benchmarks" / file
            for line in lines.split("`")[1::2] or [literal.partition(": ")[2]]:
                line = literal.partition(": ")[2] if line == "Literal" else line
                assert line in path.read_text(), (file, line)


# --- docs/adding-an-algorithm.md ---

PAGE = "adding-an-algorithm.md"


def edited(text):
    """benchmarks/plan.py with the page's lines."""
    (diff,) = blocks(PAGE, "diff")
    hunks = [hunk.partition("\n")[2] for hunk in diff.split("@@")[1:]]
    assert len(hunks) == 4
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(x[1:] for x in lines if x[0] in (" ", s)) for s in "-+")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of algos/ and benchmarks/ with the page's file and lines; and how to call it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("algos", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = blocks(PAGE, "python")
    (folder / "algos/td3bc.py").write_text(code)
    of_plan = folder / "benchmarks/plan.py"
    of_plan.write_text(edited(of_plan.read_text()))
    (folder / "cache").mkdir()
    (ROOT / ".cache/jax").mkdir(parents=True, exist_ok=True)
    (folder / "cache/jax").symlink_to(ROOT / ".cache/jax")
    settings = {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "POLYCSTR_CACHE": str(folder / "cache"),
        "JAX_ENABLE_X64": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as `quick_to_compile`
        "COLUMNS": "100",
    }

    def call(*words):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return folder, call


def test_the_template_is_well_kept(clone):
    folder, _ = clone
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    files = [str(folder / name) for name in ("algos/td3bc.py", "benchmarks/plan.py")]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([ruff, *command, *config, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_its_commands_lead_to_a_row_of_the_leaderboard(clone):
    folder, call = clone
    shell = "\n".join(blocks(PAGE, "bash"))
    commands = [line.partition("#")[0].split()[1:] for line in shell.splitlines() if line]
    smoke = [words for words in commands if "smoke" in words]
    assert [words[1] for words in smoke] == ["benchmarks.run", "benchmarks.tables"]
    call(*smoke[0])
    cell = folder / "results/local/smoke/leaderboard/startup-pi/td3bc@default"
    assert set(pd.read_csv(cell.with_suffix(".csv")).seed) == {0, 1}
    described = json.loads(cell.with_suffix(".json").read_text())["config"]
    assert described["config"]["alpha"] == 2.5 and described["config"]["num_updates"] == 20
    printed = call(*smoke[1])
    rows = [line for line in printed.splitlines() if "td3bc" in line]
    assert len(rows) == 4  # groups of starts
    assert "the numbers mean nothing" in " ".join(printed.split())
    assert {"algos/td3bc.py", "tests/test_algorithms.py"} <= {
        w for words in commands for w in words
    }


def test_its_lines_make_no_committed_cell_another(clone):
    _, call = clone
    code = (
        "from benchmarks.plan import PRESETS, plan_cells\n"
        "print({c.name: c.hash for c in plan_cells(PRESETS['cpu'])})"
    )
    with jax.enable_x64(False):
        ours = {cell.name: cell.hash for cell in plan.plan_cells(plan.PRESETS["cpu"])}
    theirs = eval(call("-c", code))
    assert ours.items() <= theirs.items()
    assert {name.rpartition("/")[2] for name in theirs.keys() - ours.keys()} == {"td3bc@default"}


def test_its_losses_move_what_they_should(clone, monkeypatch):
    folder, _ = clone
    import importlib.util

    spec = importlib.util.spec_from_file_location("td3bc", folder / "algos/td3bc.py")
    td3bc = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "td3bc", td3bc)
    spec.loader.exec_module(td3bc)
    value = jax.numpy.asarray([1.0, -3.0])
    action, taken = jax.numpy.zeros((2, 2)), jax.numpy.asarray([[3.0, 4.0], [0.0, 0.0]])
    # |taken - action|^2 is 25 and 0; the mean value is -1, E|value| 2.
    assert float(td3bc.actor_loss(value, action, taken, 2.5)) == 12.5 + 2.5 / 2.0
    slope = jax.grad(td3bc.actor_loss)(value, action, taken, 2.5)
    np.testing.assert_allclose(slope, -2.5 / 2.0 / 2.0)  # the scale is a constant
