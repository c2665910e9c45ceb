"""BCQ-Lag: the perturbation, what the multiplier moves, and problems with known answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from algos import actor_critic, bcql
from algos.common import MLP
from tests.made_up import noise, per_episode, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = bcql.Config(hidden=(8,), vae_hidden=(8,), batch_size=32, num_updates=100, action_unit="box")


def test_actions_are_moved_by_at_most_phi_and_stay_in_their_box():
    network, obs = MLP((8,), 2), noise().obs
    action = jnp.clip(noise().action, -0.99, 0.99)
    params = network.init(jax.random.key(0), jnp.concatenate([obs, action], axis=-1))
    params = jax.tree.map(lambda x: 50.0 * x, params)
    moved = bcql.perturbed(network, params, obs, action, 0.05)
    change = np.abs(np.asarray(moved - action))
    assert change.max() == pytest.approx(0.05, abs=1e-5) and np.abs(moved).max() <= 1.0
    assert (np.abs(np.asarray(moved)) == 1.0).any()  # at the box's edge by less
    np.testing.assert_array_equal(bcql.perturbed(network, params, obs, action, 0.0), action)


@functools.cache
def warm():
    """`run` of one update, jitted, and a state after some."""
    functions = bcql.make_train(SMALL)
    run = jax.jit(functions.run, static_argnums=3)
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    for _ in range(20):
        state, _ = run(state, noise(), jax.random.key(1), 1)
    return run, state


def test_the_multiplier_moves_the_perturbation_and_nothing_else():
    run, state = warm()
    heavier = state._replace(multiplier=state.multiplier._replace(integral=jnp.float32(5.0)))
    plain, other = (
        {
            name: np.asarray(ravel_pytree(x)[0])
            for name, x in run(s, noise(), jax.random.key(2), 1)[0].params._asdict().items()
        }
        for s in (state, heavier)
    )
    assert {name for name in plain if np.any(plain[name] != other[name])} == {"actor"}


# --- Problems with known answers ---

LEARNING = bcql.Config(
    hidden=(32, 32),
    vae_hidden=(32,),
    batch_size=128,
    num_updates=1_500,
    actor_rate=3e-3,
    critic_rate=3e-3,
    vae_rate=3e-3,
    target_rate=0.05,
    action_unit="box",
    perturbation=0.3,
    integral=0.03,
    proportional=1.0,
    timeouts="terminal",
)


def learned_action(limit, **changes):
    """Of data within +-0.1 in one situation, which pay 4 a and cost 2 a, over at once."""
    action = jax.random.uniform(jax.random.key(3), (2_000, 1), minval=-0.1, maxval=0.1)
    obs = jnp.ones((2_000, 3))
    data = transitions(obs, action, 2.0 * action[:, 0], obs, reward=4.0 * action[:, 0], ended=True)
    config = dataclasses.replace(LEARNING, cost_limit=per_episode(limit), **changes)
    functions = bcql.make_train(config)
    state, _ = jax.jit(functions.train)(jax.random.key(0), data)
    return float(functions.policy(state)(jnp.ones(3), jax.random.key(1))[0]), state


def test_the_policy_goes_as_far_as_it_may_and_no_further():
    """Decoded codes are near 0; the perturbation goes to its bound, or to where costs end it."""
    for bound in (0.3, 0.1):
        action, state = learned_action(limit=10.0, perturbation=bound)
        assert action == pytest.approx(bound, abs=0.06)
        assert float(state.multiplier.value) < 1e-3
    action, state = learned_action(limit=0.2)
    assert action == pytest.approx(0.1, abs=0.08)
    assert 1.0 < float(state.multiplier.value) < 4.0  # 2, where 4 a - lambda 2 a is flat


@pytest.mark.parametrize(
    ("timeouts", "value", "cost"),
    [("bootstrap", 1.0 + 9.0 * 2.0, 0.1 + 9.0 * 0.3), ("terminal", 1.0, 2.8)],
)
def test_values_of_a_chain_are_geometric_sums(timeouts, value, cost):
    """A is followed by B, B by itself for ever: rewards 1 and 2, costs 0.1 and 0.3."""
    action = jax.random.uniform(jax.random.key(3), (1_000, 1), minval=-1.0)
    begins = jnp.arange(1_000) % 2 == 0
    first, second = jnp.eye(2)
    data = transitions(
        jnp.where(begins[:, None], first[None], second[None]),
        action,
        jnp.where(begins, 0.1, 0.3),
        jnp.tile(second[None], (1_000, 1)),
        reward=jnp.where(begins, 1.0, 2.0),
    )._replace(truncated=jnp.ones(1_000, bool))
    functions = bcql.make_train(dataclasses.replace(LEARNING, discount=0.9, timeouts=timeouts))
    params = jax.jit(functions.train)(jax.random.key(0), data)[0].params
    network, at = MLP(LEARNING.hidden, 1), jnp.zeros((1, 1))
    for critic, expected in ((params.critic, value), (params.cost_critic, cost)):
        found = actor_critic.twin_values(network, critic, jnp.eye(2)[:1], at)
        np.testing.assert_allclose(found, expected, rtol=0.15)  # the max over actions leans up


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limit": -1.0}, "cost_limit = -1.0; allowed: 0 or more"),
        ({"integral": -1.0}, "integral = -1.0; allowed: 0 or more"),
        ({"perturbation": -0.1}, "perturbation = -0.1; allowed: 0 or more"),
        ({"num_samples": 0}, "num_samples = 0; allowed: 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        bcql.make_train(dataclasses.replace(bcql.Config(), **setting))
    assert message in str(error.value)
