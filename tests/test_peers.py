"""The cross-check with d3rlpy, without d3rlpy: a stand-in written in NumPy plays the peer."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from algos import bc, iql
from benchmarks import peers
from polycstr_jax import data
from polycstr_jax.stats import Interval

STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np

folder = Path(sys.argv[1])
job, data = json.loads((folder / "job.json").read_text()), np.load(folder / "data.npz")
if job["task"] == "speed":
    rows = [{"threads": n, "fit": 10.0 * n, "update": 20.0 / n} for n in (2, 1)]
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
(folder / "report.json").write_text(json.dumps({"wall_seconds": 1.0}))
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
    columns = peers.export(training)
    settings = config(num_updates=20)
    job = peers.make_job("train", "bc", settings, 2)
    assert (job["seeds"], job["method"], job["hidden"]) == ([0, 1], "bc", (256, 256))
    _, arrays = peers.run_peer(stand_in, job, columns)
    algorithm = bc.make_train(settings)
    states = peers.load_states("bc", algorithm, training, arrays)
    probes = raw.obs[peers.probe_rows(800)]
    assert peers.check_forward_pass(algorithm, states, probes, arrays["probe"]) < 1e-5

    swapped = arrays | {"policy_weight_1": np.swapaxes(arrays["policy_weight_1"], 1, 2)}
    states = peers.load_states("bc", algorithm, training, swapped)
    with pytest.raises(ValueError, match=r"differs by .*; allowed: 1e-05"):
        peers.check_forward_pass(algorithm, states, probes, arrays["probe"])
    narrow = arrays | {"policy_weight_0": arrays["policy_weight_0"][:, :, :5]}
    with pytest.raises(ValueError, match=r"the peer's layers have shapes .*; allowed"):
        peers.load_states("bc", algorithm, training, narrow)


def test_a_run_writes_a_comparison_without_paths(sets, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SPEED_UPDATES", {"d3rlpy": 20, "ours": 20})
    monkeypatch.setattr(peers, "SPEED_REPEATS", 1)
    monkeypatch.setattr(peers, "SPEED_SEEDS", 2)
    monkeypatch.setattr(peers, "METHODS", {"iql": iql})
    monkeypatch.setattr(peers.data, "generate", lambda *_: sets[0])
    out = tmp_path / "new" / "peers"
    peers.main(peers.Args(("startup",), 2, 20, None, out, stand_in))
    assert sorted(path.name for path in out.iterdir()) == ["peers.json", "peers.md"]
    text = (out / "peers.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert found["scores"]["provenance"]["command"] == (
        "python -m benchmarks.peers --scenarios startup --num-seeds 2 --num-updates 20"
    )
    assert str(tmp_path) not in text and sys.executable not in text
    (cell,) = found["scores"]["cells"]
    assert (cell["scenario"], cell["method"]) == ("startup", "iql")
    assert cell["d3rlpy"]["forward_difference"] < 1e-5
    assert cell["comparison"]["agree"] is None  # two seeds give no interval
    for library in ("d3rlpy", "ours"):
        assert {"score", "value", "imitation_error"} <= set(cell[library]["seeds"])
        assert all(len(values) == 2 for values in cell[library]["seeds"].values())
    table = (out / "peers.md").read_text()
    assert (
        "Updates a second" in table
        and "the numbers mean nothing" in table
        and "356 K" in table
        and "200 intervals" in table
    )

    monkeypatch.setattr(peers, "compare_scores", lambda *_: pytest.fail("trained again"))
    peers.main(peers.Args(("startup",), 2, 20, "speed", out, stand_in))
    again = json.loads((out / "peers.json").read_text())
    assert again["scores"] == found["scores"]
    assert again["speed"]["provenance"] == found["speed"]["provenance"]


def test_a_mean_is_inside_an_interval_or_not_or_nobody_knows():
    interval = Interval(5.0, 4.0, 6.0)
    assert peers.inside(4.0, interval) and peers.inside(6.0, interval)
    assert peers.inside(6.1, interval) is False
    assert peers.inside(5.0, Interval(5.0, np.nan, np.nan)) is None


def summary(scores):
    return peers.summarise({"score": list(scores), "violated": [0.0] * len(scores)}, 0.0)


def test_agreement_needs_both_means_in_the_others_interval():
    wide, narrow = summary(np.arange(8.0) * 10.0), summary(30.0 + 0.1 * np.arange(8.0))
    assert wide["mean_score"]["value"] == 35.0 and wide["worst_seed"] == 0.0
    found = peers.compare(narrow, wide)
    assert found["peer_in_ours"] and not found["ours_in_peer"] and found["agree"] is False
    assert found["difference"] == pytest.approx(30.35 - 35.0)
    assert peers.compare(wide, wide)["agree"] is True
    few = peers.compare(summary([1.0, 2.0]), wide)
    assert few["agree"] is None and few["ours_in_peer"] is None


def test_the_permutation_test_is_exact_for_eight_seeds():
    low, high = np.arange(8.0), 100.0 + np.arange(8.0)
    assert peers.permutation_p(low, high) == pytest.approx(2.0 / 12_870.0)
    assert peers.permutation_p(low, low) == 1.0
    assert peers.permutation_p([1.0], low) is None


def test_speed_is_compared_with_the_peers_better_number_of_threads():
    rows = [
        {"threads": 2, "fit": 20.0, "update": 10.0},
        {"threads": 1, "fit": 10.0, "update": 40.0},
    ]
    found = peers.speed_ratios(rows, {"updates_per_second": 80.0}, {"updates_per_second": 400.0})
    assert found["ratios"] == {
        "one_seed_to_fit": 4.0,
        "many_seeds_to_fit": 20.0,
        "one_seed_to_update": 2.0,
        "many_seeds_to_update": 10.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": ("startup", "shutdown")}, "scenarios = shutdown; allowed: startup, "),
        ({"scenarios": ()}, "scenarios = none; allowed"),
        ({"num_seeds": 0}, "num-seeds = 0; allowed: 1 or more"),
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


def test_a_peer_that_fails_says_why(tmp_path, monkeypatch, sets):
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('the reason')")
    monkeypatch.setattr(peers, "PEER_SCRIPT", script)
    job = peers.make_job("train", "bc", config(), 1)
    with pytest.raises(SystemExit, match=r"broken.py failed on bc:[\s\S]*the reason"):
        peers.run_peer(Path(sys.executable), job, {})


def test_nothing_of_ours_is_known_to_the_peers_script():
    text = peers.PEER_SCRIPT.read_text()
    for name in ("polycstr_jax", "jax", "algos", "benchmarks"):
        assert f"import {name}" not in text and f"from {name}" not in text
