"""Each condition changes one thing; its oracle knows the plant as it then is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from benchmarks import conditions, plan, references, robustness_tables, run, tables, worker
from polycstr_jax import controllers, evaluate, oracle
from polycstr_jax.env import check_params, initial_state, scenario_params

CONDITIONS = {condition.name: condition for condition in conditions.SUITE}
CHANGED = [condition for condition in conditions.SUITE if condition.changes_plant]


@pytest.mark.parametrize("condition", conditions.SUITE, ids=lambda c: c.name)
def test_a_condition_changes_one_thing_and_is_valid(condition):
    for scenario in polycstr_jax.SCENARIOS:
        nominal, changed = scenario_params(scenario), conditions.params(scenario, condition)
        check_params(changed)
        differing = {
            field.name
            for field in dataclasses.fields(nominal)
            if field.name != "reactor"
            and not np.array_equal(getattr(nominal, field.name), getattr(changed, field.name))
        }
        of_plant = {
            name for name, x in vars(nominal.reactor).items() if x != getattr(changed.reactor, name)
        }
        assert differing == set(condition.hooks) and of_plant == set(condition.factors)
        assert len(differing | of_plant) == (condition.name not in ("nominal", "wide"))


def test_levels_say_what_they_do():
    params = {name: conditions.params("grade_up", c) for name, c in CONDITIONS.items()}
    assert params["fouling 20"].reactor.heat_transfer == pytest.approx(400.0)
    assert params["kinetics -10"].reactor.propagation_rate == pytest.approx(3.6e4)
    assert params["delay 4"].action_delay == 4
    assert params["noise 0.3"].measurement_noise[4] == pytest.approx(0.3)
    np.testing.assert_allclose(params["feed 2"].disturbance_std, 2.0)
    steady, _ = polycstr_jax.reactor.steady_state(100.0, 350.0)
    relative = params["noise 1"].measurement_noise[[0, 1, 2, 3]] / (
        np.asarray(steady)[:4] * [1.0, 1.0, 1e6, 1.0]
    )
    np.testing.assert_allclose(relative, 0.04, atol=0.005)


def roll(condition, scenario, plans):
    starts = evaluate.Starts(*(x[: len(plans)] for x in evaluate.starts(scenario, "nominal")))
    return references.replay(starts, conditions.params(scenario, condition), np.float32(plans))


@pytest.mark.parametrize("condition", CHANGED, ids=lambda c: c.name)
def test_the_oracles_plans_earn_on_the_changed_plant_what_is_committed(condition):
    """Replayed with the noise of an evaluation: delays and disturbances to come included."""
    for scenario in polycstr_jax.SCENARIOS:
        of = conditions.references(scenario, condition)
        assert of.oracle_known.mean() > 0.9 and not of.unconstrained_known.any()
        assert (of.step < of.oracle)[of.oracle_known].all()
        plans = conditions.optimal_actions(scenario, condition, "oracle")
        found = roll(condition, scenario, plans)
        returns = found.reward.sum(axis=0, dtype=np.float64)
        np.testing.assert_allclose(returns, of.oracle, rtol=5e-4)
        assert found.peak_temperature[:, of.oracle_known].max() < 356.0
        # It is better than what is best on the nominal plant.
        nominal = evaluate.optimal_actions(scenario, "nominal", "oracle")
        other = roll(condition, scenario, nominal)
        highest = other.peak_temperature.max(axis=0)
        calm = of.oracle_known & (highest <= 356.0 - oracle.BACK_OFF)  # as the oracle
        beaten = of.oracle >= other.reward.sum(axis=0, dtype=np.float64) * (1.0 + 1e-4)
        assert beaten[calm].all()


def test_noise_leaves_the_plant_and_what_is_possible_as_it_is():
    of = conditions.references("startup", CONDITIONS["noise 1"])
    np.testing.assert_array_equal(of.oracle, evaluate.references("startup", "nominal").oracle)
    found = roll(
        CONDITIONS["noise 1"], "startup", evaluate.optimal_actions("startup", "nominal", "oracle")
    )
    np.testing.assert_allclose(found.reward.sum(axis=0), of.oracle, rtol=5e-4)
    shown, true = found.next_obs[..., 4], found.state[..., 4]
    assert (shown - true).std() == pytest.approx(1.0, rel=0.05)


def test_the_disturbances_foreseen_are_those_of_an_episode():
    condition = CONDITIONS["feed 4"]
    params = conditions.params("startup", condition)
    foreseen = np.asarray(references.realised_disturbances(params, 64))
    assert foreseen.shape == (64, 200, 2)
    np.testing.assert_allclose(foreseen.std(axis=(0, 1)), 4.0, rtol=0.2)
    # Step the environment with the keys of an evaluation.
    key = jax.random.split(jax.random.key(plan.EVALUATION_KEY), 64)[5]
    start = evaluate.starts("startup", "nominal")
    state = initial_state(start.state[5], start.control[5])
    step = jax.jit(lambda key, state: worker.ENV.step_env(key, state, jnp.ones((2,)) * 0.1, params))
    for k in range(5):
        _, state, *_ = step(jax.random.fold_in(key, k), state)
        np.testing.assert_allclose(state.disturbance, foreseen[5, k], rtol=1e-5)


def test_the_oracle_meets_disturbances_that_it_foresees_and_no_delay(double):
    starts, params = evaluate.starts("grade_up", "nominal"), scenario_params("grade_up")
    given = starts.state[:1], starts.control[:1], params
    cold = np.zeros((1, 12, 2))
    cold[..., 0] = -20.0  # K, of the feed
    calm = oracle.solve(*given, horizon=12, limit=np.inf)
    warmer = oracle.solve(*given, horizon=12, limit=np.inf, disturbances=cold)
    assert warmer.converged.all()
    assert warmer.action[0, :, 1].sum() > calm.action[0, :, 1].sum() + 0.5  # it heats
    with pytest.raises(ValueError, match=r"disturbances have shape \(1, 3, 2\); allowed: \(1, 12"):
        oracle.solve(*given, horizon=12, disturbances=cold[:, :3])
    with pytest.raises(ValueError, match="action_delay = 2; allowed: 0"):
        oracle.solve(*given[:2], params.replace(action_delay=2), horizon=12)


def test_a_longer_delay_makes_the_optimum_no_better():
    for scenario in polycstr_jax.SCENARIOS:
        all_of = [
            conditions.references(scenario, CONDITIONS[name])
            for name in ("nominal", "delay 1", "delay 2", "delay 4")
        ]
        known = np.all([of.oracle_known for of in all_of], axis=0)
        for shorter, longer in itertools.pairwise(all_of):
            assert (longer.oracle < shorter.oracle)[known].all()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Two rows of the suite at smoke size, and their tables."""
    out = tmp_path_factory.mktemp("robustness")
    run.main(run.Args("smoke", "robustness", out, only=("pi_tuned", "oracle", "bc")))
    tables.main(tables.Args("robustness", out))
    return out / "smoke"


