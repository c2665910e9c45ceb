"""The cross-check with d3rlpy, without d3rlpy: a stand-in written in NumPy plays the peer."""

import ast
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import bc, iql
from algos.common import action_units
from benchmarks import peers
from polycstr_jax import data

STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np

folder = Path(sys.argv[1])
job, data = json.loads((folder / "job.json").read_text()), np.load(folder / "data.npz")
if job["task"] == "speed":
    rows = [{"threads": n, "fit": 1e-3 * n, "update": 2e-3 / n} for n in (2, 1)]
    (folder / "report.json").write_text(json.dumps({"speed": rows}))
    raise SystemExit

def mlp(rng, size, out):
    sizes = [size, *job["hidden"], out]
    return [
        (rng.normal(0, b**-0.5, (b, a)).astype("f4"), rng.normal(0, 0.1, b).astype("f4"))
        for a, b in zip(sizes, sizes[1:])
    ]

def forward(layers, x):
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0.0)
    return np.tanh(x @ layers[-1][0].T + layers[-1][1])

found = []
for seed in job["seeds"] if job["task"] == "train" else [0, 1]:
    rng, arrays = np.random.default_rng(seed), {}
    networks = {"policy": mlp(rng, 6, 2)}
    if job["method"] == "iql":
        networks |= {"value": mlp(rng, 6, 1), "critic0": mlp(rng, 8, 1), "critic1": mlp(rng, 8, 1)}
    for name, layers in networks.items():
        for i, (weight, bias) in enumerate(layers):
            arrays |= {f"{name}_weight_{i}": weight, f"{name}_bias_{i}": bias}
    found.append(arrays | {"probe": forward(networks["policy"], data["probe"])})
