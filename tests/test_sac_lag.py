"""SAC-Lag: its mathematics, its replay, what the multiplier moves, problems with known answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

import polycstr_jax
from algos import actor_critic, sac_lag
from algos.common import MLP
from algos.multipliers import Controller
from polycstr_jax.rollout import Trajectory
from tests.made_up import noise, squashed_entropy

pytestmark = pytest.mark.usefixtures("quick_to_compile")
HORIZON = 10
SMALL = sac_lag.Config(
    hidden=(8,), batch_size=32, gradient_steps=3, num_episodes=2, capacity=50, action_unit="box"
)


def environment(**changes):
    return polycstr_jax.make("startup", max_steps_in_episode=HORIZON, **changes)


def small(env_changes=(), **changes):
    """Functions of a small configuration on episodes of ten intervals."""
    env, params = environment(**dict(env_changes))
    return sac_lag.make_train(dataclasses.replace(SMALL, **changes), env, params)


# --- The mathematics ---


def test_log_likelihood_is_that_of_a_squashed_gaussian_and_as_released_it_is_not():
    mean, log_std = jnp.asarray([[0.3, -1.2], [0.0, 0.5]]), jnp.asarray([[-0.5, 0.4], [0.0, 0.1]])
    action, found = sac_lag.log_likelihood("sample", mean, log_std, jax.random.key(0))
    u = np.arctanh(np.asarray(action, np.float64))
    slope = np.log1p(-(np.asarray(action, np.float64) ** 2))
    expected = (scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - slope).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # The release: plus the Gaussian's entropy, one mean for the whole batch.
    again, released = sac_lag.log_likelihood("released", mean, log_std, jax.random.key(0))
    np.testing.assert_array_equal(action, again)
    entropy = scipy.stats.norm.entropy(mean, np.exp(log_std))
    np.testing.assert_allclose(
        released, np.full(2, (entropy - slope).sum(axis=1).mean()), rtol=1e-4
    )


def test_the_actor_loses_its_entropy_and_costs_and_gains_its_value():
    likelihood, value = jnp.asarray([1.0, 3.0]), jnp.asarray([10.0, 20.0])
    cost, multiplier = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([0.5, 2.0])
    given = (likelihood, value, cost, multiplier, 0.1)
    plain = 0.1 * 2.0 - 15.0 + 0.5 * 2.0 + 2.0 * 3.0
    assert float(sac_lag.actor_loss_of(*given, False)) == pytest.approx(plain)
    assert float(sac_lag.actor_loss_of(*given, True)) == pytest.approx(plain / 3.5)
    slopes = jax.grad(sac_lag.actor_loss_of, argnums=(0, 1, 2))(*given, False)
    np.testing.assert_allclose(slopes[0], [0.05, 0.05])
    np.testing.assert_allclose(slopes[1], [-0.5, -0.5])
    np.testing.assert_allclose(slopes[2], [[0.25, 1.0], [0.25, 1.0]])


# --- The replay ---


def numbered(first, num):
    """Transitions whose rewards are first, first + 1, ..."""
    column = first + jnp.arange(float(num))
    obs, flag = jnp.tile(column[:, None], (1, 3)), jnp.zeros(num, bool)
    return sac_lag.Transitions(obs, obs[:, :2], column, column[:, None], obs, flag, flag)


def test_a_full_replay_forgets_the_oldest():
    replay = sac_lag.empty_replay(5, numbered(0, 1))
    sizes = []
    for first in (0, 2, 4, 6):  # two at a time into five places
        replay = jax.jit(sac_lag.store)(replay, numbered(first, 2))
        sizes.append(int(replay.size))
        kept = sorted(replay.kept.reward[: sizes[-1]].tolist())
        assert kept == list(range(max(0, first + 2 - 5), first + 2))
        for column in (replay.kept.obs[:, 0], replay.kept.cost[:, 0], replay.kept.action[:, 1]):
            np.testing.assert_array_equal(column, replay.kept.reward)  # rows stay together
    assert sizes == [2, 4, 5, 5]
    assert int(replay.position) == 3


def test_batches_hold_what_is_stored_and_nothing_else():
    replay = sac_lag.store(sac_lag.empty_replay(50, numbered(0, 1)), numbered(1, 7))
    drawn = sac_lag.draw(replay, jax.random.key(0), 2_000)
    values, counts = np.unique(np.asarray(drawn.reward), return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(drawn.obs[:, 2], drawn.reward)


def test_an_empty_replay_cannot_be_drawn_from():
    with pytest.raises(ValueError, match="replay is empty; allowed: one transition or more"):
        sac_lag.draw(sac_lag.empty_replay(5, numbered(0, 1)), jax.random.key(0), 2)


# --- Episodes ---


def roll_out(num_steps=4, fails_at=None):
    """Two episodes by hand; the second fails in an interval, and stands still from there."""
    steps = jnp.arange(float(num_steps))[:, None] + jnp.asarray([[0.0, 100.0]])
    terminated = jnp.zeros((num_steps, 2), bool)
    alive = jnp.ones((num_steps, 2), bool)
    if fails_at is not None:
        terminated = terminated.at[fails_at:, 1].set(True)
        alive = alive.at[fails_at + 1 :, 1].set(False)
    obs = jnp.tile(steps[..., None], (1, 1, 9))
    margins = jnp.stack([steps - 1.5, steps - 101.5], axis=-1)
    fields = dict.fromkeys(Trajectory._fields, steps)
    return Trajectory(
        **fields
        | {
            "obs": obs,
            "next_obs": obs + 1.0,
            "action": jnp.tile(steps[..., None] / 1e3, (1, 1, 2)),
            "constraints": margins,
            "terminated": terminated,
            "truncated": jnp.zeros((num_steps, 2), bool).at[-1].set(True),
            "alive": alive,
        }
    )


def test_transitions_are_the_intervals_of_the_roll_out():
    found = sac_lag.transitions_of(roll_out(), noise().normaliser, "box", 2)
    # Observations are clipped at 10 deviations, as for every algorithm.
    np.testing.assert_allclose(found.reward, [0, 100, 1, 101, 2, 102, 3, 103])
    np.testing.assert_allclose(found.next_obs[::2, 0], [1, 2, 3, 4])
    np.testing.assert_allclose(found.action[:, 0], found.reward / 1e3)
    np.testing.assert_array_equal(found.cost[::2], [[0, 0], [0, 0], [1, 0], [1, 0]])
    np.testing.assert_array_equal(found.cost[1::2], [[1, 0], [1, 0], [1, 1], [1, 1]])
    assert found.truncated.tolist() == [False] * 6 + [True] * 2
    assert not found.terminated.any()


def test_a_failed_interval_stands_in_for_those_that_are_lost():
    trajectory = roll_out(fails_at=1)
    found = sac_lag.transitions_of(trajectory, noise().normaliser, "box", 2)
    lost = -20_000
    np.testing.assert_allclose(found.reward, [0, 100, 1, lost, 2, lost, 3, lost])
    assert found.cost[:, 1].tolist() == [0, 0, 0, 1, 0, 1, 0, 1]
    assert found.terminated.tolist() == [False, False, False, True] + [False, True] * 2
    returns, costs = sac_lag.episode_sums(trajectory, 1)
    np.testing.assert_allclose(returns, [6.0, 100.0 - 3 * 20_000.0])
    np.testing.assert_allclose(costs[:, 0], [2.0, 1.0 + 3.0])  # lost intervals violate


def test_what_is_stored_is_what_was_played():
    functions = small()
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    after, metrics = jax.jit(functions.run, static_argnums=3)(state, noise(), jax.random.key(1), 2)
    assert int(after.replay.size) == 2 * 2 * HORIZON and int(after.step) == 2
    kept = jax.tree.map(lambda x: x[: int(after.replay.size)], after.replay.kept)
    # Two episodes side by side: an observation is the next one of two rows before.
    rows = kept.obs.reshape(2, HORIZON, 2, 9), kept.next_obs.reshape(2, HORIZON, 2, 9)
    np.testing.assert_array_equal(rows[0][:, 1:], rows[1][:, :-1])
    assert kept.truncated.reshape(2, HORIZON, 2)[:, -1].all()
    assert int(kept.truncated.sum()) == 4
    mean = kept.reward.reshape(2, HORIZON, 2).sum(axis=1).mean()
    assert float(metrics["episode_return"]) == pytest.approx(float(mean), rel=1e-4)
    assert len(np.unique(np.asarray(kept.action))) > 0.9 * kept.action.size  # it is stochastic


# --- What moves what ---


@functools.cache
def warm(**changes):
    """One gradient step, jitted, and a state with a replay."""
    functions = small(gradient_steps=1, **changes)
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    state, _ = jax.jit(functions.run, static_argnums=3)(state, noise(), jax.random.key(1), 2)
    return jax.jit(sac_lag.parts(functions.config)[2]), state


def after_a_step(improve, state):
    params = improve(state, jax.random.key(2))[0].params
    return {name: np.asarray(ravel_pytree(x)[0]) for name, x in params._asdict().items()}


@pytest.mark.parametrize("rescale", [True, False])
def test_the_multiplier_moves_the_actor_and_nothing_else(rescale):
    improve, state = warm(rescale=rescale)
    heavier = state.multiplier._replace(multiplier=jnp.asarray([5.0]))
    plain = after_a_step(improve, state)
    other = after_a_step(improve, state._replace(multiplier=heavier))
    assert {name for name in plain if np.any(plain[name] != other[name])} == {"actor"}


@pytest.mark.parametrize("which", ["live", "target"])
def test_the_actor_sees_the_critics_that_it_is_told_to(which):
    improve, state = warm(actor_critics=which, critic_rate=1e-30)
    heavier = state.multiplier._replace(multiplier=jnp.asarray([5.0]))
    state = state._replace(multiplier=heavier)
    plain = after_a_step(improve, state)["actor"]
    for target in ("target_critic", "target_cost_critic"):
        shifted = jax.tree.map(lambda x: x + 0.3, getattr(state, target))
        other = after_a_step(improve, state._replace(**{target: shifted}))["actor"]
        assert np.any(plain != other) == (which == "target"), target


def with_heads(state, which, shifts):
    """A state whose target critic's heads have these added to their outputs."""
    critic = jax.tree.map(lambda x: x, getattr(state, which))
    last = critic["params"]["Dense_1"]
    critic["params"]["Dense_1"] = last | {"bias": last["bias"] + jnp.asarray(shifts)[:, None]}
    return state._replace(**{which: critic})


