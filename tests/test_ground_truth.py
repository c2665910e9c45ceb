"""The report on oracle and viability measures what it says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ground_truth
from polycstr_jax import evaluate
from polycstr_jax.env import PolyCSTR, initial_state, scenario_params
from tests.exact import exact_interval


def test_scipys_replay_is_the_published_plant():
    starts, params = evaluate.starts("grade_up", "hot"), scenario_params("grade_up")
    actions = np.array([[0.5, 1.0], [-1.0, -1.0], [0.2, -0.3]])
    cost, peaks = ground_truth.scipy_replay(starts.state[0], starts.control[0], actions, params)
    state, control = starts.state[0].astype(float), starts.control[0].astype(float)
    expected, tops = 0.0, []
    for action in actions:
        feed, control = control[0], control + action * np.array([0.5, 1.0])
        state, top = exact_interval(state, feed, control)
        expected += (100.0 - state[3]) ** 2 + (350.0 - state[4]) ** 2
        tops.append(top)
    np.testing.assert_allclose(cost, expected, rtol=1e-5)
    np.testing.assert_allclose(peaks, tops, atol=2e-3)


def test_the_search_for_a_safer_sequence_gets_near_the_safest_policy():
    starts = evaluate.starts("grade_up", "hot")
    chosen = [0, 40]
    states, controls = (jnp.asarray(x[chosen]) for x in starts[:2])
    peak = ground_truth.peaks_of(states, controls)
    found = np.asarray(ground_truth.search(states, controls, jax.random.key(0)))
    assert (found >= peak - 2e-3).all()  # nothing is safer
    assert (found <= peak + 0.3).all()  # and the search is not blind


def test_the_feasible_set_ends_at_one_temperature_and_shrinks_with_hotter_controls(monkeypatch):
    monkeypatch.setattr(ground_truth, "NUM_POINTS", 7)
    arrays = ground_truth.slices_arrays()
    for plane in ground_truth.PLANES:
        shares = []
        for name in ("cold", "steady", "hot"):
            peak = arrays[f"peak_{plane}_{name}"]
            assert peak.shape == (7, 7)
            assert (np.diff(peak, axis=1) > -0.01).all()  # hotter is not safer
            shares.append((peak <= 356.0).mean())
        assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]


def test_sections_keep_their_own_provenance(monkeypatch, tmp_path):
    monkeypatch.setattr(ground_truth, "NUM_POINTS", 5)
    args = ground_truth.Args(("slices",), tmp_path / "out", tmp_path / "figures")
    ground_truth.main(args)
    path = tmp_path / "out" / "ground_truth.json"
    first = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert list(first) == ["slices"] and first["slices"]["made"]["date"]
    with np.load(tmp_path / "out" / "feasible_set.npz") as arrays:
        assert arrays["peak_polymer_hot"].shape == (5, 5)
    assert (tmp_path / "figures" / "ground-truth-feasible-set.png").stat().st_size > 5_000

    monkeypatch.setattr(ground_truth, "conjecture", lambda _: [{"states": 2, "below": np.nan}])
    ground_truth.main(dataclasses.replace(args, only=("conjecture",)))
    both = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert both["slices"] == first["slices"] and both["conjecture"]["rows"][0]["states"] == 2
    table = (tmp_path / "out" / "ground_truth.md").read_text()
    assert "## slices" in table and "## conjecture" in table


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Every section measured once, at its smallest size."""
    folder = tmp_path_factory.mktemp("ground_truth")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            *(("SCENARIOS", ("grade_up",)), ("LIMITS", (354.0, 358.0)), ("HORIZONS", (2,))),
            *(("AGENTS", ("unconstrained",)), ("THRESHOLDS", (352.0, 354.0)), ("NUM_POINTS", 5)),
            ("trained_states", lambda scenario: {}),
        ):
            patch.setattr(ground_truth, name, value)
        sizes = {"num_episodes": 6, "num_states": 4, "num_scipy": 1, "num_starts": 2}
        ground_truth.main(ground_truth.Args(out=folder / "out", figures=folder, **sizes))
    found = json.loads((folder / "out/ground_truth.json").read_text(), parse_constant=pytest.fail)
    return {name: section["rows"] for name, section in found.items()}, folder


def test_every_section_measures_what_it_says(tiny):
    rows, folder = tiny
    assert set(rows) == set(ground_truth.SECTIONS)
    (row,) = rows["scipy"]
    assert row["cost, relative"] < 2e-4 and row["peak, K"] < 0.02
    assert row["highest peak by SciPy, K"] < 356.0
    (row,) = rows["price"]
    assert row["354 K"] > row["358 K"] > 0.0 and row["starts"] == 2
    (row,) = rows["horizon"]
    assert row["horizon"] == 2 and 90.0 < row["gap closed, median"] <= 100.1
    by_guard = {(row["guard"], row["starts"]): row for row in rows["agents"]}
    assert len(by_guard) == 6
    greedy = by_guard["as it is", "nominal"]
    assert greedy["P(violation)"] > 0.9 and greedy["doomed while live"] > 0.0
    assert greedy["lead, h"] > 0.0 and greedy["gap closed"] > 100.0
    for kind in ("nominal", "hot"):
        assert by_guard["shield", kind]["P(violation)"] == 0.0
        assert by_guard["shield", kind]["doomed while live"] == 0.0
    for row in rows["accuracy"]:
        assert row["states"] > 0 and row["largest difference, K"] < 0.02
    (row,) = rows["conjecture"]
    assert row["best sequence below the safest policy, K"] < 0.01
    assert row["called doomed, saved by a sequence"] == 0
    (row,) = rows["thermometer"]
    assert 0.0 <= row["misses, share of the doomed"] <= 1.0 and row["doomed"] > 0
    (row,) = rows["shield"]
    assert row["violating episodes"] == 0 and row["episodes"] == 7
    names = ("feasible-set", "plans", "price", "horizon")
    assert {path.name for path in folder.glob("*.png")} == {f"ground-truth-{x}.png" for x in names}


def test_guards_change_the_action_and_keep_the_memory():
    obs = jnp.asarray([100.0, 5.0, 1.0, 100.0, 353.0, 0.0, -3.0, 1.8, 340.0])

    def raise_both(obs, memory):
        return jnp.ones((2,)), memory + 1

    action, memory = ground_truth.guarded(raise_both, "as it is")(obs, 0)
    assert (action == 1.0).all() and memory == 1
    for threshold, expected in ((352.0, -1.0), (354.0, 1.0)):
        act = ground_truth.guarded(raise_both, "alarm")
        action, (memory, kept) = act(obs, (0, jnp.asarray(threshold)))
        assert (action == expected).all() and memory == 1 and kept == threshold
    starts = evaluate.starts("grade_up", "hot")
    assert not starts.doomed[0]
    start = initial_state(starts.state[0], starts.control[0])
    obs = PolyCSTR().observation(start, jnp.zeros((7,)), ground_truth.NOMINAL)
    action, memory = jax.jit(ground_truth.guarded(raise_both, "shield"))(obs, 0)
    assert memory == 1 and (action < 1.0).all()  # this hot, both cannot be raised


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_episodes": 0}, "num-episodes = 0; allowed: 1 or more"),
        ({"num_states": 0}, "num-states = 0; allowed"),
    ],
)
def test_bad_arguments_are_named(changes, message, tmp_path):
    args = ground_truth.Args(out=tmp_path / "out", figures=tmp_path)
    with pytest.raises(SystemExit, match=message):
        ground_truth.main(dataclasses.replace(args, **changes))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written to"):
        ground_truth.main(dataclasses.replace(args, out=tmp_path / "file" / "x"))
