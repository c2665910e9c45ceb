"""Implicit Q-learning: its losses, where their gradients go, and problems with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree

from algos import bc, iql
from algos.common import MLP
from polycstr_jax.data import Normaliser, TrainingData

pytestmark = pytest.mark.usefixtures("quick_to_compile")

EXPECTILES = [0.1, 0.5, 0.7, 0.9]
ACTION_MEAN, ACTION_STD = np.asarray([0.2, -0.1]), np.asarray([0.4, 0.7])
PARTS = ["policy", "log_std", "value", "critic", "target_critic"]


def transitions(obs, action, reward, next_obs, terminated, truncated=False) -> TrainingData:
    """A data set of standardised observations; flags (N,) or one for all."""
    size = obs.shape[0]
    return TrainingData(
        obs=obs,
        action=action,
        reward=reward,
        cost=jnp.zeros(size),
        constraint=jnp.zeros(size),
        next_obs=next_obs,
        terminated=jnp.broadcast_to(jnp.asarray(terminated), (size,)),
        truncated=jnp.broadcast_to(jnp.asarray(truncated), (size,)),
        tracking_cost=jnp.zeros(size),
        normaliser=Normaliser(
            obs_mean=jnp.zeros(9),
            obs_std=jnp.ones(9),
            action_mean=jnp.asarray(ACTION_MEAN),
            action_std=jnp.asarray(ACTION_STD),
            action_low=jnp.asarray([-1.0, -0.7]),
            action_high=jnp.asarray([0.8, 1.0]),
            reward_std=jnp.ones(()),
        ),
    )


def noise(terminated=False, truncated=False) -> TrainingData:
    """Transitions without meaning."""
    keys = jax.random.split(jax.random.key(0), 4)
    return transitions(
        obs=jax.random.normal(keys[0], (64, 9)),
        action=jnp.tanh(jax.random.normal(keys[1], (64, 2))),
        reward=jax.random.normal(keys[2], (64,)),
        next_obs=jax.random.normal(keys[3], (64, 9)),
        terminated=terminated,
        truncated=truncated,
    )


def same_bytes(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    )


# --- Losses ---


@pytest.mark.parametrize("expectile", EXPECTILES)
def test_expectile_loss_weighs_what_lies_above_against_what_lies_below(expectile):
    loss = iql.expectile_loss(jnp.asarray([3.0, -1.0, 0.0]), expectile)
    np.testing.assert_allclose(loss, (9.0 * expectile + 1.0 * (1.0 - expectile)) / 3.0, rtol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("expectile", EXPECTILES)
def test_expectile_loss_is_least_at_the_expectile(expectile):
    sample = np.random.default_rng(0).exponential(size=200)  # skewed: the mean is not the median

    def loss(value):
        return float(iql.expectile_loss(sample - value, expectile))

    least = scipy.optimize.minimize_scalar(loss, bounds=(0.0, sample.max()), method="bounded").x
    assert least == pytest.approx(scipy.stats.expectile(sample, expectile), abs=1e-4)
    if expectile == 0.5:
        assert least == pytest.approx(sample.mean(), abs=1e-4)
    else:
        assert (least > sample.mean() + 0.1) == (expectile > 0.5)


def test_advantage_weight_is_the_exponential_up_to_its_limit():
    advantage = jnp.asarray([-2.0, 0.0, 0.5, 1.5, 1.6])
    weight = iql.advantage_weight(advantage, 3.0, 100.0)
    expected = [np.exp(-6.0), 1.0, np.exp(1.5), np.exp(4.5), 100.0]  # exp(4.8) is above 100
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_advantage_weight_stays_finite_at_absurd_advantages():
    advantage = jnp.asarray([-1e30, -1e3, 1e3, 1e30, jnp.inf])
    weight = iql.advantage_weight(advantage, 10.0, 100.0)
    np.testing.assert_allclose(weight, [0.0, 0.0, 100.0, 100.0, 100.0], rtol=1e-5)
    slope = jax.vmap(jax.grad(lambda a: iql.advantage_weight(a, 10.0, 100.0)))(advantage)
    np.testing.assert_array_equal(slope, 0.0)


def test_negative_log_likelihood_is_the_normal_distributions():
    rng = np.random.default_rng(1)
    mean, action = rng.normal(size=(2, 50, 2)).astype(np.float32)
    for log_std in ([0.0, 0.0], [-1.3, 0.7], [-9.0, 5.0]):  # the last: held to [-5, 2]
        std = np.exp(np.clip(log_std, -5.0, 2.0))
        expected = -scipy.stats.norm.logpdf(action, mean, std).sum(axis=1)
        computed = iql.negative_log_likelihood(mean, jnp.asarray(log_std), action)
        np.testing.assert_allclose(computed, expected, rtol=2e-5)


# --- What an update moves, and what moves it ---


@pytest.fixture(scope="module")
def warm():
    """`run` of one update, compiled, and a state after some: Adam no longer takes mere signs."""
    functions = iql.make_train(iql.Config(hidden=(8,), batch_size=16, num_updates=100))
    run = jax.jit(functions.run, static_argnums=3)
    state, _ = run(functions.init(jax.random.key(0), noise()), noise(), jax.random.key(1), 10)
    return run, state


def part(state, name):
    return state.target_critic if name == "target_critic" else getattr(state.params, name)


def with_part_moved(state, name):
    moved = jax.tree.map(lambda x: x + 0.1, part(state, name))
    if name == "target_critic":
        return state._replace(target_critic=moved)
    return state._replace(params=state.params._replace(**{name: moved}))


def test_one_update_moves_everything_that_is_optimised():
    functions = iql.make_train(iql.Config(hidden=(8,), batch_size=16, num_updates=100))
    start = functions.init(jax.random.key(0), noise())
    end, _ = jax.jit(functions.run, static_argnums=3)(start, noise(), jax.random.key(1), 1)
    for name in PARTS:
        assert not same_bytes(part(start, name), part(end, name)), name


@pytest.mark.parametrize(
    ("learner", "teachers"),
    [
        ("critic", {"critic", "value"}),  # the policy's loss would add policy, log_std, target
        ("value", {"value", "target_critic"}),  # the policy's loss would add policy and log_std
        ("policy", {"policy", "log_std", "value", "target_critic"}),
        ("log_std", {"policy", "log_std", "value", "target_critic"}),
    ],
)
def test_each_part_learns_from_its_own_loss_alone(warm, learner, teachers):
    run, state = warm

    def step(start):
        after, _ = run(start, noise(), jax.random.key(2), 1)
        flat = [ravel_pytree(part(x, learner))[0] for x in (start, after)]
        return np.asarray(flat[1] - flat[0]), np.asarray(flat[1])

    plain, end = step(state)
    for name in PARTS:
        other, other_end = step(with_part_moved(state, name))
        if name in teachers:
            assert np.abs(other - plain).max() > 1e-3 * np.abs(plain).max(), name
        else:
            np.testing.assert_array_equal(end, other_end, name)


@pytest.mark.parametrize("rate", [0.005, 0.3, 1.0])
def test_the_target_critics_move_by_their_rate(rate):
    config = iql.Config(hidden=(8,), batch_size=16, num_updates=10, target_rate=rate)
    functions = iql.make_train(config)
    before = with_part_moved(functions.init(jax.random.key(0), noise()), "target_critic")
    after, _ = jax.jit(functions.run, static_argnums=3)(before, noise(), jax.random.key(1), 1)
    jax.tree.map(
        lambda old, new, critic: np.testing.assert_allclose(
            new, (1.0 - rate) * old + rate * critic, atol=1e-6
        ),
        before.target_critic,
        after.target_critic,
        after.params.critic,
    )


# --- The losses of an update, and bootstrapping ---


def losses(data, discount=0.9, part_to_move="policy"):
    """Metrics of the first update, and the state before it, one part of it moved."""
    config = iql.Config(hidden=(8,), batch_size=16, num_updates=10, discount=discount)
    functions = iql.make_train(config)
    start = with_part_moved(functions.init(jax.random.key(0), data), part_to_move)
    return start, functions.run(start, data, jax.random.key(1), 1)[1]


def by_hand(start, one, bootstraps):
    """The three losses at a single transition, from the equations; NumPy."""
    network, policy = MLP((8,), 1), MLP((8,), 2)
    action = (np.asarray(one.action) - ACTION_MEAN) / ACTION_STD
    inputs = jnp.concatenate([one.obs, action], axis=-1)
    q, target_q = (
        np.asarray(jax.vmap(lambda p: network.apply(p, inputs)[0, 0])(params))
        for params in (start.params.critic, start.target_critic)
    )
    value, next_value = (
        float(network.apply(start.params.value, obs)[0, 0]) for obs in (one.obs, one.next_obs)
    )
    assert abs(target_q[0] - target_q[1]) > 0.01 and abs(next_value) > 0.01
    difference = target_q.min() - value
    value_loss = (0.9 if difference > 0.0 else 0.1) * difference**2
    backup = float(one.reward[0]) + (0.9 * next_value if bootstraps else 0.0)
    critic_loss = np.sum((backup - q) ** 2)
    weight = min(np.exp(3.0 * difference), 100.0)
    mean, std = policy.apply(start.params.policy, one.obs)[0], np.exp(start.params.log_std)
    policy_loss = -weight * scipy.stats.norm.logpdf(action[0], mean, std).sum()
    return {"value_loss": value_loss, "critic_loss": critic_loss, "policy_loss": policy_loss}


@pytest.mark.parametrize(
    ("terminated", "truncated", "bootstraps"),
    [(False, False, True), (False, True, True), (True, False, False), (True, True, False)],
)
def test_losses_are_the_equations_with_time_outs_but_not_terminations_bootstrapped(
    terminated, truncated, bootstraps
):
    one = noise(terminated, truncated).transitions(lambda x: x[:1])  # every batch is this one
    start, metrics = losses(one, part_to_move="target_critic")
    for name, expected in by_hand(start, one, bootstraps).items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4, err_msg=name)


def test_after_a_termination_nothing_counts():
    ended = noise(terminated=True)
    plain, far = (losses(d)[1] for d in (ended, ended._replace(next_obs=ended.next_obs + 3.0)))
    assert same_bytes(plain, far)
    assert same_bytes(plain, losses(ended, discount=0.1)[1])


def test_after_a_time_out_the_next_observation_and_the_discount_count():
    cut = noise(truncated=True)
    plain = losses(cut)[1]["critic_loss"]
    assert plain != losses(cut._replace(next_obs=cut.next_obs + 3.0))[1]["critic_loss"]
    assert plain != losses(cut, discount=0.1)[1]["critic_loss"]


# --- Problems with known answers ---


@pytest.mark.parametrize("track", ["default", "published"])
def test_iql_takes_the_better_of_two_habits_where_bc_takes_their_mean(track):
    # Two situations, obs = +-1, and two habits, taken equally often in both: action +-h. The
    # habit with the sign of the situation earns 1, the other -1, and the episode is over.
    habit = jnp.asarray([0.6, -0.4])
    situation = jnp.repeat(jnp.asarray([1.0, -1.0]), 128)
    taken = jnp.tile(jnp.asarray([1.0, -1.0]), 128)
    obs = situation[:, None] * jnp.ones((1, 9))
    data = transitions(obs, taken[:, None] * habit[None], situation * taken, obs, True)
    shared = {"track": track, "hidden": (16,), "batch_size": 64, "num_updates": 600}

    def learned(module, **settings):
        functions = module.make_train(module.Config(**shared, learning_rate=1e-2, **settings))
        state, _ = jax.jit(functions.train)(jax.random.key(0), data)
        act = functions.policy(state)
        return jnp.stack([act(sign * jnp.ones(9), jax.random.key(0)) for sign in (1.0, -1.0)])

    np.testing.assert_allclose(learned(bc), 0.0, atol=0.1)
    better = jnp.stack([habit, -habit])
    np.testing.assert_allclose(learned(iql, target_rate=0.05), better, atol=0.1)
    # Without regard for the advantage it imitates, too.
    np.testing.assert_allclose(learned(iql, temperature=0.0), 0.0, atol=0.1)


@pytest.mark.parametrize("goes_on", [False, True], ids=["ends", "goes on for ever"])
def test_values_of_a_chain_are_those_of_its_policy(goes_on):
    # State k of 9 leads to k + 1; leaving the last earns 2 or 0, at even odds, by the action.
    # Then it ends (V_k = gamma^(8-k)), or the clock runs out and it would start again
    # (V_k = gamma^(8-k) / (1 - gamma^9)).
    gamma = 0.8
    state = jnp.repeat(jnp.arange(9), 2)
    obs, next_obs = jnp.eye(9)[state], jnp.eye(9)[(state + 1) % 9]
    taken = jnp.tile(jnp.asarray([1.0, -1.0]), 9)
    last = state == 8
    reward = jnp.where(last, 1.0 + taken, 0.0)
    action = taken[:, None] * jnp.ones((1, 2))
    flags = {"terminated": last & (not goes_on), "truncated": last & goes_on}
    data = transitions(obs, action, reward, next_obs, **flags)

    def values(expectile):
        config = iql.Config(
            hidden=(32,),
            batch_size=64,
            num_updates=3_000,
            learning_rate=1e-2,
            discount=gamma,
            expectile=expectile,
            target_rate=0.1,
        )
        trained, _ = jax.jit(iql.make_train(config).train)(jax.random.key(0), data)
        network = MLP(config.hidden, 1)
        units = jnp.asarray((np.asarray(action) - ACTION_MEAN) / ACTION_STD)
        inputs = jnp.concatenate([obs, units], axis=-1)
        q = jax.vmap(lambda p: network.apply(p, inputs)[:, 0])(trained.params.critic)
        return network.apply(trained.params.value, jnp.eye(9))[:, 0], q

    expected = gamma ** np.arange(8.0, -1.0, -1.0) / (1.0 - gamma**9 if goes_on else 1.0)
    value, q = values(expectile=0.5)
    np.testing.assert_allclose(value, expected, atol=0.06)
    following = np.where(last, goes_on * expected[0], expected[(state + 1) % 9])
    backup = np.asarray(reward) + gamma * following
    np.testing.assert_allclose(q, np.stack([backup, backup]), atol=0.1)
    # The 0.9-expectile of 2 and 0 is 1.8: 1.8 times their mean.
    optimistic, _ = values(expectile=0.9)
    np.testing.assert_allclose(optimistic, 1.8 * expected, atol=0.1)


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"expectile": 0.0}, "expectile = 0.0; allowed: above 0, below 1"),
        ({"expectile": 1.0}, "expectile = 1.0; allowed: above 0, below 1"),
        ({"expectile": float("nan")}, "expectile = nan; allowed"),
        ({"discount": 1.0}, "discount = 1.0; allowed: 0 or more, below 1"),
        ({"discount": -0.1}, "discount = -0.1; allowed"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        iql.make_train(iql.Config(**setting))