@pytest.mark.parametrize(
    ("which", "loss", "reduction", "seen"),
    [
        ("target_critic", "critic_loss", "max", (False, True)),  # the least, whatever costs do
        ("target_cost_critic", "cost_critic_loss", "max", (True, False)),
        ("target_cost_critic", "cost_critic_loss", "min", (False, True)),
        ("target_cost_critic", "cost_critic_loss", "mean", (True, True)),
    ],
)
def test_targets_are_of_the_head_they_are_told_to_be_of(which, loss, reduction, seen):
    """One head far above or far below the other: further still makes a difference, or none."""
    improve, state = warm(cost_target=reduction)

    def loss_at(shift):
        return float(improve(with_heads(state, which, (shift, 0.0)), jax.random.key(2))[1][loss])

    found = tuple(loss_at(s) != pytest.approx(loss_at(2 * s), rel=1e-3) for s in (1e3, -1e3))
    assert found == seen


def test_the_temperature_falls_while_the_entropy_is_above_its_target():
    for target, sign in ((-50.0, -1.0), (50.0, 1.0)):
        improve, state = warm(target_entropy=target)
        after, metrics = improve(state, jax.random.key(2))
        moved = after.params.log_temperature - state.params.log_temperature
        assert np.sign(moved) == sign == np.sign(target - metrics["entropy"])
    improve, state = warm(target_entropy=None)
    after, _ = improve(state, jax.random.key(2))
    assert float(after.params.log_temperature) == float(state.params.log_temperature)


