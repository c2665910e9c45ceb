"""`benchmarks.fisor`: what it counts, on made-up policies, and that it runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import fisor
from benchmarks import fisor as benchmark
from polycstr_jax import evaluate
from polycstr_jax.controllers import SAFEST


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
        patch.setattr(benchmark, "TOY_SETTINGS", {"as on the reactor": {}})
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
        assert row["coverage"] + row["region"] + row["extraction"] == row["violating"]
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


@pytest.mark.parametrize("cause", ["coverage", "region", "extraction"])
def test_causes_are_told_apart(cause, monkeypatch):
    """Hot starts; a policy that heats. What it could have done, and believes, is made up."""
    heating, safest = jnp.asarray([1.0, 1.0]), jnp.asarray(SAFEST, jnp.float32)
    config = dataclasses.replace(fisor.PRESETS["default"], action_unit="box")
    state = benchmark.trained("startup", "default", "smoke")[1]
    state = jax.tree.map(lambda x: x[0], state)

    class Heating:
        def __init__(self):
            self.config = config
            self.policy = lambda state: lambda obs, rng: heating

    def sample(config, state, obs, rng):
        # Nothing but heating is sampled, or the safest action, too.
        first = heating if cause == "coverage" else safest
        return jnp.tile(heating[None], (obs.shape[0], 1)).at[0].set(first)

    def action_values(config, state, obs, action):
        # The safest action is called safe; heating is too where the region is wrong.
        is_safest = (action == safest[None]).all(axis=1)
        called = is_safest | (cause == "region")
        return jnp.zeros(len(action)), jnp.where(called, -1.0, 1.0)

    monkeypatch.setattr(fisor, "sample", sample)
    monkeypatch.setattr(fisor, "action_values", action_values)
    jax.clear_caches()  # `judge` was compiled with the real ones
    counts = benchmark.causes_of(Heating(), state, "startup", "hot")
    jax.clear_caches()
    assert counts["episodes"] == 32 and counts["violating"] > 25
    assert counts[cause] >= 0.9 * counts["violating"]


def test_sizes_that_mean_nothing_are_refused(tmp_path):
    args = benchmark.Args(only=("toys",), out=tmp_path, figures=tmp_path)
    for name in ("num_seeds", "num_states", "toy_updates"):
        with pytest.raises(SystemExit, match=r"= 0; allowed: 1 or more"):
            benchmark.main(dataclasses.replace(args, **{name: 0}))
