"""CPQ: its mathematics, what its penalty moves, and problems with known answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.flatten_util import ravel_pytree

from algos import actor_critic, cpq
from algos.common import MLP, discounted_limit
from tests.made_up import loop_data, noise, per_episode, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = cpq.Config(
    hidden=(8,),
    vae_hidden=(8,),
    batch_size=32,
    num_updates=100,
    action_unit="box",
    masked_targets=True,
    way_back=False,
    ood_reference="policy",
    penalise_satisfied=True,
)


# --- The mathematics ---


def test_the_limit_is_discounted_and_spread_evenly():
    table = {100: 6.34, 200: 4.33, 300: 3.17, 500: 1.99, 1000: 1.00}  # of 10, at 0.99
    for horizon, expected in table.items():
        assert discounted_limit(10.0, 0.99, horizon) == pytest.approx(expected, abs=5e-3)


def test_the_density_of_a_squashed_sample_is_that_of_the_change_of_variable():
    mean, log_std = jnp.asarray([[0.3, -1.2]]), jnp.asarray([[-0.5, 0.4]])
    action, log_density = actor_critic.squashed_sample(mean, log_std, jax.random.key(0))
    u = np.arctanh(np.asarray(action, np.float64))
    expected = scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log1p(-(action**2))
    np.testing.assert_allclose(log_density, expected.sum(axis=1), rtol=1e-4)


def test_squashed_samples_are_distributed_as_their_density_says():
    mean, std = 0.4, 0.8
    keys = jax.random.split(jax.random.key(1), 20_000)
    one = lambda key: actor_critic.squashed_sample(  # noqa: E731
        jnp.full((1, 1), mean), jnp.full((1, 1), np.log(std)), key
    )
    action = np.asarray(jax.vmap(one)(keys)[0]).ravel()
    found = scipy.stats.kstest(action, lambda a: scipy.stats.norm.cdf(np.arctanh(a), mean, std))
    assert found.pvalue > 1e-3


def test_densities_of_saturated_samples_are_finite():
    for mean in (-30.0, 30.0):
        action, density = actor_critic.squashed_sample(
            jnp.full((1, 2), mean), jnp.zeros((1, 2)), jax.random.key(0)
        )
        assert np.isfinite(density).all() and np.abs(action).max() == 1.0


def test_the_divergence_from_the_prior_is_its_integral():
    def density(z, mean, std):
        p = scipy.stats.norm.pdf(z, mean, std)
        ratio = scipy.stats.norm.logpdf(z, mean, std) - scipy.stats.norm.logpdf(z)
        return p * ratio

    mean, std = np.array([0.7, -1.0]), np.array([0.5, 1.6])
    each = [
        scipy.integrate.quad(density, -12.0, 12.0, args=(m, s))[0]
        for m, s in zip(mean, std, strict=True)
    ]
    found = actor_critic.kl_to_prior(jnp.asarray(mean), jnp.log(jnp.asarray(std)))
    assert float(found) == pytest.approx(np.mean(each), rel=1e-5)
    assert float(actor_critic.kl_to_prior(jnp.zeros(4), jnp.zeros(4))) == 0.0


def test_the_mean_is_over_the_improbable_quarter():
    chosen = jnp.arange(100) >= 75
    cost = jnp.where(chosen, 8.0, -1.0)
    assert float(cpq.mean_where(chosen, cost)) == pytest.approx(8.0)
    # The public implementation divides by the number of all.
    assert float(cpq.mean_where(chosen, cost, released=True)) == pytest.approx(2.0)
    assert float(cpq.mean_where(jnp.zeros(100, bool), cost)) == 0.0


# --- What moves what ---


@functools.cache
def warm(config):
    """`run` of one update, jitted, and a state after some."""
    functions = cpq.make_train(config)
    run = jax.jit(functions.run, static_argnums=3)
    state = start(functions)
    for _ in range(20):
        state, _ = run(state, noise(), jax.random.key(1), 1)
    return run, state


def start(functions):
    return jax.jit(functions.init)(jax.random.key(0), noise())


def parts_after(run, state):
    params = run(state, noise(), jax.random.key(2), 1)[0].params
    return {name: np.asarray(ravel_pytree(x)[0]) for name, x in params._asdict().items()}


def moved_by_the_dual(config, change=lambda state: state):
    """Parts of a state that an update moves otherwise when the multiplier is another."""
    run, state = warm(config)
    state = change(state)
    plain, heavier = (parts_after(run, state._replace(log_dual=jnp.float32(x))) for x in (0.0, 3.0))
    return {name for name in plain if np.any(plain[name] != heavier[name])}


def raised(state):
    """With a cost critic that finds everything costly."""
    critic = jax.tree.map(lambda x: x + 1.0, state.params.cost_critic)
    return state._replace(params=state.params._replace(cost_critic=critic))


def test_the_penalty_moves_the_cost_critic_alone_and_as_released_nothing():
    config = dataclasses.replace(SMALL, cost_limit=1e3)  # the actor is allowed everything
    assert moved_by_the_dual(config) == {"cost_critic"}
    assert moved_by_the_dual(dataclasses.replace(config, released_penalty=True)) == set()


def test_the_penalty_ends_where_improbable_actions_are_costly_enough():
    for limit, changes in ((1e3, {"cost_critic"}), (0.0, set())):
        config = dataclasses.replace(SMALL, cost_limit=limit, penalise_satisfied=False)
        assert moved_by_the_dual(config, raised) == changes
    # The paper's goes on; at this limit the actor is allowed nothing.
    config = dataclasses.replace(SMALL, cost_limit=0.0)
    assert moved_by_the_dual(config, raised) == {"cost_critic"}


def test_the_penalty_raises_the_cost_of_improbable_actions():
    config = dataclasses.replace(SMALL, critic_rate=1e-2)
    functions = cpq.make_train(config)
    ends = {}
    for log_dual in (-5.0, 3.0):
        state = start(functions)
        state = state._replace(log_dual=jnp.asarray(log_dual))
        end, _ = jax.jit(functions.run, static_argnums=3)(state, noise(), jax.random.key(1), 100)
        obs = noise().obs
        far = jnp.full((400, 2), 0.99)
        values = actor_critic.twin_values(MLP(config.hidden, 1), end.params.cost_critic, obs, far)
        ends[log_dual] = float(values.mean())
    assert ends[3.0] > ends[-5.0] + 1.0


def test_the_multiplier_rises_while_improbable_actions_look_too_cheap():
    for limit, sign in ((200.0, 1.0), (0.0, -1.0)):
        config = dataclasses.replace(SMALL, cost_limit=limit, dual_rate=0.01)
        run, state = warm(config)
        # All costs are far below 1.1 x 200, discounted; and above 0 once they are raised.
        state = raised(state) if sign < 0 else state
        state = state._replace(log_dual=jnp.zeros(()))
        after, metrics = run(state, noise(), jax.random.key(3), 1)
        assert np.sign(after.log_dual) == sign
        np.testing.assert_allclose(after.log_dual, -0.01 * metrics["ood_gap"], rtol=1e-5)


def test_the_multiplier_stays_in_its_range():
    run, state = warm(dataclasses.replace(SMALL, cost_limit=1e6, dual_rate=1.0))
    after, _ = run(state, noise(), jax.random.key(3), 3)
    assert float(after.log_dual) == 5.0


@pytest.mark.parametrize("limit", [0.0, 1e3])
def test_an_actor_that_may_do_nothing_learns_nothing(limit):
    """All actions beyond the limit: no gradient; all within it: there is one."""
    config = dataclasses.replace(SMALL, cost_limit=limit, cosine_decay=False)
    functions = cpq.make_train(config)
    state = start(functions)
    if limit == 0.0:  # costs of about 10 for everything
        bias = jax.tree.map(lambda x: x, state.params.cost_critic)
        bias["params"]["Dense_1"]["bias"] = bias["params"]["Dense_1"]["bias"] + 10.0
        state = state._replace(params=state.params._replace(cost_critic=bias))
    after, metrics = functions.run(state, noise(), jax.random.key(1), 1)
    changed = np.any(
        np.asarray(ravel_pytree(after.params.actor)[0] != ravel_pytree(state.params.actor)[0])
    )
    assert float(metrics["allowed"]) == (1.0 if limit else 0.0)
    assert changed == bool(limit)


def test_too_costly_actions_descend_their_cost_and_the_allowed_ascend_their_value():
    """The way back: of two copies of a state, the one called too costly asks the cost critic."""
    for limit, asked in ((0.0, "cost_critic"), (1e3, "critic")):
        run, state = warm(dataclasses.replace(SMALL, cost_limit=limit, way_back=True))
        state = raised(state)
        plain = parts_after(run, state)["actor"]
        for part in ("critic", "cost_critic"):
            # Turned round: its slopes have the other sign, its outputs are raised to stay positive.
            critic = jax.tree.map(lambda x: x, getattr(state.params, part))
            last = critic["params"]["Dense_1"]
            critic["params"]["Dense_1"] = {"kernel": -last["kernel"], "bias": last["bias"] + 50.0}
            other = state._replace(params=state.params._replace(**{part: critic}))
            moved = parts_after(run, other)["actor"]
            assert np.any(plain != moved) == (part == asked), (limit, part)


# --- Problems with known answers ---

LEARNING = cpq.Config(
    hidden=(32, 32),
    vae_hidden=(32,),
    batch_size=128,
    num_updates=1_500,
    actor_rate=3e-3,
    critic_rate=3e-3,
    target_rate=0.05,
    dual_rate=1e-2,
    action_unit="box",
    timeouts="terminal",
)


def slope_data():
    """One situation, actions within +-0.5, which pay as much as they are great; above 0.2 they
    cost 1. Over at once."""
    action = jax.random.uniform(jax.random.key(3), (2_000, 1), minval=-0.5, maxval=0.5)
    obs = jnp.ones((2_000, 3))
    cost = action[:, 0] > 0.2
    return transitions(obs, action, cost, obs, reward=4.0 * action[:, 0], ended=True)


@functools.cache
def on_the_slope(**changes):
    """The action learned, and the state at the end."""
    functions = cpq.make_train(dataclasses.replace(LEARNING, **changes))
    state = jax.jit(functions.train)(jax.random.key(0), slope_data())[0]
    return float(functions.policy(state)(jnp.ones(3), jax.random.key(1))[0]), state


def test_the_code_of_an_action_that_is_not_in_the_data_is_improbable():
    """At the public implementation's weight of 0.5 all codes are the prior."""
    for weight, says_something in ((0.02, True), (0.5, False)):
        _, state = on_the_slope(kl_weight=weight)
        actions, obs = jnp.asarray([[0.0], [0.9], [-0.9]]), jnp.ones((3, 3))
        network = actor_critic.VAE(LEARNING.vae_hidden, 1)
        code = network.apply(state.params.vae, obs, actions, method=actor_critic.VAE.encode)
        within, above, below = actor_critic.kl_to_prior(*code)
        assert (min(above, below) > within + 0.5) == says_something