def test_every_condition_has_a_row_and_the_oracle_closes_the_gap(suite):
    frame = pd.read_csv(suite / "robustness.csv")
    assert set(frame.condition) == set(CONDITIONS) and set(frame.method) == {
        "oracle",
        "pi_tuned",
        "bc",
    }
    best = frame[(frame.method == "oracle")].set_index("condition")
    np.testing.assert_allclose(best["gap closed, median"], 100.0, atol=0.2)
    assert (best["P(violation)"] == 0.0).all()
    pi = frame[frame.method == "pi_tuned"].set_index("condition")
    assert pi["gap closed, median"]["delay 4"] < pi["gap closed, median"]["nominal"]
    assert (pi["gap closed, median"] < 100.0).all()
    assert (
        not pd.read_csv(suite / "robustness/startup-pi/bc@default.csv")
        .columns.isin(["doomed_share"])
        .any()
    )


def test_tables_and_curves_are_written_and_repeat(suite):
    names = ("robustness.md", "robustness.csv")
    first = [(suite / name).read_bytes() for name in names]
    tables.main(tables.Args("robustness", suite.parent))
    assert first == [(suite / name).read_bytes() for name in names]
    text = first[0].decode()
    assert "startup: gap closed, median" in text and "K std of the feed temperature" in text
    assert (suite / "robustness.png").stat().st_size > 20_000


def test_curves_begin_with_the_nominal_plant(suite):
    found = robustness_tables.table(tables.read_results(suite / "robustness"), tables.METHOD_ORDER)
    assert set(found[found.family == "nominal"].level) == {0.0}
    assert found[found.condition == "kinetics -10"].level.unique() == [-10.0]
    grid = robustness_tables.wide(found, "startup", "P(violation)")
    assert list(grid.columns) == list(CONDITIONS) and grid.index[0] == "oracle"


def test_the_suite_has_every_offline_method_of_the_leaderboard_and_every_reference():
    cells = plan.plan_cells(plan.SUITES["robustness"].presets["cpu"], "robustness")
    methods = {cell.method for cell in cells}
    assert methods == {*plan.OF_PI, "fisor", *plan.REFERENCES} - {"unconstrained"}
    quick = plan.plan_cells(plan.PRESETS["cpu"])
    assert {c.method for c in quick} == methods | {"unconstrained"}
    assert {cell.variant for cell in cells} == {"default"}
    assert controllers.tuned_pi("all").kp.shape == (2,)
