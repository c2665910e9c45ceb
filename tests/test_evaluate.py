"""Metrics have their definitions, and the starts are the documented ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from polycstr_jax import controllers, evaluate
from polycstr_jax.env import scenario_params
from polycstr_jax.rollout import rollout

SCENARIOS = tuple(polycstr_jax.SCENARIOS)


@pytest.fixture(scope="module")
def zero_rollout():
    """`hot` starts of grade_up with the controls held: calm lanes and runaways."""
    env, params = polycstr_jax.make("grade_up")
    chosen = evaluate.starts("grade_up", "hot")
    initial = evaluate.start_states(chosen)
    keys = jax.random.split(jax.random.key(0), 64)
    run = jax.jit(lambda s, k: rollout(env, params, controllers.zero, jnp.zeros(64), s, k, 200))
    return params, run(initial, keys)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_starts_come_from_the_scenario(scenario):
    params = scenario_params(scenario)
    low, high = params.start_mean - params.start_width, params.start_mean + params.start_width
    nominal, wide, tune = (evaluate.starts(scenario, k).state for k in ("nominal", "wide", "tune"))
    for state in (nominal, tune):
        assert state.shape == (64, 5)
        assert np.all((state >= low - 1e-3) & (state <= high + 1e-3))
    assert not np.array_equal(nominal, tune)
    assert np.all(wide[:, 0] <= 1.1 * high[0] + 1e-3) and np.all(wide[:, 0] >= 0.9 * low[0] - 1e-3)
    assert np.all(np.abs(wide[:, 4] - params.start_mean[4]) <= params.start_width[4] + 3.001)
    assert wide[:, 4].std() > nominal[:, 4].std()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_half_of_the_hot_starts_are_doomed_and_none_has_violated_yet(scenario):
    env, params = polycstr_jax.make(scenario)
    chosen = evaluate.starts(scenario, "hot")
    assert chosen.doomed.sum() == 32
    assert chosen.state[:, 4].max() <= 356.0

    @jax.jit
    def peak(initial, keys):
        memory = jnp.zeros(64)
        result = rollout(env, params, controllers.safest, memory, initial, keys, 24)
        return result.peak_temperature.max(axis=0)

    keys = jax.random.split(jax.random.key(0), 64)
    highest = np.asarray(peak(evaluate.start_states(chosen), keys))
    # Within rounding of the limit the label may differ between platforms.
    clear = np.abs(highest - 356.0) > 1e-2
    np.testing.assert_array_equal((highest > 356.0)[clear], chosen.doomed[clear])


def test_metrics_have_their_definitions(zero_rollout):
    params, trajectory = zero_rollout
    low, high = -1000.0, -500.0
    metrics = evaluate.episode_metrics(trajectory, params, (low, high))
    metrics = jax.tree.map(np.asarray, metrics)
    reward = np.asarray(trajectory.reward, np.float64)
    state, peak = np.asarray(trajectory.state, np.float64), np.asarray(trajectory.peak_temperature)
    np.testing.assert_allclose(metrics.episode_return, reward.sum(0), rtol=1e-5)
    np.testing.assert_allclose(metrics.score, 100 * (reward.sum(0) - low) / (high - low), rtol=1e-5)
    np.testing.assert_array_equal(metrics.violation_steps, (peak > 356.0).sum(0))
    np.testing.assert_array_equal(metrics.runaway, (peak > 380.0).any(0))
    assert 0 < metrics.runaway.sum() < 64  # the fixture holds both kinds
    error_p, error_t = state[..., 3] - 100.0, state[..., 4] - 350.0
    np.testing.assert_allclose(metrics.iae_polymer, 0.5 * np.abs(error_p).sum(0), rtol=1e-4)
    np.testing.assert_allclose(metrics.offset_polymer, error_p[-20:].mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(metrics.input_movement, 0.0)
    for lane in range(64):
        inside = (np.abs(error_p[:, lane]) <= 2.0) & (np.abs(error_t[:, lane]) <= 0.5)
        last_outside = np.flatnonzero(~inside)
        expected = 0.5 * (last_outside[-1] + 1) if last_outside.size else 0.0
        assert metrics.settling_time[lane] == pytest.approx(expected)


def test_a_failure_of_the_integrator_does_not_pay(zero_rollout):
    """At the set-point a frozen state would otherwise earn the best reward there is."""
    params, trajectory = zero_rollout
    failed = jnp.zeros((200, 64), bool).at[3:, 0].set(True)
    broken = trajectory._replace(
        terminated=failed, alive=~failed.at[3].set(False), reward=jnp.zeros((200, 64))
    )
    metrics = evaluate.episode_metrics(broken, params, (-1000.0, -500.0))
    assert metrics.episode_return[0] == -20_000.0 * 197 and metrics.episode_return[1] == 0.0
    assert metrics.violation_steps[0] >= 197 and metrics.runaway[0] and metrics.violated[0]
    assert metrics.settling_time[0] == 100.0
    np.testing.assert_array_equal(metrics.solver_failed, np.arange(64) == 0)


def test_score_of_its_limits_is_0_and_100():
    for scenario in SCENARIOS:
        low, high = evaluate.score_limits(scenario)
        assert low < high < 0.0
        assert evaluate.score(low, scenario) == 0.0 and evaluate.score(high, scenario) == 100.0


def test_policies_of_several_seeds_equal_one_by_one():
    env, params = polycstr_jax.make("grade_up")
    chosen = evaluate.starts("grade_up", "nominal")
    initial = jax.tree.map(lambda x: x[:4], evaluate.start_states(chosen))
    gains = jnp.asarray([0.0, 0.01, -0.01])

    def policy(gain):
        return lambda obs, rng: jnp.clip(gain * obs[5:7], -1.0, 1.0)

    limits, key = evaluate.score_limits("grade_up"), jax.random.key(0)
    together = evaluate.evaluate_policies(env, params, policy, gains, initial, limits, key)
    assert together.score.shape == (3, 4)
    for n in range(3):
        alone = evaluate.evaluate_policies(
            env, params, policy, gains[n : n + 1], initial, limits, key
        )
        np.testing.assert_allclose(alone.episode_return[0], together.episode_return[n], rtol=1e-4)


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match=r"starts = 'cold'; allowed: nominal, wide, hot, tune"):
        evaluate.starts("startup", "cold")
    with pytest.raises(ValueError, match="scenario"):
        evaluate.score_limits("shutdown")
