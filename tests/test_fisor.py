"""FISOR: its mathematics, what moves what, its sampler, and problems with known answers."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree

from algos import fisor
from algos.common import discounted_limit, sample_batch
from tests.made_up import noise, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GAMMA = 0.99
SMALL = fisor.Config(
    constraint="indicator",
    hidden=(8,),
    width=8,
    num_blocks=1,
    batch_size=16,
    num_updates=100,
)


@functools.cache
def trained(config, make_data, key=0):
    data = make_data()
    functions = fisor.make_train(config)
    return functions, jax.jit(functions.train)(jax.random.key(key), data)[0]


# --- The mathematics ---


def test_values_of_a_chain_towards_a_violation_fall_geometrically():
    """k steps before an unavoidable violation V = 26 gamma^k - 1, positive for k < 324."""
    value, found = 25.0, []
    for _ in range(400):
        found.append(value)
        value = float(fisor.reachability_backup(-1.0, value, False, GAMMA))
    np.testing.assert_allclose(found, 26.0 * GAMMA ** np.arange(400) - 1.0, atol=2e-4)
    assert found[323] > 0.0 > found[325]


def test_fixed_points_of_the_backup():
    backup = fisor.reachability_backup
    assert float(backup(-1.0, -1.0, False, GAMMA)) == pytest.approx(-1.0)  # safe for ever
    for next_value in (-1.0, 3.0, 25.0):  # violated now, whatever comes
        assert float(backup(25.0, next_value, False, GAMMA)) == pytest.approx(25.0)
    for h in (-1.0, 25.0):  # nothing comes after the end
        assert float(backup(h, 7.0, True, GAMMA)) == h
    assert float(backup(-1.0, 25.0, False, 0.0)) == -1.0


@pytest.mark.usefixtures("double")
def test_the_reversed_expectile_is_a_soft_minimum():
    sample = np.random.default_rng(0).exponential(size=200)

    def least(expectile):
        return scipy.optimize.minimize_scalar(
            lambda v: float(fisor.expectile_loss(sample - v, expectile)),
            bounds=(0.0, sample.max()),
            method="bounded",
        ).x

    found = {tau: least(1.0 - tau) for tau in (0.5, 0.7, 0.9)}
    for tau, value in found.items():
        assert value == pytest.approx(scipy.stats.expectile(sample, 1.0 - tau), abs=1e-4)
    assert found[0.9] < found[0.7] < found[0.5] == pytest.approx(sample.mean(), abs=1e-4)


# q, v, q_safety, v_safety -> weight, by the equations
CASES = {
    "feasible": ((0.3, 0.1, -0.5, -0.2), np.exp(3.0 * 0.2)),
    "feasible, at the cap": ((9.0, 0.0, -0.5, -0.2), 100.0),
    "feasible state, unsafe action": ((0.3, 0.1, 0.1, -0.2), 0.0),
    "infeasible, better": ((0.3, 0.1, 1.0, 1.2), np.exp(5.0 * 0.2)),
    "infeasible, worse": ((0.3, 0.1, 2.0, 1.2), np.exp(-5.0 * 0.8)),
    "infeasible, at the cap": ((0.3, 0.1, -1.0, 3.0), 150.0),
    "on the boundary": ((0.1, 0.1, 0.0, 0.0), 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_of_each_region(name):
    given, expected = CASES[name]
    weight = fisor.policy_weights(fisor.Config(), *(jnp.asarray([x]) for x in given))
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_weights_of_absurd_values_are_finite():
    extremes = jnp.asarray([-1e30, -1e3, 0.0, 1e3, 1e30])
    grid = jnp.stack(jnp.meshgrid(*(extremes,) * 4)).reshape(4, -1)
    weight = np.asarray(fisor.policy_weights(fisor.Config(), *grid))
    assert np.isfinite(weight).all() and weight.min() == 0.0
    np.testing.assert_allclose(weight.max(), 150.0, rtol=1e-4)
    dropped = np.asarray((grid[3] <= 0.0) & (grid[2] > 0.0))
    assert (weight[dropped] == 0.0).all() and dropped.any()


def test_flags_of_the_weights():
    better, worse = (jnp.asarray([x]) for x in (0.5, 2.0))
    zero, infeasible = jnp.zeros(1), jnp.ones(1)

    def weight(q_safety, v_safety, **flags):
        config = dataclasses.replace(fisor.Config(), **flags)
        return float(fisor.policy_weights(config, better, zero, q_safety, v_safety)[0])

    assert weight(worse, infeasible, unsafe_weight_min=1.0) == 1.0
    assert weight(better, infeasible, unsafe_weight_min=1.0) == pytest.approx(np.exp(2.5))
    assert weight(worse, zero, unsafe_weight_min=1.0) == 0.0  # only where the state is infeasible
    assert weight(better, infeasible, infeasible_branch=False) == 0.0
    assert weight(-better, infeasible, infeasible_branch=False) == pytest.approx(np.exp(1.5))
    assert weight(worse, infeasible, objective="bc") == 1.0


def test_the_noise_schedule_is_the_papers():
    beta, product = fisor.noise_schedule(5)
    np.testing.assert_allclose(beta, [0.1959, 0.4588, 0.6358, 0.7549, 0.8350], atol=5e-5)
    np.testing.assert_allclose(product, [0.80413, 0.43518, 0.15850, 0.03885, 0.00641], atol=5e-6)


def test_actions_come_back_from_the_networks_unit():
    std = jnp.asarray([0.04, 0.3])
    action = jnp.stack([jnp.linspace(-1.0, 1.0, 41)] * 2, axis=1)
    for unit in ("asinh", "box"):
        inner = fisor.to_unit(unit, action, std)
        assert float(jnp.abs(inner).max()) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(fisor.from_unit(unit, inner, std), action, atol=1e-6)
    np.testing.assert_array_equal(fisor.to_unit("box", action, std), action)
    small = fisor.to_unit("asinh", std[None], std)  # one standard deviation
    np.testing.assert_allclose(small[0], np.arcsinh(1.0) / np.arcsinh(1.0 / std), rtol=1e-5)


def test_the_limit_of_the_cost_value_is_spread_over_the_horizon():
    for horizon, expected in ((1000, 1.000), (500, 1.987), (200, 4.330), (100, 6.340)):
        assert discounted_limit(10.0, 0.99, horizon) == pytest.approx(expected, abs=5e-4)


def test_h_is_an_indicator_or_a_margin_in_kelvin():
    data = noise()._replace(constraint=jnp.linspace(-60.0, 90.0, 400))
    h = fisor.constraint_signal(fisor.Config(constraint="indicator"), data)
    np.testing.assert_array_equal(h, np.where(data.cost > 0, 25.0, -1.0))
    margin = fisor.constraint_signal(fisor.Config(constraint="margin"), data)
    np.testing.assert_array_equal(margin, np.clip(data.constraint, -10.0, 25.0))
    raw = fisor.constraint_signal(fisor.Config(safety="cost_value"), data)
    np.testing.assert_array_equal(raw, data.cost)


def test_rewards_are_scaled_to_the_spread_of_whole_episodes():
    data = noise()._replace(terminated=jnp.zeros(400, bool), truncated=jnp.arange(400) % 150 == 149)
    returns = [float(data.reward[n : n + 150].sum()) for n in (0, 150)]  # the rest is not whole
    expected = 150.0 / abs(returns[0] - returns[1])
    assert float(fisor.return_scale(data)) == pytest.approx(expected, rel=1e-4)


# --- The sampler ---


def optimal_noise(mean, std, num_steps=5):
    """The exact denoiser of N(mean, std^2): E[eps | a_t]."""
    product = fisor.noise_schedule(num_steps)[1]

    def predict(x, t):
        spread = product[t] * std**2 + 1.0 - product[t]
        return np.sqrt(1.0 - product[t]) * (x - np.sqrt(product[t]) * mean) / spread

    return predict


def exact_cdf(mean, std, grid):
    """Distribution of the sampler's result under the exact denoiser, clipping included.

    Propagated by quadrature: a density over [-1, 1] and the masses that clipping puts at its ends.
    """
    beta, product = fisor.noise_schedule(5)
    denoiser = optimal_noise(mean, std)
    points = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)  # of equal mass
    mass = np.full(points.size, 1.0 / points.size)
    edges = np.linspace(-1.0, 1.0, 2_001)
    for t in reversed(range(5)):
        shift = beta[t] / np.sqrt(1.0 - product[t]) * denoiser(points, t)
        moved = (points - shift) / np.sqrt(1.0 - beta[t])
        if t == 0:
            return np.array([mass[np.clip(moved, -1.0, 1.0) <= x].sum() for x in grid])
        below = np.zeros(edges.size)
        for part in np.array_split(np.arange(moved.size), 20):
            scaled = (edges[:, None] - moved[None, part]) / np.sqrt(beta[t])
            below += scipy.stats.norm.cdf(scaled) @ mass[part]
        inner = np.diff(below)
        points = np.concatenate([[-1.0], 0.5 * (edges[1:] + edges[:-1]), [1.0]])
        mass = np.concatenate([[below[0]], inner, [1.0 - below[-1]]])
    raise AssertionError


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.1), (-0.6, 0.3)])
def test_the_sampler_draws_what_the_reverse_process_of_a_gaussian_says(mean, std):
    num = 20_000
    keys = jax.random.split(jax.random.key(0))
    noise = jax.random.normal(keys[0], (num, 1))
    x = np.asarray(fisor.denoise(optimal_noise(mean, std), noise, keys[1], 5))[:, 0]
    grid = np.linspace(-0.98, 0.98, 99)
    found = np.array([(x <= g).mean() for g in grid])
    assert np.abs(found - exact_cdf(mean, std, grid)).max() < 1.95 / np.sqrt(num)  # 0.1 % level
    # Five steps, the last without noise: narrower than what is sampled from, in the right place.
    assert abs(x.mean() - mean) < 0.05 and x.std() < std


def test_the_sampler_ends_exactly_at_a_point_mass():
    noise = jax.random.normal(jax.random.key(1), (64, 2))
    x = fisor.denoise(optimal_noise(0.25, 0.0), noise, jax.random.key(2), 5)
    np.testing.assert_allclose(x, 0.25, atol=1e-5)


def test_samples_stay_in_the_box():
    wild = fisor.denoise(lambda x, t: -30.0 * x, jnp.ones((8, 2)), jax.random.key(0), 5)
    assert float(jnp.abs(wild).max()) == 1.0


def test_mish_and_its_slope():
    x = jnp.asarray([-1e4, -30.0, -3.0, -0.1, 0.0, 0.5, 4.0, 19.0, 21.0, 1e4])
    expected = lambda x: x * jnp.tanh(jnp.logaddexp(x, 0.0))  # noqa: E731
    np.testing.assert_allclose(fisor.mish(x), expected(x), rtol=1e-5, atol=1e-6)
    slopes = [jax.vmap(jax.grad(f))(x) for f in (fisor.mish, expected)]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-6)


def test_the_denoiser_knows_which_step_it_is_at():
    """Rows of many steps at once are those of each step for all rows, and steps differ."""
    network = fisor.Denoiser(num_steps=5, width=8, num_blocks=1, dropout=0.0)
    noisy, obs = jax.random.normal(jax.random.key(0), (2, 10, 3))
    params = network.init(jax.random.key(1), noisy, obs, 0)
    alone = jnp.stack([network.apply(params, noisy, obs, t) for t in range(5)])
    t = jnp.arange(10) % 5
    np.testing.assert_allclose(network.apply(params, noisy, obs, t), alone[t, jnp.arange(10)])
    # The features: sines and cosines of 2 pi t W, at the step's own number.
    first = dict(params["params"], frequency=jnp.full((32, 1), 0.25))  # a quarter turn a step
    turned = [network.apply({"params": first}, noisy, obs, t) for t in range(5)]
    np.testing.assert_allclose(turned[0], turned[4], rtol=1e-4, atol=1e-4)
    assert all(np.abs(turned[0] - turned[t]).max() > 1e-3 for t in (1, 2, 3))


# --- What an update moves, and what moves it ---

PARTS = {
    "actor": lambda s: s.params.actor,
    "average": lambda s: s.actor_average,
    "value_r": lambda s: s.params.value.reward,
    "value_h": lambda s: s.params.value.safety,
    "critic_r": lambda s: s.params.critic.reward,
    "critic_h": lambda s: s.params.critic.safety,
    "target_r": lambda s: s.target_critic.reward,
    "target_h": lambda s: s.target_critic.safety,
}


def with_part_moved(state, name):
    moved = jax.tree.map(lambda x: x + 0.05, PARTS[name](state))
    p, t = state.params, state.target_critic
    return {
        "actor": lambda: state._replace(params=p._replace(actor=moved)),
        "average": lambda: state._replace(actor_average=moved),
        "value_r": lambda: state._replace(params=p._replace(value=p.value._replace(reward=moved))),
        "value_h": lambda: state._replace(params=p._replace(value=p.value._replace(safety=moved))),
        "critic_r": lambda: state._replace(
            params=p._replace(critic=p.critic._replace(reward=moved))
        ),
        "critic_h": lambda: state._replace(
            params=p._replace(critic=p.critic._replace(safety=moved))
        ),
        "target_r": lambda: state._replace(target_critic=t._replace(reward=moved)),
        "target_h": lambda: state._replace(target_critic=t._replace(safety=moved)),
    }[name]()


@functools.cache
def warm():
    """`run` of one update, and a state after some: Adam no longer takes mere signs.

    V_h and Q_h are moved so that the data have states and actions of all regions.
    """
    functions = fisor.make_train(SMALL)
    run = jax.jit(functions.run, static_argnums=3)
    state = functions.init(jax.random.key(0), noise())
    state, _ = run(state, noise(), jax.random.key(1), 20)
    middle = jnp.median(fisor.feasibility(SMALL, state, noise().obs))
    p, t = state.params, state.target_critic
    value, critic = (lowered(x, middle) for x in (p.value.safety, t.safety))
    p = p._replace(value=p.value._replace(safety=value))
    return run, state._replace(params=p, target_critic=t._replace(safety=critic))


def lowered(network, by):
    """A network with its output lowered."""
    layers = dict(network["params"])
    layers["Dense_1"] = layers["Dense_1"] | {"bias": layers["Dense_1"]["bias"] - by}
    return {"params": layers}


def change_of(run, state, name):
    after, _ = run(state, noise(), jax.random.key(2), 1)
    return np.asarray(
        ravel_pytree(PARTS[name](after))[0] - ravel_pytree(PARTS[name](state))[0]
    ), np.asarray(ravel_pytree(PARTS[name](after))[0])


@pytest.mark.parametrize(
    ("learner", "teachers"),
    [
        ("value_r", {"value_r", "target_r"}),
        ("value_h", {"value_h", "target_h"}),
        # Through the values just moved, which the targets moved.
        ("critic_r", {"critic_r", "value_r", "target_r"}),
        ("critic_h", {"critic_h", "value_h", "target_h"}),
        ("actor", {"actor", "value_r", "value_h", "target_r", "target_h"}),
    ],
)
def test_each_part_learns_from_its_own_loss_alone(learner, teachers):
    run, state = warm()
    plain, end = change_of(run, state, learner)
    assert np.abs(plain).max() > 0.0
    for name in PARTS:
        other, other_end = change_of(run, with_part_moved(state, name), learner)
        if name in teachers:
            assert np.abs(other - plain).max() > 0.0, name
        else:
            np.testing.assert_array_equal(end, other_end, name)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_averages_move_by_their_rates_once_an_actor_step(num_steps):
    config = dataclasses.replace(SMALL, num_actor_steps=num_steps, ema_rate=0.25, target_rate=0.125)
    functions = fisor.make_train(config)
    start = functions.init(jax.random.key(0), noise())
    end, _ = functions.run(start, noise(), jax.random.key(1), 1)
    flat = {
        name: [np.asarray(ravel_pytree(part(s))[0]) for s in (start, end)]
        for name, part in PARTS.items()
    }
    np.testing.assert_allclose(
        flat["target_h"][1], 0.875 * flat["target_h"][0] + 0.125 * flat["critic_h"][1], atol=1e-6
    )
    moved, away = (np.abs(flat[x][1] - flat["actor"][0]).sum() for x in ("average", "actor"))
    if num_steps == 1:
        np.testing.assert_allclose(moved, 0.25 * away, rtol=1e-3)
    else:  # of two steps the first counts twice: 1/4 + 3/16, the second once
        assert 0.3 * away < moved < 0.45 * away


def test_the_critics_see_the_first_rows_of_the_batch_and_the_actor_all():
    functions = fisor.make_train(dataclasses.replace(SMALL, batch_size=32, critic_rows=8))
    start = functions.init(jax.random.key(0), noise())
    # Which rows of the data the first update draws.
    key_batch, _ = jax.random.split(jax.random.fold_in(jax.random.key(1), 0))
    labelled = noise()._replace(tracking_cost=jnp.arange(400.0))
    drawn = sample_batch(key_batch, labelled, 32).tracking_cost.astype(int)
    seen = np.unique(drawn[:8])
    unseen = np.setdiff1d(drawn[8:], seen)

    def after(rows):
        changed = noise()._replace(obs=noise().obs.at[rows].add(1.0))
        params = functions.run(start, changed, jax.random.key(1), 1)[0].params
        return [np.asarray(ravel_pytree(part)[0]) for part in (params.critic, params.actor)]

    plain, of_seen, of_unseen = (after(rows) for rows in (np.zeros(0, int), seen, unseen))
    assert np.any(plain[0] != of_seen[0])
    np.testing.assert_array_equal(plain[0], of_unseen[0])
    assert np.any(plain[1] != of_unseen[1])


# --- The losses, by hand ---


@pytest.mark.parametrize("timeouts", ["bootstrap", "terminal"])
@pytest.mark.parametrize(
    ("terminated", "truncated"), [(False, False), (False, True), (True, False)]
)
@pytest.mark.parametrize("safety", ["reachability", "cost_value"])
@pytest.mark.parametrize("violates", [False, True])
def test_losses_are_the_equations(timeouts, terminated, truncated, safety, violates):
    config = dataclasses.replace(SMALL, timeouts=timeouts, safety=safety, action_unit="box")
    functions = fisor.make_train(config)
    one = noise().transitions(lambda x: x[:1])
    one = one._replace(terminated=jnp.asarray([terminated]), truncated=jnp.asarray([truncated]))
    one = one._replace(cost=jnp.asarray([1.0 if violates else 0.0]))
    start = functions.init(jax.random.key(0), noise())
    start = with_part_moved(with_part_moved(start, "target_h"), "target_r")
    end, metrics = functions.run(start, one, jax.random.key(1), 1)

    network = fisor.Value(config.hidden)
    inputs = jnp.concatenate([one.obs, one.action], axis=1)

    def heads(critic):
        return np.asarray(
            [network.apply(jax.tree.map(lambda x, n=n: x[n], critic), inputs)[0] for n in (0, 1)]
        )

    value = {
        n: float(network.apply(getattr(start.params.value, n), one.obs)[0])
        for n in ("reward", "safety")
    }
    up = heads(start.target_critic.reward).min() - value["reward"]
    down = heads(start.target_critic.safety).max() - value["safety"]
    expected = (0.9 if up > 0 else 0.1) * up**2 + (0.9 if down < 0 else 0.1) * down**2
    np.testing.assert_allclose(metrics["value_loss"], expected, rtol=1e-4)

    moved = {
        n: float(network.apply(getattr(end.params.value, n), one.next_obs)[0])
        for n in ("reward", "safety")
    }
    ended = terminated or (truncated and timeouts == "terminal")
    backup = float(one.reward[0]) + (0.0 if ended else 0.99 * moved["reward"])
    assert -1.0 < moved["safety"] < 25.0  # so the greater of the two is V_h or h, by `violates`
    if safety == "cost_value":
        backup_h = violates + (0.0 if ended else 0.99 * moved["safety"])
    else:
        h = 25.0 if violates else -1.0
        backup_h = h if ended else 0.01 * h + 0.99 * max(h, moved["safety"])
    expected = np.mean((heads(start.params.critic.reward) - backup) ** 2)
    expected += np.mean((heads(start.params.critic.safety) - backup_h) ** 2)
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-4)


def test_the_weighted_loss_sums_over_an_actions_entries():
    """All weights 1: the first loss is that of a network's output against unit noise."""
    config = dataclasses.replace(SMALL, objective="bc", batch_size=4_096, num_updates=1)
    functions = fisor.make_train(config)
    start = functions.init(jax.random.key(0), noise())
    blind = jax.tree.map(jnp.zeros_like, start.params.actor)  # predicts no noise
    start = start._replace(params=start.params._replace(actor=blind))
    _, metrics = functions.run(start, noise(), jax.random.key(1), 1)
    assert float(metrics["actor_loss"]) == pytest.approx(2.0, abs=0.1)  # two entries, variance 1