def test_the_best_action_within_the_limit_is_taken():
    """0.2 is the best that costs nothing."""
    assert 0.05 < on_the_slope(cost_limit=per_episode(0.5))[0] < 0.4


@pytest.mark.parametrize(
    ("reference", "quantile", "least", "most"),
    [("data", 0.95, 0.0, 0.1), ("policy", 0.75, 0.2, 0.3)],
)
def test_a_policy_among_the_data_is_improbable_by_its_own_quantile_alone(
    reference, quantile, least, most
):
    changes = {"cost_limit": per_episode(0.5), "ood_reference": reference, "ood_quantile": quantile}
    _, state = on_the_slope(**changes)
    functions = cpq.make_train(dataclasses.replace(LEARNING, **changes))
    _, metrics = functions.run(state, slope_data(), jax.random.key(2), 10)
    assert least <= float(metrics["improbable"]) <= most


def test_improbable_actions_look_costly_but_as_released():
    limit = per_episode(0.9)
    for released in (False, True):
        _, state = on_the_slope(cost_limit=limit, released_penalty=released, ood_scale=1.5)
        far = jnp.full((1, 1), 0.95)
        network = MLP(LEARNING.hidden, 1)
        cost = actor_critic.twin_values(network, state.params.cost_critic, jnp.ones((1, 3)), far)
        assert (float(cost.mean()) > 1.35) != released  # 1.5 x 0.9


