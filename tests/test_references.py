"""The committed optima and tuned controllers are what they claim, and place every return."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from benchmarks import references, run, tables
from polycstr_jax import controllers, evaluate, oracle
from polycstr_jax.env import scenario_params

SCENARIOS = tuple(polycstr_jax.SCENARIOS)


@functools.cache
def metrics(method, scenario, kind="nominal"):
    """Metrics (64,) of a reference row."""
    controller, memory = run.reference(method, scenario, kind)
    initial = evaluate.start_states(evaluate.starts(scenario, kind))
    limits = evaluate.score_limits(scenario)
    return jax.device_get(
        evaluate.evaluate(
            run.ENV,
            scenario_params(scenario),
            controller,
            memory(0),
            initial,
            limits,
            jax.random.key(0),
        )
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_oracles_plans_keep_the_limit_and_earn_what_is_committed(scenario):
    found = metrics("oracle", scenario)
    committed = evaluate.references(scenario, "nominal")
    assert committed.known.all()
    np.testing.assert_allclose(found.episode_return, committed.oracle, rtol=5e-4)
    assert found.violation_steps.sum() == 0.0
    assert found.peak_temperature.max() <= 356.0 - 0.8 * oracle.BACK_OFF


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["nominal", "wide", "hot", "tune"])
def test_optima_are_ordered_and_doomed_starts_are_those_without_one(scenario, kind):
    step, best, free, known = evaluate.references(scenario, kind)
    assert (best[known] <= free[known] * (1.0 - 1e-6)).all()
    assert (step[known] < best[known]).all()
    np.testing.assert_array_equal(known, ~evaluate.starts(scenario, kind).doomed)


def test_the_limit_costs_what_is_documented_and_nothing_in_grade_down():
    price = {}
    for scenario in SCENARIOS:
        _, best, free, _ = evaluate.references(scenario, "nominal")
        price[scenario] = best.sum() / free.sum() - 1.0
    assert price["startup"] == pytest.approx(0.088, abs=0.005)  # a prototype's, in another code
    assert price["grade_up"] == pytest.approx(0.032, abs=0.005)
    assert price["grade_down"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_gap_is_closed_from_the_step_to_the_oracle(scenario):
    gap = evaluate.gap_closed(metrics("step", scenario).episode_return, scenario, "nominal")
    np.testing.assert_allclose(gap, 0.0, atol=0.2)
    gap = evaluate.gap_closed(metrics("oracle", scenario).episode_return, scenario, "nominal")
    np.testing.assert_allclose(gap, 100.0, atol=0.2)
    step, best, _, _ = evaluate.references(scenario, "hot")
    half = evaluate.gap_closed(np.stack([0.5 * (step + best)] * 2), scenario, "hot")
    doomed = evaluate.starts(scenario, "hot").doomed
    assert half.shape == (2, 64) and np.isnan(half[:, doomed]).all()
    np.testing.assert_allclose(half[:, ~doomed], 50.0)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_tuned_pi_is_better_than_the_best_safe_one_of_the_data(scenario):
    tuned, safe = metrics("pi_tuned", scenario), metrics("pi_safe", scenario)
    assert tuned.score.mean() > safe.score.mean()
    assert tuned.violated.mean() <= 0.05 and not tuned.runaway.any()
    assert not metrics("pi_tuned_all", scenario).runaway.any()


def test_the_cross_entropy_method_finds_a_known_optimum(monkeypatch):
    """Score -|theta - goal|^2 where Kp of the feed is below a bound; a violation beyond it."""
    goal = np.array([-6.0, -3.0, -14.0, -11.0, 1.5, 341.0])

    def scores(theta, *_):
        theta = np.asarray(theta)
        return -np.sum((theta - goal) ** 2, axis=1), (theta[:, 0] > -6.5).astype(float)

    monkeypatch.setattr(references, "pi_scores", scores)
    found = references.tune_pi(("grade_up",))
    assert found["training_violated"] == 0.0
    assert found["kp"][0] <= np.exp(-6.5)
    np.testing.assert_allclose(np.log(found["kp"][0]), -6.5, atol=0.05)
    np.testing.assert_allclose(found["bias"], goal[4:], atol=0.1)


def test_training_starts_are_no_evaluation_starts():
    for scenario in SCENARIOS:
        state, control = references.training_starts(scenario)
        assert state.shape == (256, 5) and control.shape == (256, 2)
        low, high = (
            scenario_params(scenario).start_mean + sign * scenario_params(scenario).start_width
            for sign in (-1.0, 1.0)
        )
        assert (state >= np.float32(low) - 1e-3).all() and (state <= np.float32(high) + 1e-3).all()
        for kind in evaluate.START_SETS:
            others = evaluate.starts(scenario, kind).state
            distance = np.abs(state[:, None] - others[None]).max(axis=2)
            assert distance.min() > 0.0


def test_a_plan_is_followed():
    plan = jnp.asarray([[0.1, 0.2], [0.3, -0.4]])
    memory = (plan, jnp.zeros((), int))
    first, memory = controllers.follow_plan(jnp.zeros((9,)), memory)
    second, _ = controllers.follow_plan(jnp.zeros((9,)), memory)
    np.testing.assert_array_equal(jnp.stack([first, second]), plan)


def test_a_row_that_beats_an_optimum_is_shouted_about():
    columns = dict.fromkeys(("commit", "jax", "hardware", "date"), "x")
    rows = pd.DataFrame([columns | {"solver_failed": False, "excess_over_oracle": 5e-4}])
    assert "BEATS" not in tables.provenance_line(rows, "quick")
    rows["excess_over_oracle"] = 2e-3
    assert "A ROW BEATS AN OPTIMUM" in tables.provenance_line(rows, "quick")
    assert "BEATS" not in tables.provenance_line(rows.drop(columns="excess_over_oracle"), "quick")


def test_savings_count_only_what_counts():
    returns, bounds = np.array([-90.0, -100.0, -50.0]), np.array([-100.0, -100.0, -100.0])
    assert run.saving(returns, bounds, np.array([True, True, False])) == pytest.approx(0.1)
    assert run.saving(returns, bounds, np.array([False, True, False])) == 0.0
    assert np.isnan(run.saving(returns, bounds, np.zeros(3, bool)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate.references("startup", "cold"), "starts = 'cold'; allowed: nominal"),
        (lambda: evaluate.references("shutdown", "hot"), "scenario = 'shutdown'; allowed"),
        (lambda: evaluate.optimal_actions("startup", "hot", "best"), "which = 'best'; allowed"),
        (lambda: controllers.tuned_pi("none"), "name = 'none'; allowed: .*startup"),
    ],
)
def test_bad_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