# --- Problems with known answers ---

LEARNING = fisor.Config(
    hidden=(32,),
    width=32,
    num_blocks=1,
    batch_size=64,
    learning_rate=3e-3,
    target_rate=0.05,
    num_updates=1_500,
    ema_rate=0.01,
    action_unit="box",
    num_samples=1,
    constraint="indicator",
    selection="safest",
)


def chain_data():
    """State k of 9 leads to k + 1, whatever is done; the last violates, and goes on for ever."""
    state = jnp.repeat(jnp.arange(9), 2)
    obs, next_obs = jnp.eye(9)[state], jnp.eye(9)[jnp.minimum(state + 1, 8)]
    action = jnp.tile(jnp.asarray([[0.5, 0.5], [-0.5, -0.5]]), (9, 1))
    return transitions(obs, action, state == 8, next_obs)


def test_values_of_a_chain_are_learned():
    config = dataclasses.replace(LEARNING, discount=0.8, safety_expectile=0.5)
    _, state = trained(config, chain_data)
    found = fisor.feasibility(config, state, jnp.eye(9))
    np.testing.assert_allclose(found, 26.0 * 0.8 ** np.arange(8.0, -1.0, -1.0) - 1.0, atol=0.4)


def fork_data():
    """Two situations, in both a dangerous habit in a fifth of the cases, which always violates.

    In the first the other habit never violates, in the second it does in 3 of 4 cases. Rewards
    favour the dangerous habit.
    """
    situation = jnp.repeat(jnp.asarray([1.0, -1.0]), 400)
    dangerous = jnp.arange(800) % 5 == 0
    often = jnp.arange(800) % 4 > 0
    cost = jnp.where(situation > 0, dangerous, dangerous | often)
    obs = situation[:, None] * jnp.ones((1, 9))
    taken = jnp.where(dangerous, 1.0, -1.0)
    action = taken[:, None] * jnp.asarray([[0.6, -0.4]])
    return transitions(obs, action, cost, obs, reward=taken, ended=True)