HOT = (("start_mean", np.asarray([440.0, 0.0, 0.0, 0.0, 365.0])),)


@pytest.mark.parametrize("repeats", [1, 20])
def test_multipliers_move_by_the_episodes_cost_before_the_gradient_steps(repeats):
    rule = Controller(rule="dual", rate=0.01)
    functions = small(HOT, controller=rule, cost_limits=(0.5,), multiplier_updates=repeats)
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    run = jax.jit(functions.run, static_argnums=3)
    after, metrics = run(state, noise(), jax.random.key(1), 1)
    assert float(metrics["episode_cost"]) >= 1.0
    expected = repeats * 8.0 * 0.01 * (float(metrics["episode_cost"]) - 0.5)  # in its unit
    assert float(after.multiplier.multiplier[0]) == pytest.approx(expected, rel=1e-4)
    # The same episodes with no multiplier: another actor.
    config = dataclasses.replace(functions.config, controller=Controller(rule="fixed"))
    still = sac_lag.make_train(config, *environment(**dict(HOT)))
    other, _ = jax.jit(still.run, static_argnums=3)(state, noise(), jax.random.key(1), 1)
    np.testing.assert_array_equal(other.replay.kept.action, after.replay.kept.action)
    assert np.any(ravel_pytree(other.params.actor)[0] != ravel_pytree(after.params.actor)[0])


