"""The benchmark of the online loop: its halves, its peer, what it concludes, what it writes.

A stand-in without FSRL plays the peer. Nothing here depends on how fast this machine is."""

import ast
import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.testing import assert_array_equal as assert_equal

from algos import sac_lag
from algos.common import from_unit, jitted_over_seeds
from benchmarks import online_speed
from benchmarks.online_speed import PARTS, Args
from benchmarks.training_speed import untrained
from benchmarks.worker import ENV
from polycstr_jax.env import scenario_params
from tests.made_up import noise

pytestmark = pytest.mark.usefixtures("quick_to_compile")

INTERVALS = online_speed.SMOKE.intervals
CONFIG = dataclasses.replace(sac_lag.DEFAULT, **dict(online_speed.SMOKE.settings))
STAND_IN = """
import json, sys

def ask(message):
    print(json.dumps(message), flush=True)
    return json.loads(sys.stdin.readline())

job = json.loads(sys.stdin.readline())
print("what is printed", file=sys.stderr)
message = {"done": {"threads": 2}}
while True:
    request = ask(message)
    played, steps = job["intervals"], 0
    if request["part"] != "gradient steps":
        assert len(ask({"reset": None})) == job["obs_size"]
        for n in range(played):
            *_, cost, terminated, truncated = ask({"step": [0.5, -0.5]})
            assert (terminated, truncated) == (False, n == played - 1)
    if request["part"] != "roll-out":
        steps = job["gradient_steps"]
    message = {"done": {"intervals": played, "gradient_steps": steps}}
"""


@pytest.fixture(scope="module")
def env_params():
    return scenario_params("startup", max_steps_in_episode=INTERVALS)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that puts a script in place of FSRL."""

    def place(text=STAND_IN):
        script = tmp_path / "stand_in.py"
        script.write_text(text)
        monkeypatch.setattr(online_speed, "PEER_SCRIPT", script)
        versions = dict.fromkeys(online_speed.PEER_PACKAGES, "0")
        monkeypatch.setattr(online_speed, "peer_versions", lambda *_: versions)
        return Path(sys.executable)

    return place


# --- Ours ---


def test_the_halves_do_what_the_whole_does(env_params):
    """From the same states with the same keys: the roll-out, then the gradient steps."""
    whole, play, learn = online_speed.parts_of(CONFIG, env_params).values()
    assert whole.config.hidden == (16,)
    data, keys = noise(), jax.vmap(jax.random.key)(np.arange(2))
    start = untrained(whole, data, keys)

    def run(part, state):
        state = jax.tree.map(jnp.copy, state)  # it is consumed
        return jitted_over_seeds(part)[1](state, data, keys, online_speed.SMOKE.updates)[0]

    both, played = run(whole, start), run(play, start)
    for found in (both, played):
        assert found.replay.size.tolist() == [INTERVALS] * 2 and found.step.tolist() == [1, 1]
    for kept in ("replay", "multiplier"):
        jax.tree.map(assert_equal, getattr(played, kept), getattr(both, kept))
    jax.tree.map(assert_equal, played.params, start.params)

    learned = run(learn, played)
    assert learned.step.tolist() == [2, 2]
    jax.tree.map(assert_equal, learned.replay, played.replay)
    for state in (both, learned):
        pairs = zip(*map(jax.tree.leaves, (start.params, state.params)), strict=True)
        assert min(float(jnp.abs(x - y).max()) for x, y in pairs) > 0.0


def test_gradient_steps_alone_have_something_to_learn_from(env_params):
    learn = online_speed.parts_of(CONFIG, env_params)["gradient steps"]
    state = untrained(learn, noise(), jax.vmap(jax.random.key)(np.arange(2)))
    assert state.replay.size.tolist() == [INTERVALS] * 2
    assert np.ptp(state.replay.kept.action[:, :INTERVALS]) > 0.0


# --- The peer ---


def test_the_peers_reactor_is_ours(env_params):
    """Observations, actions and rewards in the networks' units."""
    data = noise()
    reactor = online_speed.Reactor(CONFIG, env_params, data)
    _, state = ENV.reset_env(jax.random.key(0), env_params)
    assert np.shape(reactor.reset()) == (9,)
    step = jax.jit(ENV.step_env)
    inner = np.asarray([0.9, -0.7], np.float32)
    action = from_unit(CONFIG.action_unit, inner[None], data.normaliser.action_std)[0]
    for n in range(INTERVALS):
        obs, state, reward, _, info = step(jax.random.key(0), state, action, env_params)
        found = reactor.step(inner.tolist())
        assert_allclose(found[0], data.normaliser.obs(obs), rtol=1e-3)
        assert_allclose(found[1], data.normaliser.reward(reward), rtol=1e-3)
        assert found[2:] == [float(info["cost"]), False, n == INTERVALS - 1]


def test_a_peer_that_fails_says_why(stand_in, env_params):
    python = stand_in("raise RuntimeError('the reason')")
    with (
        pytest.raises(SystemExit, match=r"stand_in.py failed:[\s\S]*the reason"),
        online_speed.peer(python, CONFIG, env_params, noise()),
    ):
        pass