def shares(functions, state, num=400):
    """Share of the dangerous habit among the actions taken in each situation."""
    keys = jax.random.split(jax.random.key(5), num)
    act = functions.policy(state)
    taken = [jax.jit(jax.vmap(lambda k, s=s: act(s * jnp.ones(9), k)))(keys) for s in (1.0, -1.0)]
    return [float(jnp.mean(x[:, 0] > 0)) for x in taken]


def test_where_safety_is_possible_the_unsafe_habit_is_dropped_though_it_pays():
    functions, state = trained(LEARNING, fork_data)
    feasible, infeasible = np.asarray(
        fisor.feasibility(LEARNING, state, jnp.stack([jnp.ones(9), -jnp.ones(9)]))
    )
    assert feasible < 0.0 < infeasible
    assert max(shares(functions, state)) < 0.03
    imitation = dataclasses.replace(LEARNING, objective="bc")
    np.testing.assert_allclose(shares(*trained(imitation, fork_data)), 0.2, atol=0.08)


def test_only_the_infeasible_branch_teaches_anything_where_nothing_is_safe():
    _, state = trained(LEARNING, fork_data)
    for branch in (True, False):
        functions = fisor.make_train(dataclasses.replace(LEARNING, infeasible_branch=branch))
        _, metrics = functions.run(state, fork_data(), jax.random.key(2), 1)
        assert float(metrics["infeasible"]) == pytest.approx(0.5, abs=0.2)
        weight = float(metrics["weight_infeasible"])
        assert weight > 0.1 if branch else weight == 0.0
        assert float(metrics["weight_feasible"]) > 0.0