np.savez(folder / "networks.npz", **{k: np.stack([x[k] for x in found]) for k in found[0]})
(folder / "report.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def sets():
    """Four episodes, raw and as every algorithm sees them."""
    raw = data.generate("startup", "pi", 4)
    return raw, data.training_data(raw, data.normaliser(raw))


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The stand-in in place of d3rlpy."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(peers, "PEER_SCRIPT", script)
    monkeypatch.setattr(
        peers, "peer_versions", lambda path: {"d3rlpy": "0", "torch": "0", "numpy": "0"}
    )
    return Path(sys.executable)


def config(**changes):
    return dataclasses.replace(bc.PRESETS["default"], track="published", **changes)


def test_the_export_is_what_the_networks_of_the_published_track_see(sets):
    raw, training = sets
    columns = peers.export(training)
    shapes = {name: column.shape for name, column in columns.items()}
    assert shapes == {
        "observations": (800, 6),
        "next_observations": (800, 6),
        "actions": (800, 2),
        "rewards": (800, 1),
        "terminals": (800,),
        "timeouts": (800,),
        "probe": (64, 6),
    }
    assert all(
        x.dtype == np.float32 for n, x in columns.items() if n not in ("terminals", "timeouts")
    )
    scales = data.normaliser(raw)
    standardised = columns["observations"] * scales.obs_std[3:] + scales.obs_mean[3:]
    np.testing.assert_allclose(standardised, raw.obs[:, 3:], rtol=1e-5, atol=1e-3)
    for extreme, found in ((-1.0, np.min), (1.0, np.max)):
        np.testing.assert_allclose(found(columns["actions"], axis=0), extreme, rtol=1e-6)
    low, high = scales.action_low, scales.action_high
    back = low + (columns["actions"] + 1.0) / 2.0 * (high - low)
    np.testing.assert_allclose(back, raw.action, atol=1e-6)
    np.testing.assert_allclose(
        columns["rewards"][:, 0] * scales.reward_std, np.maximum(raw.reward, -20_000.0), rtol=1e-5
    )
    assert not columns["terminals"].any()
    np.testing.assert_array_equal(np.flatnonzero(columns["timeouts"]), [199, 399, 599, 799])
    inner = ~columns["timeouts"][:-1]
    np.testing.assert_array_equal(
        columns["next_observations"][:-1][inner], columns["observations"][1:][inner]
    )


def test_a_peers_weights_answer_like_the_peer(sets, stand_in):
    raw, training = sets
    settings = config(num_updates=20)
    _, arrays = peers.run_peer(stand_in, "train", "bc", settings, training, seeds=[0, 1])
    algorithm = bc.make_train(settings)
    probes = raw.obs[peers.probe_rows(800)]
    states = peers.load_states("bc", algorithm, training, probes, arrays)
    kernel = states.params["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[1], arrays["policy_weight_0"][1].T)

    swapped = arrays | {"policy_weight_1": np.swapaxes(arrays["policy_weight_1"], 1, 2)}
    with pytest.raises(ValueError, match=r"differs by .*; allowed: 1e-05"):
        peers.load_states("bc", algorithm, training, probes, swapped)
    narrow = arrays | {"policy_weight_0": arrays["policy_weight_0"][:, :, :5]}
    with pytest.raises(ValueError, match=r"the peer's layers have shapes .*; allowed"):
        peers.load_states("bc", algorithm, training, probes, narrow)


def as_peer(params, name):
    """Our `MLP`'s parameters as the peer would hand them over, one seed."""
    layers = params["params"]
    arrays = {}
    for i in range(len(layers)):
        arrays[f"{name}_weight_{i}"] = np.asarray(layers[f"Dense_{i}"]["kernel"]).T
        arrays[f"{name}_bias_{i}"] = np.asarray(layers[f"Dense_{i}"]["bias"])
    return arrays


@functools.partial(jax.jit, static_argnums=0)
def answers(algorithm, state, obs):
    return jax.vmap(lambda x: algorithm.policy(state)(x, jax.random.key(0)))(obs)


@pytest.mark.parametrize("method", ["bc", "iql"])
@pytest.mark.parametrize("late", [0, 1])
def test_equal_updates_are_found_equal_and_a_missing_one_is_not(method, late, sets, monkeypatch):
    """A peer that makes our own updates, on the transitions that it was told."""
    raw, training = sets
    probes = raw.obs[peers.probe_rows(800)]
    monkeypatch.setattr(peers, "NUM_STEPS", 5)

    def run_peer(_, task, method, settings, training, rows):
        assert task == "steps" and len(rows) == 5 and settings.num_updates == 5
        algorithm = peers.METHODS[method].make_train(settings)
        state = jax.jit(algorithm.init)(jax.random.key(3), training)
        update = jax.jit(lambda state, one: algorithm.run(state, one, jax.random.key(0), 1)[0])
        if method == "iql":
            log_std = jnp.full_like(state.params.log_std, peers.PEER_LOG_STD)
            state = state._replace(params=state.params._replace(log_std=log_std))
        shift, scale = action_units("published", training.normaliser)
        states = []
        for row in [None, *rows[late:]]:
            if row is not None:
                one = training.transitions(lambda x, row=row: x[row : row + 1])
                state = update(state, one)
            params = state.params
            arrays = as_peer(params if method == "bc" else params.policy, "policy")
            if method == "iql":
                arrays |= as_peer(params.value, "value")
                for n in (0, 1):
                    critic = jax.tree.map(lambda x, n=n: x[n], params.critic)
                    arrays |= as_peer(critic, f"critic{n}")
            answer = answers(algorithm, state, jnp.asarray(probes))
            states.append(arrays | {"probe": np.asarray((answer - shift[None]) / scale[None])})
        pair = (states[0], states[-1])
        return {}, {name: np.stack([x[name] for x in pair]) for name in pair[0]}

    monkeypatch.setattr(peers, "run_peer", run_peer)
    settings = dataclasses.replace(
        peers.METHODS[method].PRESETS["default"], track="published", hidden=(16, 16)
    )
    found = peers.compare_steps(Path("unused"), method, settings, training, probes)
    assert set(found) == ({"policy"} if method == "bc" else {"policy", "V", "Q"})
    assert all(x > 0.05 if late else x < 1e-4 for x in found.values())


@pytest.mark.parametrize("method", ["bc", "iql"])
def test_first_weights_are_drawn_as_pytorch_draws_them(method, sets):
    training = sets[1]
    settings = dataclasses.replace(peers.METHODS[method].PRESETS["default"], track="published")
    algorithm = peers.METHODS[method].make_train(settings)
    init = jax.jit(peers.from_pytorchs_weights(method, algorithm).init)
    state, other = (init(jax.random.key(seed), training) for seed in (0, 1))
    policy = state.params if method == "bc" else state.params.policy
    for name, size in (("Dense_0", 6), ("Dense_1", 256), ("Dense_2", 256)):
        for part in policy["params"][name].values():
            assert float(jnp.abs(part).max()) <= size**-0.5
            assert float(jnp.abs(part).max()) > 0.5 * size**-0.5
    kernel = policy["params"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), (3 * 256) ** -0.5, rtol=0.02)
    if method == "iql":
        assert (state.params.log_std == peers.PEER_LOG_STD).all()
        jax.tree.map(np.testing.assert_array_equal, state.target_critic, state.params.critic)
        critic = state.params.critic["params"]["Dense_0"]["kernel"]
        assert (critic[0] != critic[1]).any()
    assert any(
        jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), state.params, other.params))
    )


