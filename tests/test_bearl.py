"""BEAR-Lag: its mathematics, what its penalties move, and problems with known answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from jax.flatten_util import ravel_pytree

from algos import actor_critic, bearl
from algos.common import MLP
from tests.made_up import loop_data, noise, per_episode, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = bearl.Config(
    hidden=(8,), vae_hidden=(8,), batch_size=32, num_updates=100, action_unit="box"
)


# --- The mathematics ---


@pytest.mark.parametrize(
    ("kernel", "metric"), [("gaussian", "sqeuclidean"), ("laplacian", "cityblock")]
)
def test_the_discrepancy_is_its_double_sum(kernel, metric):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3, 2)), rng.normal(1.0, 2.0, size=(7, 3, 2))

    def mean(a, b):
        return np.exp(-scipy.spatial.distance.cdist(a, b, metric) / (2.0 * 3.0)).mean()

    found = bearl.discrepancy(kernel, 3.0, jnp.asarray(x), jnp.asarray(y))
    for n in range(3):
        a, b = x[:, n], y[:, n]
        expected = np.sqrt(mean(a, a) + mean(b, b) - 2.0 * mean(a, b) + 1e-6)
        assert float(found[n]) == pytest.approx(expected, rel=1e-3)


def test_the_discrepancy_of_two_gaussians_in_closed_form():
    """Of N(0, 1) and N(2, 1): the mean of k is sqrt(b / (b + 2)) exp(-d^2 / (2 (b + 2)))."""
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(k, (4_000, 1, 1)) for k in keys)
    found = float(bearl.discrepancy("gaussian", 3.0, x, y + 2.0)[0])
    same = np.sqrt(3.0 / 5.0)
    expected = np.sqrt(2.0 * same * (1.0 - np.exp(-4.0 / 10.0)))
    assert found == pytest.approx(expected, rel=0.03)
    assert float(bearl.discrepancy("gaussian", 3.0, x, x)[0]) < 2e-3


def test_targets_lean_to_the_least_head():
    assert float(actor_critic.soft_minimum(jnp.asarray([[2.0], [6.0]]))[0]) == 3.0


def test_the_multiplier_is_a_pid_controller_with_a_bound():
    gains, start = (0.1, 0.003, 0.001), actor_critic.Multiplier(*(jnp.zeros(()),) * 3)
    state, integral, before, found = start, 0.0, 0.0, []
    for error in (1.0, 3.0, -2.0, 0.5):
        state = actor_critic.multiply(gains, 2.0, state, jnp.asarray(error))
        integral = max(0.0, integral + 0.003 * error)
        expected = 0.1 * max(error, 0.0) + integral + 0.001 * max(error - before, 0.0)
        assert float(state.value) == pytest.approx(expected, rel=1e-5)
        before = error
        found.append(expected)
    assert found[0] == pytest.approx(0.104)
    for _ in range(3):
        state = actor_critic.multiply(gains, 2.0, state, jnp.asarray(1e4))
    assert float(state.value) == float(state.integral) == 2.0
    # Without a bound a gap that stays winds it up: 5 for 50,000 updates are 750.
    step = lambda _, s: actor_critic.multiply(gains, np.inf, s, jnp.asarray(5.0))  # noqa: E731
    wound = jax.lax.fori_loop(0, 50_000, step, start)
    assert float(wound.value) == pytest.approx(750.0, rel=0.01)


# --- What moves what ---


@functools.cache
def warm():
    """`run` of one update, and a state after some."""
    functions = bearl.make_train(SMALL)
    run = jax.jit(functions.run, static_argnums=3)
    state = functions.init(jax.random.key(0), noise())
    return run, run(state, noise(), jax.random.key(1), 20)[0]


def parts_after(state):
    params = warm()[0](state, noise(), jax.random.key(2), 1)[0].params
    return {name: np.asarray(ravel_pytree(x)[0]) for name, x in params._asdict().items()}


@pytest.mark.parametrize("penalty", ["cost", "discrepancy"])
def test_each_penalty_moves_the_actor_and_nothing_else(penalty):
    _, state = warm()
    plain = parts_after(state)
    if penalty == "cost":
        more = state.multiplier._replace(integral=jnp.float32(5.0))
        state = state._replace(multiplier=more)
    else:
        state = state._replace(log_dual=jnp.float32(3.0))
    heavier = parts_after(state)
    moved = {name for name in plain if np.any(plain[name] != heavier[name])}
    assert moved == {"actor"}


def test_the_weight_of_the_discrepancy_rises_while_it_is_above_its_limit():
    for limit, sign in ((0.0, 1.0), (10.0, -1.0)):
        config = dataclasses.replace(SMALL, mmd_limit=limit, dual_rate=0.01)
        functions = bearl.make_train(config)
        state = functions.init(jax.random.key(0), noise())
        after, metrics = functions.run(state, noise(), jax.random.key(1), 1)
        gap = float(metrics["discrepancy"]) - limit
        assert np.sign(gap) == sign
        np.testing.assert_allclose(after.log_dual, 0.01 * gap, rtol=1e-4)


# --- Problems with known answers ---

LEARNING = bearl.Config(
    hidden=(32, 32),
    vae_hidden=(32,),
    batch_size=128,
    num_updates=1_500,
    actor_rate=3e-3,
    critic_rate=3e-3,
    vae_rate=3e-3,
    dual_rate=1e-2,
    target_rate=0.05,
    action_unit="box",
    bandwidth=0.5,
    integral=0.03,
    timeouts="terminal",
)


def slope_data():
    """One situation, actions within +-0.5, which pay as much as they are great; above 0 they cost
    half as much. Over at once."""
    action = jax.random.uniform(jax.random.key(3), (2_000, 1), minval=-0.5, maxval=0.5)
    obs = jnp.ones((2_000, 3))
    cost = 2.0 * jnp.maximum(action[:, 0], 0.0)
    return transitions(obs, action, cost, obs, reward=4.0 * action[:, 0], ended=True)


@functools.cache
def on_the_slope(**changes):
    """The action learned, the state at the end, and metrics of another 100 updates."""
    functions = bearl.make_train(dataclasses.replace(LEARNING, **changes))
    state, _ = jax.jit(functions.train)(jax.random.key(0), slope_data())
    _, metrics = functions.run(state, slope_data(), jax.random.key(1), 100)
    return float(functions.policy(state)(jnp.ones(3), jax.random.key(1))[0]), state, metrics


def test_likeness_to_the_data_keeps_the_policy_among_them():
    free, _, _ = on_the_slope(cost_limit=per_episode(10.0), mmd_limit=10.0)
    assert free > 0.9  # nothing holds it: the critic goes on rising
    held = []
    for limit in (0.1, 0.4):
        action, state, metrics = on_the_slope(cost_limit=per_episode(10.0), mmd_limit=limit)
        assert float(metrics["discrepancy"]) == pytest.approx(limit, rel=0.3)
        assert float(state.log_dual) > 0.0
        held.append(action)
    assert held[0] < held[1] < free


@pytest.mark.parametrize(
    ("timeouts", "ended", "value", "cost"),
    [
        ("bootstrap", False, 10.0, 1.0),
        ("terminal", False, 1.0, 1.0),  # costs go on
        ("bootstrap", True, 1.0, 0.1),
    ],
)
def test_values_of_a_loop_are_geometric_sums(timeouts, ended, value, cost):
    config = dataclasses.replace(LEARNING, discount=0.9, timeouts=timeouts)
    functions = bearl.make_train(config)
    params = jax.jit(functions.train)(jax.random.key(0), loop_data(ended))[0].params
    network, obs, action = MLP(LEARNING.hidden, 1), jnp.ones((1, 3)), jnp.zeros((1, 1))
    for critic, expected in ((params.critic, value), (params.cost_critic, cost)):
        found = actor_critic.twin_values(network, critic, obs, action)
        np.testing.assert_allclose(found, expected, rtol=0.15)  # the max over actions leans up


def test_the_multiplier_holds_the_expected_cost_at_its_limit():
    """Without a bound on likeness: cost 2 a = 0.4, at a = 0.2."""
    action, state, _ = on_the_slope(
        cost_limit=per_episode(0.4), mmd_limit=10.0, proportional=1.0, num_updates=4_000
    )
    assert action == pytest.approx(0.2, abs=0.1)
    assert 1.0 < float(state.multiplier.value) < 4.0  # 2, where 4 a - lambda 2 a is flat


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limit": -1.0}, "cost_limit = -1.0; allowed: 0 or more"),
        ({"integral": -1.0}, "integral = -1.0; allowed: 0 or more"),
        ({"bandwidth": 0.0}, "bandwidth = 0.0; allowed: above 0"),
        ({"num_samples": 0}, "num_samples = 0; allowed: 1 or more"),
        ({"kernel": "flat"}, "kernel = 'flat'; allowed: gaussian, laplacian"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        bearl.make_train(dataclasses.replace(bearl.Config(), **setting))
    assert message in str(error.value)