@pytest.mark.parametrize(
    ("limit", "masked", "timeouts", "ended", "value", "cost"),
    [
        (2.0, False, "bootstrap", False, 10.0, 1.0),
        (2.0, True, "bootstrap", False, 10.0, 1.0),
        (0.5, True, "bootstrap", False, 1.0, 1.0),  # the future is too costly: it does not count
        (0.5, False, "bootstrap", False, 10.0, 1.0),
        (2.0, False, "terminal", False, 1.0, 1.0),  # costs go on
        (2.0, False, "bootstrap", True, 1.0, 0.1),
    ],
)
def test_values_of_a_loop_are_geometric_sums(limit, masked, timeouts, ended, value, cost):
    config = dataclasses.replace(
        LEARNING,
        discount=0.9,
        masked_targets=masked,
        timeouts=timeouts,
        ood_scale=0.0,
        penalise_satisfied=False,
    )
    scale = discounted_limit(1.0, 0.9, 200)
    config = dataclasses.replace(config, cost_limit=limit / scale)
    functions = cpq.make_train(config)
    params = jax.jit(functions.train)(jax.random.key(0), loop_data(ended))[0].params
    network, obs, action = MLP(LEARNING.hidden, 1), jnp.ones((1, 3)), jnp.zeros((1, 1))
    for critic, expected in ((params.critic, value), (params.cost_critic, cost)):
        found = actor_critic.twin_values(network, critic, obs, action)
        np.testing.assert_allclose(found, expected, rtol=0.1)


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limit": -1.0}, "cost_limit = -1.0; allowed: 0 or more"),
        ({"ood_quantile": 1.0}, "ood_quantile = 1.0; allowed: 0 or more, below 1"),
        ({"num_ood_samples": 0}, "num_ood_samples = 0; allowed: 1 or more"),
        ({"cost_target": "worst"}, "cost_target = 'worst'; allowed: min, mean, max"),
        ({"actor_rate": 0.0}, "actor_rate = 0.0; allowed: above 0"),
        ({"num_updates": 0}, "num_updates = 0; allowed: 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        cpq.make_train(dataclasses.replace(cpq.Config(), **setting))
    assert message in str(error.value)
