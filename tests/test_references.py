"""The committed optima and tuned controllers are what they claim, and place every return."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from benchmarks import conditions, plan, references, tables, worker
from benchmarks.conditions import Condition
from polycstr_jax import controllers, evaluate, oracle
from polycstr_jax.env import scenario_params

SCENARIOS = tuple(polycstr_jax.SCENARIOS)


@functools.cache
def metrics(method, scenario, kind="nominal"):
    """Metrics (64,) of a reference row."""
    controller, memory = worker.reference(method, scenario, Condition(kind, kind))
    initial = evaluate.start_states(evaluate.starts(scenario, kind))
    limits = evaluate.score_limits(scenario)
    return jax.device_get(
        evaluate.evaluate(
            worker.ENV,
            scenario_params(scenario),
            controller,
            memory(0),
            initial,
            limits,
            jax.random.key(0),
        )
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["nominal", "wide", "hot"])
def test_the_oracles_plans_keep_the_limit_and_earn_what_is_committed(scenario, kind):
    found = metrics("oracle", scenario, kind)
    committed = evaluate.references(scenario, kind)
    known = committed.oracle_known
    returns = found.episode_return[known]
    np.testing.assert_allclose(returns, committed.oracle[known], rtol=5e-4)
    assert found.violation_steps[known].sum() == 0.0
    if kind == "nominal":  # from hot ones there may be less room
        assert found.peak_temperature.max() <= 356.0 - 0.8 * oracle.BACK_OFF


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["nominal", "wide", "hot", "tune"])
def test_optima_are_ordered_and_doomed_starts_are_those_without_one(scenario, kind):
    step, best, free, known, free_known = evaluate.references(scenario, kind)
    both = known & free_known
    assert (best[both] <= free[both] * (1.0 - 1e-6)).all()
    assert (step[known] < best[known]).all() and (step[free_known] < free[free_known]).all()
    np.testing.assert_array_equal(known, ~evaluate.starts(scenario, kind).doomed)
    assert free_known.all()


def test_the_unconstrained_optimum_is_that_of_another_code():
    """Costs from the middle start that a prototype found, in another code, to 0.1 %."""
    for scenario, expected in zip(SCENARIOS, (57_710.0, 10_187.0, 8_034.0), strict=True):
        params = scenario_params(scenario)
        state, control = params.start_mean[None], params.initial_control[None]
        plan = oracle.solve(state, control, params, limit=np.inf)
        assert plan.converged.all()
        assert plan.cost[0] == pytest.approx(expected, rel=1e-3)


def test_guesses_lead_to_the_same_optimum():
    """As committed: three guesses, over all starts from which the limit can be kept."""
    summary = json.loads((references.PACKAGE / "oracle.json").read_text())["summary"]
    assert set(summary) == {f"{s} {k}" for s in SCENARIOS for k in evaluate.START_SETS}
    for name, found in summary.items():
        assert found["oracle"]["known"] == 64 - found["doomed"]
        assert found["unconstrained"]["known"] == 64
        for which in ("oracle", "unconstrained"):
            converged = np.array(found[which]["converged, of each guess"])[:3]
            assert (converged >= 0.9 * found[which]["known"]).all(), (name, which)
        assert found["oracle"]["largest relative spread over the guesses"] < 1e-5
        # Without a limit the valley is flatter.
        assert found["unconstrained"]["largest relative spread over the guesses"] < 1e-4


def test_the_cheapest_plan_that_keeps_the_limit_is_taken(monkeypatch):
    """Of three guesses; else the one that exceeds it least, a failed integration last."""
    nan, passes, begun = np.nan, [], []
    outcomes = [  # cost, excess, converged of 4 starts, for each guess, and once more
        ([10.0, 5.0, nan, 3.0], [-0.1, 0.2, nan, -0.1], [False, True, False, False]),
        ([12.0, 6.0, 8.0, 2.0], [-0.1, 0.3, 0.5, -0.1], [True, False, False, False]),
        ([13.0, 7.0, 7.0, 4.0], [-0.1, 0.4, 0.5, -0.1], [True, True, False, False]),
        ([nan, 6.0, 9.0, 1.9], [nan, 0.5, 0.6, -0.1], [False, True, False, True]),
    ]

    def solve(states, controls, params, guesses, **_):
        begun.append(guesses[:, 0, 0])
        chosen = states[:, 0].astype(int)
        passes.append(chosen)
        cost, excess, converged = (np.array(x)[chosen] for x in outcomes[len(passes) - 1])
        action = np.full((chosen.size, 200, 2), len(passes), float)
        return oracle.Plan(action, action, action, cost, excess, converged, cost)

    monkeypatch.setattr(references.oracle, "solve", solve)
    monkeypatch.setattr(references, "guesses", lambda *_: np.zeros((3, 4, 200, 2)))
    states = np.arange(4.0)[:, None] * np.ones(5)
    best = references.solve_all(states, np.ones((4, 2)), scenario_params("startup"))
    np.testing.assert_array_equal(best.known, [True, False, False, True])
    np.testing.assert_array_equal(best.cost, [12.0, 5.0, 7.0, 1.9])
    np.testing.assert_array_equal(best.action[:, 0, 0], [2, 1, 3, 4])  # of the same guess
    assert set(passes[3]) == {1, 2, 3}
    assert dict(zip(passes[3], begun[3], strict=True)) == {1: 1.0, 2: 3.0, 3: 2.0}  # the best
    assert best.spread[0] == pytest.approx(1.0 / 12.0) and np.isnan(best.spread[1:]).all()
    assert best.num_tried == [3, 4, 4, 3] and best.num_converged == [0, 1, 1, 1]

    passes.clear()
    outcomes[:] = [([1.0] * 4, [0.1] * 4, [False] * 4)] * 4
    others = np.array([True, False, False, False])
    best = references.solve_all(states, np.ones((4, 2)), scenario_params("startup"), others=others)
    assert [set(chosen) for chosen in passes] == [{0, 1, 2, 3}, {0}, {0}, {0}]
    assert not best.known.any() and best.num_tried == [4, 1, 1, 1]


def test_the_limit_costs_what_is_documented_and_nothing_in_grade_down():
    price = {}
    for scenario in SCENARIOS:
        _, best, free, *_ = evaluate.references(scenario, "nominal")
        price[scenario] = best.sum() / free.sum() - 1.0
    assert price["startup"] == pytest.approx(0.088, abs=0.005)  # a prototype's, in another code
    assert price["grade_up"] == pytest.approx(0.032, abs=0.005)
    assert price["grade_down"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_gap_is_closed_from_the_step_to_the_oracle(scenario):
    nominal, hot = (evaluate.references(scenario, kind) for kind in ("nominal", "hot"))
    gap = evaluate.gap_closed(metrics("step", scenario).episode_return, nominal)
    np.testing.assert_allclose(gap, 0.0, atol=0.1)
    gap = evaluate.gap_closed(metrics("oracle", scenario).episode_return, nominal)
    np.testing.assert_allclose(gap, 100.0, atol=0.1)
    half = evaluate.gap_closed(np.stack([0.5 * (hot.step + hot.oracle)] * 2), hot)
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
    small = {"excess_over_oracle": 5e-4, "excess_over_unconstrained": 5e-5}
    rows = pd.DataFrame([columns | {"solver_failed": False} | small])
    assert "BEATS" not in tables.provenance_line(rows, "quick")
    for column in ("excess_over_oracle", "excess_over_unconstrained"):
        assert "A ROW BEATS AN OPTIMUM" in tables.provenance_line(
            rows.assign(**{column: 20.0 * rows[column]}), "quick"
        )
    assert "BEATS" not in tables.provenance_line(rows.drop(columns="excess_over_oracle"), "quick")


def test_a_row_that_saves_more_than_the_optimum_is_found_from_doomed_starts_too():
    """Made-up episodes of cost 1 % below an optimum."""
    condition = Condition("hot", "hot")
    of = conditions.references("grade_up", condition)
    doomed = evaluate.starts("grade_up", "hot").doomed
    cell = plan.Cell("grade_up", "pi", "x", "default", {})

    def excess(returns, violated):
        zeros = np.zeros((1, 64))
        made = evaluate.EpisodeMetrics(**dict.fromkeys(evaluate.EpisodeMetrics._fields, zeros))
        made = made._replace(episode_return=returns[None], violated=np.full((1, 64), violated))
        rows = worker.to_rows(cell, condition, (made, None))
        return pd.DataFrame(rows).set_index("starts").filter(like="excess")

    found = excess(0.99 * of.unconstrained, True)
    assert found.excess_over_unconstrained.to_list() == pytest.approx([0.01, 0.01])
    assert found.excess_over_oracle.isna().all()  # all of them violate
    found = excess(0.99 * of.oracle, False)
    assert found.excess_over_oracle["hot"] == pytest.approx(0.01)
    assert np.isnan(found.excess_over_oracle["hot_doomed"])
    assert doomed.any() and (found.excess_over_unconstrained < 0.01 + 1e-4).all()


def test_savings_count_only_what_counts():
    returns, bounds = np.array([-90.0, -100.0, -50.0]), np.array([-100.0, -100.0, -100.0])
    assert worker.saving(returns, bounds, np.array([True, True, False])) == pytest.approx(0.1)
    assert worker.saving(returns, bounds, np.array([False, True, False])) == 0.0
    assert np.isnan(worker.saving(returns, bounds, np.zeros(3, bool)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate.references("startup", "cold"), "starts = 'cold'; allowed: nominal"),
        (lambda: evaluate.references("shutdown", "hot"), "scenario = 'shutdown'; allowed"),
        (lambda: evaluate.optimal_actions("startup", "hot", "best"), "which = 'best'; allowed"),
        (lambda: evaluate.optimal_actions("startup", "cold", "oracle"), "starts = 'cold'; allowed"),
        (lambda: controllers.tuned_pi("none"), "name = 'none'; allowed: .*startup"),
    ],
)
def test_bad_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