def test_each_constraint_has_a_critic_and_a_multiplier_of_its_own():
    """A start-up that begins too hot, and never has too much polymer in ten intervals."""
    changes = (*HOT, ("overshoot_constraint", True))
    functions = small(
        changes,
        cost_limits=(0.0, 0.0),
        multiplier_scale=1.0,
        controller=Controller(rule="dual", rate=0.1, initial=1.0),
    )
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    state, metrics = jax.jit(functions.run, static_argnums=3)(state, noise(), jax.random.key(1), 2)
    cost = float(metrics["episode_cost"])
    assert cost >= 1.0
    np.testing.assert_allclose(state.multiplier.multiplier, [1.0 + 2 * 0.1 * cost, 1.0], rtol=1e-5)
    kept = state.replay.kept.cost[: int(state.replay.size)]
    np.testing.assert_allclose(kept.mean(axis=0), [cost / HORIZON, 0.0], rtol=1e-5)


# --- Problems with known answers ---

LEARNING = sac_lag.Config(
    hidden=(32, 32),
    batch_size=128,
    gradient_steps=1_500,
    actor_rate=3e-3,
    critic_rate=3e-3,
    target_rate=0.05,
    action_unit="box",
    target_entropy=None,
    initial_temperature=1e-3,
    capacity=2_000,
    rescale=False,
)


def learn(transitions, multiplier=0.0, policy=None, **changes):
    """The state after gradient steps on given transitions; `policy`: a fixed mean and log std."""
    config = dataclasses.replace(LEARNING, **changes)
    init, _, improve = sac_lag.parts(config)
    data = noise()._replace(obs=transitions.obs, action=transitions.action)
    state = jax.jit(init)(jax.random.key(0), data)
    if policy is not None:
        actor = jax.tree.map(jnp.zeros_like, state.params.actor)
        for head, value in zip(("Dense_2", "Dense_3"), policy, strict=True):
            actor["params"][head]["bias"] = jnp.full_like(actor["params"][head]["bias"], value)
        state = state._replace(params=state.params._replace(actor=actor))
    given = state.multiplier._replace(multiplier=jnp.asarray([multiplier]))
    state = state._replace(replay=sac_lag.store(state.replay, transitions), multiplier=given)
    return config, jax.jit(improve)(state, jax.random.key(1))[0]


def bandit(ended=True):
    """One situation: reward -(a - 0.5)^2, cost a + 1, over at once; or a loop of reward 1, cost
    0.1."""
    action = jax.random.uniform(jax.random.key(3), (2_000, 1), minval=-1.0)
    obs, flag = jnp.ones((2_000, 3)), jnp.full(2_000, ended)
    reward = -((action[:, 0] - 0.5) ** 2) if ended else jnp.ones(2_000)
    cost = action + 1.0 if ended else jnp.full((2_000, 1), 0.1)
    return sac_lag.Transitions(obs, action, reward, cost, obs, flag, ~flag)


@pytest.mark.parametrize(("multiplier", "best"), [(0.0, 0.5), (0.6, 0.2)])
def test_the_actor_finds_where_the_reward_s_slope_is_lambda_times_the_cost_s(multiplier, best):
    """-(a - 1/2)^2 - lambda a is greatest at 1/2 - lambda / 2."""
    config, state = learn(bandit(), multiplier)
    state = state._replace(normaliser=state.normaliser._replace(action_mean=jnp.zeros(1)))
    actor = actor_critic.SquashedActor(config.hidden, 1)
    mean, _ = actor.apply(state.params.actor, jnp.ones((1, 3)))
    assert float(jnp.tanh(mean)[0, 0]) == pytest.approx(best, abs=0.1)