def test_a_run_writes_a_comparison_without_paths(sets, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SPEED_UPDATES", {"d3rlpy": 20, "ours": 20})
    monkeypatch.setattr(peers, "SPEED_TURNS", 2)
    monkeypatch.setattr(peers, "SPEED_SEEDS", (1, 2))
    monkeypatch.setattr(peers, "METHODS", {"iql": iql})
    raw, training = sets
    monkeypatch.setattr(peers, "load_set", lambda _: (training, raw.obs[peers.probe_rows(800)]))
    out = tmp_path / "new" / "peers"
    peers.main(peers.Args(("startup",), 2, 20, None, out, stand_in))
    assert sorted(path.name for path in out.iterdir()) == ["peers.json", "peers.md"]
    text = (out / "peers.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert found["provenance"]["command"] == (
        "python -m benchmarks.peers --scenarios startup --num-seeds 2 --num-updates 20"
    )
    assert str(tmp_path) not in text and sys.executable not in text
    (cell,) = found["cells"]
    assert (cell["scenario"], cell["method"]) == ("startup", "iql")
    assert cell["agree"] is None  # two seeds give no interval
    assert len(cell["d3rlpy"]["seeds"]) == len(cell["ours"]["seeds"]) == 2
    assert cell["d3rlpy"]["seeds"] != cell["ours"]["seeds"]
    assert cell["steps"]["V"] > 0.1  # the stand-in's "update" draws other weights
    assert len(cell[peers.FIRST_WEIGHTS]["seeds"]) == 2
    assert cell[peers.FIRST_WEIGHTS]["seeds"] != cell["ours"]["seeds"]

    speed = {row["by"]: row for row in found["speed"]}
    assert list(speed) == ["d3rlpy, fit", "d3rlpy, update", "ours, 1 seed", "ours, 2 seeds"]
    fit = speed["d3rlpy, fit"]  # the stand-in says 2e-3 with two threads, 1e-3 with one
    assert fit["updates/s"] == 2e-3 and fit["x fit"] == [1.0, 1.0] and fit["x update"] == [1.0] * 2
    for name in ("ours, 1 seed", "ours, 2 seeds"):
        row = speed[name]
        assert max(row["x fit"]) == pytest.approx(row["updates/s"] / 2e-3)
        assert row["updates/s"] > 1.0

    table = (out / "peers.md").read_text()
    assert "## Updates a second" in table and "the numbers mean nothing" in table
    assert "| startup | iql | d3rlpy |" in table and "| startup | iql | ours |" in table


def cell(scores):
    mean, iqm = peers.stats.seed_bootstrap(scores, np.mean), peers.stats.seed_bootstrap(scores)
    return {"seeds": list(scores), "mean_score": mean._asdict(), "iqm_score": iqm._asdict()}


def test_agreement_needs_both_means_in_the_others_interval():
    wide, narrow = cell(np.arange(8.0) * 10.0), cell(30.0 + 0.1 * np.arange(8.0))
    assert narrow["mean_score"]["high"] < wide["mean_score"]["value"]  # only one is inside
    assert peers.agreement(narrow, wide)["agree"] is peers.agreement(wide, narrow)["agree"] is False
    assert peers.agreement(wide, wide) == {"agree": True, "p": 1.0}
    apart = peers.agreement(cell(np.arange(8.0)), cell(100.0 + np.arange(8.0)))
    assert apart == {"agree": False, "p": pytest.approx(2.0 / 12_870.0)}  # 1 of C(16, 8) a side
    assert peers.agreement(cell([1.0, 2.0]), cell([1.0, 2.0])) == {"agree": None, "p": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": ()}, "scenarios = none; allowed"),
        ({"num_seeds": 0}, "num-seeds = 0; allowed: 1 or more"),
        ({"only": "checks"}, "only = checks: .* holds no peers.json"),
        ({"num_updates": 0}, "num-updates = 0; allowed: 1 or more"),
        ({"peer_python": Path("nowhere/python")}, "peer-python = nowhere/python .*make peers"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(changes, message, tmp_path):
    args = peers.Args(out=tmp_path / "out", peer_python=Path(sys.executable))
    with pytest.raises(SystemExit, match=message):
        peers.main(dataclasses.replace(args, **changes))
    assert not (tmp_path / "out").exists()


def test_an_environment_without_d3rlpy_and_a_blocked_folder_are_named(tmp_path):
    python = Path(sys.executable)
    with pytest.raises(SystemExit, match=r"lacks one of d3rlpy, torch.*make peers"):
        peers.main(peers.Args(out=tmp_path / "out", peer_python=python))
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(SystemExit, match="cannot be written to"):
        peers.main(peers.Args(out=blocked / "below", peer_python=python))


def test_an_unknown_scenario_is_refused_by_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--scenarios", "shutdown"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "shutdown" in done.stderr + done.stdout and "grade_down" in done.stderr + done.stdout


def test_a_peer_that_fails_says_why(tmp_path, monkeypatch, sets):
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('the reason')")
    monkeypatch.setattr(peers, "PEER_SCRIPT", script)
    with pytest.raises(SystemExit, match=r"broken.py failed on bc:[\s\S]*the reason"):
        peers.run_peer(Path(sys.executable), "train", "bc", config(), sets[1], seeds=[0])


def test_nothing_of_ours_is_known_to_the_peers_script():
    imported = set()
    for node in ast.walk(ast.parse(peers.PEER_SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"d3rlpy", "numpy", "structlog", "torch"}
