"""`benchmarks.fisor`: what it counts, on made-up policies, and that it runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import fisor
from benchmarks import fisor as benchmark
from benchmarks.figures import evaluation_keys
from polycstr_jax import evaluate, viability
from polycstr_jax.env import scenario_params

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything but tuning, at the smallest size."""
    folder = tmp_path_factory.mktemp("fisor")
    args = benchmark.Args(
        only=("toys", "region", "causes", "speed"),
        out=folder / "out",
        figures=folder / "figures",
        scenarios=("startup",),
        preset="smoke",
        num_seeds=1,
        num_states=200,
        toy_updates=5,
        seeds=(1,),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "TOY_SETTINGS", {"the first": {}})
        patch.setattr(benchmark, "PROBLEMS", ("double integrator",))
        patch.setattr(benchmark, "NUM_LOOPED", (4,))
        patch.setattr(benchmark, "KINDS", ("hot",))
        patch.setattr(benchmark, "SECONDS", 0.01)
        benchmark.main(args)
    return args, json.loads((args.out / "fisor.json").read_text())


def test_every_section_has_rows_provenance_and_figures(measured):
    args, found = measured
    assert {*found} == {"toys", "region", "causes", "speed"}
    assert all(
        {"commit", "hardware", "seconds"} <= {*section["made"]} for section in found.values()
    )
    names = {path.name for path in args.figures.iterdir()}
    assert names == {
        "fisor-toys.png",
        "fisor-region-startup.png",
        "fisor-trajectories-startup.png",
    }
    assert "## region" in (args.out / "fisor.md").read_text()


def test_the_region_is_judged_in_the_band_against_the_answer_key(measured):
    (row,) = measured[1]["region"]["rows"]
    assert row["feasible"] + row["doomed"] == 200 and min(row["feasible"], row["doomed"]) > 0
    for name in ("false alarms", "misses", "IoU, monomer"):
        assert 0.0 <= row[name] <= 1.0


def test_every_violation_has_one_cause(measured):
    for row in measured[1]["causes"]["rows"]:
        assert sum(row[cause] for cause in benchmark.CAUSES) == row["violating"]
        assert row["violating"] <= row["episodes"]


def test_speed_has_a_row_for_every_number(measured):
    rows = measured[1]["speed"]["rows"]
    assert [(row["what"], row["method"]) for row in rows] == [
        *(("updates", "bc"), ("updates", "fisor"), ("intervals", "bc"), ("intervals", "fisor"))
    ]
    assert all(row["a second"] > 0.0 for row in rows)
    assert rows[0]["times bc's"] == rows[2]["times bc's"] == 1.0


def test_observations_are_those_of_the_environment():
    starts = evaluate.starts("grade_up", "nominal")
    obs = benchmark.observations("grade_up", starts.state, starts.control)
    np.testing.assert_allclose(obs[:, 3:5], starts.state[:, 3:], rtol=1e-6)
    np.testing.assert_allclose(obs[:, 5], 100.0 - starts.state[:, 3], atol=1e-4)
    np.testing.assert_allclose(obs[:, 7:], starts.control, rtol=1e-6)


def test_keys_are_those_that_the_evaluation_gives_its_policies():
    seen = []

    def act(key):
        key, now = jax.random.split(key)
        return key, now

    keys = evaluation_keys(64)
    for _ in range(4):
        keys, now = jax.vmap(act)(keys)
        seen.append(jax.random.key_data(now))
    steps = np.arange(64) % 4
    found = jax.random.key_data(benchmark.action_keys(steps))
    np.testing.assert_array_equal(found, np.stack(seen)[steps, np.arange(64)])


@pytest.mark.parametrize(
    ("safe", "called_safe", "taken", "cause"),
    [
        ([0, 0, 0], [1, 0, 0], 0, "coverage"),
        ([0, 0, 0], [0, 0, 0], 1, "coverage"),
        ([0, 1, 0], [1, 1, 0], 0, "called safe"),
        ([0, 1, 0], [0, 0, 0], 2, "called unsafe"),
        ([0, 1, 0], [0, 1, 0], 2, "extraction"),
        ([0, 1, 0], [0, 1, 0], 1, "tolerance"),
    ],
)
def test_causes_are_told_apart(safe, called_safe, taken, cause):
    assert benchmark.cause(np.array(safe, bool), np.array(called_safe, bool), taken) == cause


def test_candidates_are_judged_by_the_answer_key_and_by_the_critics():
    """At hot starts that can be saved: the safest action saves them, heating does not."""
    starts = evaluate.starts("startup", "hot")
    obs = benchmark.observations("startup", starts.state, starts.control)[~starts.doomed][:8]
    algorithm, states = benchmark.trained("startup", "default", "smoke")
    state = jax.tree.map(lambda x: x[0], states)
    keys = jax.random.split(jax.random.key(0), 8)
    params = scenario_params("startup")
    judged = benchmark.judge(algorithm.config, params, state, obs, keys)
    safe, called_safe, taken = (np.asarray(x) for x in judged)
    act = algorithm.policy(state)
    for n in range(8):
        seen = jnp.tile(state.normaliser.obs(obs[n])[None], (4, 1))
        inner = fisor.sample(algorithm.config, state, seen, keys[n])
        unit = algorithm.config.action_unit
        actions = fisor.from_unit(unit, inner, state.normaliser.action_std)
        np.testing.assert_allclose(actions[taken[n]], act(obs[n], keys[n]), atol=1e-5)
        _, q_safety = fisor.action_values(algorithm.config, state, seen, inner)
        np.testing.assert_array_equal(called_safe[n], q_safety <= 0.0)
        plant, controls = (jnp.asarray(x[~starts.doomed][n]) for x in starts[:2])
        margins = jax.jit(jax.vmap(viability.action_margin, (None, None, 0)))(
            plant, controls, actions
        )
        np.testing.assert_array_equal(safe[n], margins >= 0.0)
    assert safe.any() and not safe.all()


def test_sizes_that_mean_nothing_are_refused(tmp_path):
    args = benchmark.Args(only=("toys",), out=tmp_path, figures=tmp_path)
    for name in ("num_seeds", "num_states", "toy_updates"):
        with pytest.raises(SystemExit, match=r"= 0; allowed: 1 or more"):
            benchmark.main(dataclasses.replace(args, **{name: 0}))
    with pytest.raises(SystemExit, match=r"seeds = .*; allowed"):
        benchmark.main(dataclasses.replace(args, seeds=(8, 0)))
    with pytest.raises(SystemExit, match="add --scenarios startup"):
        benchmark.main(dataclasses.replace(args, preset="smoke"))