@pytest.mark.parametrize(
    ("temperature", "timeouts"), [(1e-6, "bootstrap"), (0.5, "bootstrap"), (0.5, "terminal")]
)
def test_values_of_a_loop_are_soft_sums_and_costs_plain_ones(temperature, timeouts):
    """Q = (r + gamma alpha H) / (1 - gamma) under a policy whose entropy H is known."""
    mean, std = 0.4, 0.6
    _, state = learn(
        bandit(ended=False),
        policy=(mean, np.log(std)),
        actor_rate=1e-30,
        initial_temperature=temperature,
        discount=0.9,
        timeouts=timeouts,
        cost_target="mean",
    )
    entropy = squashed_entropy(mean, std)
    future = 0.0 if timeouts == "terminal" else 1.0
    value = (1.0 + future * 0.9 * temperature * entropy) / (1.0 - future * 0.9)
    cost = 0.1 / (1.0 - future * 0.9)
    # Where the policy goes: there is no data elsewhere to hold the critics of its own actions.
    obs, action = jnp.ones((1, 3)), jnp.full((1, 1), np.tanh(mean))
    network = MLP(LEARNING.hidden, 1)
    for critic, expected in ((state.params.critic, value), (state.params.cost_critic, cost)):
        found = actor_critic.twin_values(network, critic, obs, action)
        np.testing.assert_allclose(found, expected, rtol=0.1)


def test_values_are_passed_back_from_the_next_observation():
    """A is followed by B, where it ends: Q(B) = 2, Q(A) = 1 + gamma (2 + alpha H)."""
    first, second = jnp.eye(2)
    action = jax.random.uniform(jax.random.key(3), (2_000, 1), minval=-1.0)
    begins = (jnp.arange(2_000) % 2 == 0)[:, None]
    obs, flag = jnp.where(begins, first[None], second[None]), jnp.zeros(2_000, bool)
    reward = jnp.where(begins[:, 0], 1.0, 2.0)
    cost = jnp.where(begins, 0.1, 0.3)
    rows = sac_lag.Transitions(
        obs, action, reward, cost, jnp.tile(second[None], (2_000, 1)), ~begins[:, 0], flag
    )
    alpha, mean, std = 0.5, 0.4, 0.6
    fixed = {"policy": (mean, np.log(std)), "actor_rate": 1e-30, "initial_temperature": alpha}
    _, state = learn(rows, discount=0.9, **fixed)
    value, cost = 1.0 + 0.9 * (2.0 + alpha * squashed_entropy(mean, std)), 0.1 + 0.9 * 0.3
    at, network = jnp.full((2, 1), np.tanh(mean)), MLP(LEARNING.hidden, 1)
    for critic, expected in (
        (state.params.critic, [value, 2.0]),
        (state.params.cost_critic, [cost, 0.3]),
    ):
        found = actor_critic.twin_values(network, critic, jnp.eye(2), at)
        np.testing.assert_allclose(found, np.tile(expected, (2, 1)), rtol=0.1)


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limits": (-1.0,)}, "cost_limits = (-1.0,); allowed: one number, or two, of 0"),
        ({"cost_limits": ()}, "cost_limits = (); allowed: one number, or two, of 0 or more"),
        ({"cost_limits": (1.0, 1.0)}, "an environment with overshoot_constraint = True"),
        ({"num_episodes": 0}, "num_episodes = 0; allowed: 1 or more"),
        ({"capacity": 10}, "capacity = 10; allowed: an update's 20 or more"),
        ({"controller": Controller(integral=-1.0)}, "integral = -1.0; allowed: 0 or more"),
        ({"entropy": "released"}, "target_entropy = -2.0; allowed: None with entropy"),
        ({"entropy": "none"}, "entropy = 'none'; allowed: sample, released"),
        ({"initial_temperature": 0.0}, "initial_temperature = 0.0; allowed: above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        small(**setting)
    assert message in str(error.value)


def test_it_trains_in_an_environment_of_the_limits_horizon():
    with pytest.raises(ValueError, match="env_params = None; allowed: an environment's"):
        sac_lag.make_train(SMALL)
    env, params = polycstr_jax.make("startup", max_steps_in_episode=300)
    with pytest.raises(ValueError, match="max_steps_in_episode = 300; allowed: 1 to 200"):
        sac_lag.make_train(sac_lag.Config(), env, params)