def test_an_unsafe_action_in_a_quarter_of_the_data_makes_a_state_infeasible():
    """h = +25 or -1 and the reversed expectile 0.9: V_h = 0 at a share of 0.9 / (2.5 + 0.9)."""
    boundary = 0.9 / (0.1 * 25.0 + 0.9)
    for share in (boundary - 0.02, boundary + 0.02):
        h = jnp.where(jnp.arange(10_000) < 10_000 * share, 25.0, -1.0)
        slope = jax.grad(lambda v, h=h: fisor.expectile_loss(h - v, 1.0 - 0.9))(0.0)
        assert (float(slope) < 0.0) == (share > boundary)  # the least loss is above 0


def test_the_gaussian_ablation_solves_the_fork_too():
    config = dataclasses.replace(LEARNING, actor="gaussian")
    assert max(shares(*trained(config, fork_data))) < 0.05


def two_habits():
    """One situation, two habits equally often, rewards +-0.2, over at once; never unsafe."""
    taken = jnp.tile(jnp.asarray([1.0, -1.0]), 256)
    obs = jnp.ones((512, 9))
    action = taken[:, None] * jnp.asarray([[0.6, -0.4]])
    return transitions(obs, action, 0.0, obs, reward=0.2 * taken, ended=True)


def test_weighted_regression_draws_from_the_weighted_mixture():
    """Odds exp(alpha_r 0.4) : 1, at expectile 0.5 (the weights' common factor does not matter)."""
    config = dataclasses.replace(LEARNING, reward_temperature=3.0, expectile=0.5)
    share = shares(*trained(config, two_habits))[0]
    odds = np.exp(0.4 * 3.0)
    assert share == pytest.approx(odds / (1.0 + odds), abs=0.08)