@pytest.mark.parametrize("part", PARTS)
def test_a_peer_that_does_more_or_less_than_an_update_is_an_error(part):
    class Idle:
        def do(self, part, threads):
            return {"intervals": INTERVALS, "gradient_steps": 3}

    with pytest.raises(RuntimeError, match=r"'gradient_steps': 3.*allowed: .*: \d"):
        online_speed.exactly(Idle(), CONFIG, online_speed.SMOKE, part, 1)


def test_nothing_of_ours_is_known_to_the_peers_script():
    imported = set()
    for node in ast.walk(ast.parse(online_speed.PEER_SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    theirs = {"fsrl", "gymnasium", "numpy", "tianshou", "torch"}
    assert imported - sys.stdlib_module_names == theirs


# --- What is concluded ---


def test_ratios_are_to_the_faster_number_of_threads_of_the_same_turn():
    def speed(*turns):
        return {part: np.asarray(turns) for part in PARTS}

    speeds = {
        ("ours", 1): speed(20.0, 30.0),
        ("ours", 8): speed(80.0, 80.0),
        ("FSRL, 2 threads", 1): speed(2.0, 4.0),
        ("FSRL, 1 thread", 1): speed(1.0, 5.0),
    }
    one, eight = online_speed.compare(speeds)
    assert (one["seeds"], eight["seeds"]) == (1, 8)
    for part in PARTS:
        assert (one[part], eight[part]) == ([10.0, 6.0], [40.0, 16.0])
    assert online_speed.compare({("ours", 1): speed(20.0)}) == []


def test_a_row_is_the_best_turn_summed_over_the_seeds():
    speed = {"loop": np.asarray([1.0, 2.0]), "roll-out": np.asarray([6.0, 3.0])}
    speed |= {"gradient steps": np.asarray([1.0, 2.0])}
    sizes = online_speed.Sizes()
    found = online_speed.row(("ours", 8), speed, sac_lag.DEFAULT, sizes, {("ours", 8): 3.0})
    assert found == {
        "by": "ours",
        "seeds": 8,
        "seeds x intervals/s": 400.0,
        "seeds x gradient steps/s": 400.0,
        "roll-out alone, intervals/s": 1_200.0,
        "gradient steps alone, /s": 400.0,
        "roll-out's share": 0.25,
        "compilation [s]": 3.0,
    }


# --- The whole ---


def test_a_smoke_run_writes_every_figure(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(online_speed, "load_training_data", lambda *_: noise())
    folder = tmp_path / "new" / "folder"
    args = Args(out=folder, seeds=(2,), repeats=2, smoke=True, peer_python=stand_in())
    online_speed.main(args)
    names = ["online_speed.json", "online_speed.md"]
    assert sorted(path.name for path in folder.iterdir()) == names

    text = (folder / "online_speed.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert str(tmp_path) not in text and sys.executable not in text, "a machine's path"
    assert {"commit", "versions", "hardware", "date"} <= set(found)
    assert found["args"] == {"seeds": [2], "repeats": 2, "smoke": True}
    assert set(found["peer_versions"]) == set(online_speed.PEER_PACKAGES)
    by = [(row["by"], row["seeds"]) for row in found["speed"]]
    assert by == [("ours", 2), ("FSRL, 2 threads", 1), ("FSRL, 1 thread", 1)]
    for row in found["speed"]:
        ratio = row["seeds x intervals/s"] / row["seeds x gradient steps/s"]
        assert ratio == pytest.approx(INTERVALS / CONFIG.gradient_steps)
        assert 0.0 < row["roll-out's share"] < 1.0
        assert (row["compilation [s]"] is None) == (row["by"] != "ours")
    (against,) = found["times FSRL"]
    assert against["seeds"] == 2
    assert all(len(against[part]) == 2 and min(against[part]) > 0.0 for part in PARTS)

    text = (folder / "online_speed.md").read_text()
    assert str(tmp_path) not in text
    assert "SMOKE TEST" in text and "None" not in text and "nan" not in text
    assert "## Times FSRL's speed\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 + 1 + 2, "headings, too"

    alone = online_speed.markdown(found | {"peer_versions": {}, "times FSRL": []})
    assert "Times FSRL" not in alone and "torch" not in alone


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"seeds": (8, 0)}, r"seeds = 8 0; allowed"),
        ({"repeats": 0}, r"repeats = 0; allowed"),
        ({"peer_python": Path("nowhere/python")}, r"peer-python = nowhere/python .*make fsrl"),
    ],
)
def test_what_makes_no_sense_is_refused_before_measuring(changes, named, tmp_path, monkeypatch):
    monkeypatch.setattr(online_speed, "measure", pytest.fail)
    with pytest.raises(SystemExit, match=named):
        online_speed.main(dataclasses.replace(Args(out=tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_a_python_without_fsrl_is_refused_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(online_speed, "measure", pytest.fail)
    monkeypatch.setattr(online_speed, "PEER_PACKAGES", ("no-such-package",))
    args = Args(out=tmp_path / "out", smoke=True, peer_python=Path(sys.executable))
    with pytest.raises(SystemExit, match=r"lacks one of no-such-package; `make fsrl`"):
        online_speed.main(args)