def test_of_n_samples_the_least_dangerous_is_taken():
    imitation = dataclasses.replace(LEARNING, objective="bc")
    _, state = trained(imitation, fork_data)
    for selection, expected in (("safest", 0.0), ("reward", 0.97), ("reward_if_safe", 0.0)):
        config = dataclasses.replace(imitation, num_samples=16, selection=selection)
        share = shares(fisor.make_train(config), state, 100)[0]
        assert share == pytest.approx(expected, abs=0.05), selection


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_diffusion_steps": 0}, "num_diffusion_steps = 0; allowed: 1 or more"),
        ({"num_samples": 0}, "num_samples = 0; allowed: 1 or more"),
        ({"batch_size": 0}, "batch_size = 0; allowed: 1 or more"),
        ({"safety_expectile": 1.0}, "safety_expectile = 1.0; allowed: above 0, below 1"),
        ({"discount": 1.0}, "discount = 1.0; allowed: 0 or more, below 1"),
        ({"unsafe_weight_min": -1.0}, "unsafe_weight_min = -1.0; allowed: 0 or more"),
        ({"constraint": "x"}, "constraint = 'x'; allowed: indicator, margin"),
        ({"num_actor_steps": 3}, "batch_size = 256; allowed: a multiple of num_actor_steps = 3"),
        ({"cost_limit": float("nan")}, "cost_limit = nan; allowed: 0 or more"),
        ({"critic_rows": 257}, "critic_rows = 257; allowed: at most batch_size = 256"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; allowed: above 0"),
        ({"ema_rate": 0.0}, "ema_rate = 0.0; allowed: above 0, at most 1"),
        ({"actor_decay_steps": 0}, "actor_decay_steps = 0; allowed: None, or 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        fisor.make_train(fisor.Config(**setting))


def test_data_that_say_nothing_about_safety_are_named():
    functions = fisor.make_train(fisor.Config())
    zero, one, good = jnp.zeros(400), jnp.ones(400), noise()
    with pytest.warns(UserWarning, match="0 of 400 transitions of the data violate"):
        functions.check_data(good._replace(cost=zero, constraint=-one))
    with pytest.raises(ValueError, match="all 400 transitions of the data violate"):
        functions.check_data(good._replace(cost=one, constraint=one))
    number = int((good.cost > 0).sum())
    with pytest.raises(ValueError, match=rf"cost disagree in {number} of 400"):  # no sign change
        functions.check_data(good._replace(constraint=-one))
    with pytest.raises(ValueError, match=r"cost disagree in 400 of 400"):
        functions.check_data(good._replace(cost=zero, constraint=one))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for name in ("constraint", "cost"):
            column = getattr(good, name).at[3].set(bad)
            with pytest.raises(ValueError, match=f"{name} of the data is not finite in 1 of 400"):
                functions.check_data(good._replace(**{name: column}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functions.check_data(good)


def test_returns_that_give_no_scale_are_refused():
    functions = fisor.make_train(dataclasses.replace(SMALL, reward_unit="returns"))
    never = jnp.zeros(400, bool)
    once = never.at[200].set(True)
    for ends in (never, once):
        with pytest.raises(ValueError, match="two whole episodes with different returns"):
            functions.check_data(noise()._replace(terminated=never, truncated=ends))
    functions.check_data(noise()._replace(terminated=never, truncated=once.at[399].set(True)))


# --- How an action is chosen ---


def test_each_selection_takes_its_own_candidate():
    q = jnp.asarray([1.0, 3.0, 2.0, 0.0])
    q_safety = jnp.asarray([-0.5, 0.5, 0.0, -1.0])  # the best is unsafe, the next just safe

    def taken(selection, q_safety=q_safety):
        return int(jnp.argmax(fisor.rank(fisor.Config(selection=selection), q, q_safety)))

    assert taken("safest") == 3
    assert taken("reward") == 1
    assert taken("reward_if_safe") == 2
    assert taken("reward_if_safe", q_safety + 1.0) == 3  # none is safe: the safest


def test_action_values_are_the_worse_of_two_heads():
    functions = fisor.make_train(SMALL)
    state = functions.init(jax.random.key(0), noise())
    obs, action = noise().obs[:20], noise().action[:20]
    heads = [fisor.twin(SMALL, x, obs, action) for x in state.target_critic]
    q, q_safety = fisor.action_values(SMALL, state, obs, action)
    np.testing.assert_array_equal(q, np.min(heads[0], axis=0))
    np.testing.assert_array_equal(q_safety, np.max(heads[1], axis=0))
    cost = dataclasses.replace(SMALL, safety="cost_value", cost_limit=5.0)
    lowered = fisor.action_values(cost, state, obs, action)[1] - q_safety
    np.testing.assert_allclose(lowered, -discounted_limit(5.0, 0.99, 200), rtol=1e-5)


def test_the_averaged_actor_acts_without_dropout():
    config = dataclasses.replace(SMALL, dropout=0.5, num_samples=4)
    functions = fisor.make_train(config)
    state = functions.init(jax.random.key(0), noise())
    act = functions.policy(state)
    obs = noise().obs[0]
    plain = act(obs, jax.random.key(1))
    np.testing.assert_array_equal(plain, act(obs, jax.random.key(1)))
    for name, changes in (("actor", False), ("average", True), ("critic_h", False)):
        moved = functions.policy(with_part_moved(state, name))(obs, jax.random.key(1))
        assert np.any(moved != plain) == changes, name


# --- The paper's preset ---


def test_the_papers_preset_has_its_constants_and_its_size():
    paper = fisor.PRESETS["paper"]
    expected = {
        **{"num_updates": 1_000_000, "batch_size": 2_048, "num_actor_steps": 2},
        **{"critic_rows": 256, "learning_rate": 3e-4, "cosine_decay": False},
        **{"actor_decay_steps": 3_000_000, "hidden": (256, 256), "discount": 0.99},
        **{"expectile": 0.9, "safety_expectile": 0.9, "target_rate": 0.005, "ema_rate": 0.001},
        **{"constraint": "indicator", "safety": "reachability", "timeouts": "terminal"},
        **{"reward_temperature": 3.0, "cost_temperature": 5.0, "max_reward_weight": 100.0},
        **{"max_cost_weight": 150.0, "unsafe_weight_min": 0.0, "num_diffusion_steps": 5},
        **{"width": 256, "num_blocks": 3, "dropout": 0.1, "num_samples": 16},
        **{"selection": "safest", "action_unit": "box", "reward_unit": "returns"},
    }
    assert {name: getattr(paper, name) for name in expected} == expected
    other = dataclasses.asdict(fisor.PRESETS["first-commit"])
    different = {name for name, value in dataclasses.asdict(paper).items() if value != other[name]}
    assert different == {"unsafe_weight_min"} and other["unsafe_weight_min"] == 1.0
    states = jax.eval_shape(fisor.make_train(paper).init, jax.random.key(0), noise())
    size = sum(x.size for x in jax.tree.leaves(states.params.actor))
    blocks = 3 * 526_080 + 256 * (2 + 9 + 128) + 256 + 256 * 2 + 2 + 24_864
    assert size == blocks


def test_the_papers_updates_run_with_dropout_two_halves_and_scaled_rewards():
    narrow = {"batch_size": 32, "critic_rows": 8, "width": 8, "num_blocks": 1, "hidden": (8,)}
    config = dataclasses.replace(fisor.PRESETS["paper"], **narrow, num_updates=3)
    data = noise()._replace(terminated=jnp.zeros(400, bool))
    functions = fisor.make_train(config)
    functions.check_data(data)
    start = functions.init(jax.random.key(0), data)
    end, metrics = jax.jit(functions.run, static_argnums=3)(start, data, jax.random.key(1), 3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((end.params, metrics)))
    assert float(start.reward_scale) == pytest.approx(float(fisor.return_scale(data)))

    def actor_after(config):
        changed = fisor.make_train(config)
        after, _ = changed.run(start, data, jax.random.key(1), 1)
        return ravel_pytree(after.params.actor)[0]

    plain = actor_after(config)
    assert np.any(plain != actor_after(dataclasses.replace(config, dropout=0.0)))
    # Rewards ten times as large, scaled back by their spread, are the same rewards.
    scaled = data._replace(reward=10.0 * data.reward)
    again, _ = functions.run(
        functions.init(jax.random.key(0), scaled), scaled, jax.random.key(1), 1
    )
    once, _ = functions.run(start, data, jax.random.key(1), 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again.params, once.params
    )


def test_the_actors_learning_rate_has_fallen_to_a_quarter_at_the_end_of_the_paper():
    schedule = fisor.actor_schedule(fisor.PRESETS["paper"])
    assert float(schedule(0)) == pytest.approx(3e-4)
    assert float(schedule(2_000_000)) == pytest.approx(7.5e-5, rel=1e-3)
    default = fisor.PRESETS["default"]
    assert float(fisor.actor_schedule(default)(default.num_updates)) == pytest.approx(0.0, abs=1e-9)
