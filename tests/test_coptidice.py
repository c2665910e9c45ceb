"""COptiDICE: its mathematics, what its parts move, and problems with known answers."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree

from algos import coptidice
from algos.common import MLP, discounted_limit
from tests.made_up import noise, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
KINDS = pytest.mark.parametrize("kind", ["softchi", "chi2"])
SMALL = coptidice.Config(
    hidden=(8,),
    batch_size=32,
    num_updates=100,
    nu_rate=3e-4,
    dual_rate=1e-3,
    alpha=0.5,  # at a tenth of it the worst case of noise is almost a single row
    action_unit="box",
)


# --- The mathematics ---


@KINDS
def test_the_divergence_is_convex_and_0_where_nothing_is_corrected(kind):
    w = jnp.linspace(0.0, 6.0, 2_001)
    f = np.asarray(coptidice.divergence(kind, w), np.float64)
    assert f.min() >= 0.0 and np.asarray(w)[f < 1e-7] == pytest.approx(1.0, abs=1e-3)
    assert np.diff(f, 2).min() > -1e-5
    at = np.array([0.0, 1.0, 3.0])
    expected = {"softchi": [1.0, 0.0, 2.0], "chi2": [0.5, 0.0, 2.0]}[kind]
    np.testing.assert_allclose(coptidice.divergence(kind, jnp.asarray(at)), expected)


@KINDS
def test_the_correction_is_the_best_of_all_by_trying_them(kind):
    w = np.linspace(0.0, 8.0, 80_001)
    f = np.asarray(coptidice.divergence(kind, jnp.asarray(w)), np.float64)
    for y in (-6.0, -1.5, -1.0, -0.3, 0.0, 0.4, 2.5, 6.0):
        worth = w * y - f
        assert float(coptidice.correction(kind, y)) == pytest.approx(w[worth.argmax()], abs=2e-3)
        assert float(coptidice.conjugate(kind, y)) == pytest.approx(worth.max(), abs=1e-4)


@KINDS
def test_the_correction_undoes_the_slope_of_the_divergence(kind):
    w = jnp.asarray([0.05, 0.5, 0.99, 1.01, 2.0, 7.0])
    slope = jax.vmap(jax.grad(lambda x: coptidice.divergence(kind, x)))(w)
    np.testing.assert_allclose(coptidice.correction(kind, slope), w, rtol=1e-4)


@KINDS
def test_the_slope_of_the_loss_of_nu_is_the_correction(kind):
    """However far the advantages are out."""
    y = jnp.asarray([-1e4, -50.0, -1.5, -0.2, 0.2, 3.0, 1e4])
    slope = jax.vmap(jax.grad(lambda x: coptidice.conjugate(kind, x)))(y)
    np.testing.assert_allclose(slope, coptidice.correction(kind, y), rtol=1e-5, atol=1e-20)
    assert np.asarray(slope).min() >= 0.0


def test_the_density_is_that_of_the_change_of_variable():
    mean, log_std = jnp.asarray([[0.3, -1.2]]), jnp.asarray([[-0.5, 0.4]])
    action = jnp.asarray([[0.7, -0.2]])
    u = np.arctanh(np.asarray(action, np.float64))
    expected = scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log1p(-(action**2))
    found = coptidice.log_density(mean, log_std, action)
    np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-4)


def test_episodes_begin_after_ends_and_with_the_first_row():
    data = noise()
    order, number = coptidice.starts(data)
    ended = np.asarray(data.terminated | data.truncated)
    expected = [0, *(np.flatnonzero(ended[:-1]) + 1)]
    assert int(number) == len(expected) and sorted(order[: len(expected)].tolist()) == expected
    assert sorted(order.tolist()) == list(range(len(ended)))


# --- The cost's worst case ---


def best_tau(ell, radius):
    """The least bound over tau, and where."""
    found = scipy.optimize.minimize_scalar(
        lambda log_tau: float(coptidice.worst_case(ell, np.exp(log_tau), radius)),
        bounds=(-6.0, 6.0),
        method="bounded",
    )
    return found.fun, np.exp(found.x)


def test_the_bound_is_the_greatest_mean_within_the_divergence():
    ell, radius = np.array([0.0, 0.2, 1.0, 3.0]), 0.1
    primal = scipy.optimize.minimize(
        lambda p: -p @ ell,
        np.full(4, 0.25),
        bounds=[(1e-9, 1.0)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1.0},
            {"type": "ineq", "fun": lambda p: radius - np.sum(p * np.log(4.0 * p))},
        ],
        options={"ftol": 1e-12},
    )
    bound, tau = best_tau(jnp.asarray(ell), radius)
    assert bound == pytest.approx(-primal.fun, rel=1e-4)
    p = np.asarray(coptidice.worst_weights(jnp.asarray(ell), tau))
    np.testing.assert_allclose(p / 4.0, primal.x, atol=2e-3)
    assert np.mean(p * np.log(p)) == pytest.approx(radius, rel=0.02)
    for other in (0.3 * tau, 3.0 * tau):  # above it with every other tau
        assert float(coptidice.worst_case(jnp.asarray(ell), other, radius)) > bound


def test_the_bound_of_a_gaussian_in_closed_form():
    """Mean + std sqrt(2 epsilon), at tau = std / sqrt(2 epsilon)."""
    ell = scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000, 0.3, 2.0)
    bound, tau = best_tau(jnp.asarray(ell), 0.02)
    assert bound == pytest.approx(0.3 + 2.0 * 0.2, rel=1e-3)
    assert tau == pytest.approx(2.0 / 0.2, rel=0.02)


# --- What moves what ---


@functools.cache
def warm(config):
    """`run` of one update, jitted, and a state after some."""
    functions = coptidice.make_train(config)
    run = jax.jit(functions.run, static_argnums=3)
    state = jax.jit(functions.init)(jax.random.key(0), noise())
    for _ in range(20):
        state, _ = run(state, noise(), jax.random.key(1), 1)
    return run, state


def parts_after(run, state, data=None):
    params = run(state, noise() if data is None else data, jax.random.key(2), 1)[0].params
    return {name: np.asarray(ravel_pytree(x)[0]) for name, x in params._asdict().items()}


def different(one, other):
    return {name for name in one if np.any(one[name] != other[name])}


ALL = set(coptidice.Params._fields)


@pytest.mark.parametrize(
    ("part", "radius", "moved"),
    [
        ("multiplier", 0.01, ALL),
        ("multiplier", 0.0, {"nu", "actor", "multiplier"}),
        ("nu", 0.01, ALL),
        ("chi", 0.01, {"chi", "tau", "multiplier"}),
        ("tau", 0.01, {"chi", "tau", "multiplier"}),
        ("chi", 0.0, {"chi"}),
        ("actor", 0.01, {"actor"}),
    ],
)
def test_a_part_moves_what_it_should_and_nothing_else(part, radius, moved):
    run, state = warm(dataclasses.replace(SMALL, radius=radius))
    changed = jax.tree.map(lambda x: 1.5 * x + 0.3, getattr(state.params, part))
    other = state._replace(params=state.params._replace(**{part: changed}))
    assert different(parts_after(run, state), parts_after(run, other)) == moved


def test_without_a_radius_there_is_no_worst_case():
    run, state = warm(dataclasses.replace(SMALL, radius=0.0))
    before = {name: ravel_pytree(x)[0] for name, x in state.params._asdict().items()}
    assert different(before, parts_after(run, state)) == {"nu", "actor", "multiplier"}
    _, metrics = run(state, noise(), jax.random.key(2), 1)
    assert float(metrics["worst_cost"]) == float(metrics["cost"]) == float(metrics["cost_bound"])


def test_the_multiplier_rises_above_the_limit_and_falls_below():
    for limit, sign in ((0.0, 1.0), (200.0, -1.0)):
        run, state = warm(dataclasses.replace(SMALL, cost_limit=limit))
        after, metrics = run(state, noise(), jax.random.key(3), 1)
        assert np.sign(after.params.multiplier - state.params.multiplier) == sign
        assert float(metrics["worst_cost"]) > 0.0


@pytest.mark.parametrize(
    ("ending", "timeouts", "bootstraps"),
    [
        ("truncated", "bootstrap", True),
        ("truncated", "terminal", False),
        ("terminated", "bootstrap", False),
    ],
)
def test_what_comes_after_an_end_does_not_count_but_after_a_time_out(ending, timeouts, bootstraps):
    run, state = warm(dataclasses.replace(SMALL, timeouts=timeouts))
    data = noise()._replace(**{ending: jnp.ones(400, bool)})
    other = data._replace(next_obs=data.next_obs + 1.0)
    assert (different(*(parts_after(run, state, d) for d in (data, other))) == ALL) == bootstraps
    if not bootstraps:
        assert not different(*(parts_after(run, state, d) for d in (data, other)))


def test_blurring_moves_the_policy_alone():
    """And the policy learns from actions at the edge of the box, where densities are infinite."""
    (run, state), (blurred, _) = (warm(dataclasses.replace(SMALL, blur=x)) for x in (0.0, 0.1))
    assert different(parts_after(run, state), parts_after(blurred, state)) == {"actor"}
    edge = noise()._replace(action=jnp.sign(noise().action))
    assert all(np.isfinite(x).all() for x in parts_after(run, state, edge).values())


# --- Problems with known answers ---

GAMMA, ALPHA, BOLD = 0.9, 1.0, 0.5
LEARNING = coptidice.Config(
    hidden=(16,),
    batch_size=256,
    num_updates=2_000,
    actor_rate=1e-2,
    nu_rate=1e-2,
    dual_rate=1e-2,
    discount=GAMMA,
    alpha=ALPHA,
    reward_scale=1.0,
    radius=0.0,
    action_unit="box",
)


class Rows(NamedTuple):
    """Of a problem with three situations, the first of which begins; (N,) each."""

    at: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    to: np.ndarray
    share: np.ndarray  # of the data

    def data(self):
        """Episodes of 5 steps: one of the first situation, four of where it led."""
        times = np.round(40 * self.share).astype(int)
        begin = np.repeat(np.arange(len(self.at)), times)
        begin = begin[self.at[begin] == 0]
        stay = [np.resize(np.flatnonzero(self.at == place), 4) for place in range(3)]
        rows = np.concatenate([[n, *stay[self.to[n]]] for n in begin])
        rows, place = np.tile(rows, 50), jnp.eye(3)
        data = transitions(
            place[self.at[rows]],
            jnp.asarray(self.action[rows, None], jnp.float32),
            jnp.asarray(self.cost[rows], jnp.float32),
            place[self.to[rows]],
            reward=jnp.asarray(self.reward[rows], jnp.float32),
        )
        return data._replace(truncated=jnp.arange(len(rows)) % 5 == 4)


# The bold way leads to where every step pays 1 and costs 1, the other one to where nothing happens.
FORK = (
    (0, BOLD, 0.0, 0.0, 1, 0.1),
    (0, -BOLD, 0.0, 0.0, 2, 0.1),
    (1, 0.0, 1.0, 1.0, 1, 0.4),
    (2, 0.0, 0.0, 0.0, 2, 0.4),
)
# The same with chance: the costs of a place are 0 or 2, rewards of the other 0.5 or -0.5.
CHANCE = (
    *FORK[:2],
    (1, 0.0, 1.0, 2.0, 1, 0.2),
    (1, 0.0, 1.0, 0.0, 1, 0.2),
    (2, 0.0, 0.5, 0.0, 2, 0.2),
    (2, 0.0, -0.5, 0.0, 2, 0.2),
)
FORK, CHANCE = (Rows(*(np.array(x) for x in zip(*rows, strict=True))) for rows in (FORK, CHANCE))


def visits(x):
    """Of each row of the fork, discounted, normalised, if the bold way is taken with share x."""
    begin, later = 1.0 - GAMMA, GAMMA
    return np.array([begin * x, begin * (1.0 - x), later * x, later * (1.0 - x)])


def objective(x):
    w = jnp.asarray(visits(x) / FORK.share)
    f = np.asarray(coptidice.divergence("softchi", w), np.float64)
    return visits(x) @ FORK.reward - ALPHA * FORK.share @ f


def episode_limit(cost):
    """That of an episode, whose normalised discounted cost is `cost`."""
    return cost / ((1.0 - GAMMA) * discounted_limit(1.0, GAMMA, 200))


@functools.cache
def learned(problem, limit, **changes):
    """w of each row of "fork" or "chance", the first situation's action, and metrics at the end."""
    rows = {"fork": FORK, "chance": CHANCE}[problem]
    config = dataclasses.replace(LEARNING, cost_limit=episode_limit(limit), **changes)
    functions = coptidice.make_train(config)
    run, data = jax.jit(functions.run, static_argnums=3), rows.data()
    state = jax.jit(functions.init)(jax.random.key(0), data)
    for _ in range(20):
        state, metrics = run(state, data, jax.random.key(1), 100)
    nu = np.asarray(MLP(config.hidden, 1).apply(state.params.nu, jnp.eye(3))[:, 0])
    multiplier = float(jax.nn.softplus(state.params.multiplier))
    e = rows.reward - multiplier * rows.cost + GAMMA * nu[rows.to] - nu[rows.at]
    w = np.asarray(coptidice.correction(config.divergence, jnp.asarray(e / ALPHA)), np.float64)
    action = float(functions.policy(state)(jnp.eye(3)[0], jax.random.key(1))[0])
    return w, action, {name: float(x) for name, x in metrics.items()}


def policy_of(x):
    """The mean before tanh of actions, the bold one with share x."""
    return np.tanh((2.0 * x - 1.0) * np.arctanh(BOLD))


def free_share():
    """How often the bold way is taken without a limit."""
    return scipy.optimize.minimize_scalar(lambda x: -objective(x), bounds=(0.0, 1.0)).x


def test_the_bold_way_is_taken_as_often_as_the_limit_allows():
    """GAMMA x is what it costs: the answer, the price of the limit and the policy are known."""
    w, action, metrics = learned("fork", 0.27)
    assert free_share() > 0.6  # without the limit it would be taken twice as often
    np.testing.assert_allclose(w * FORK.share, visits(0.3), atol=0.02)
    assert metrics["cost"] == pytest.approx(0.27, abs=0.02)
    price = (objective(0.31) - objective(0.29)) / 0.02 / GAMMA
    assert metrics["multiplier"] == pytest.approx(price, rel=0.05)
    assert action == pytest.approx(policy_of(0.3), abs=0.06)
    assert metrics["mass"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("limit", [1.5, 0.27], ids=["wide", "released"])
def test_a_limit_that_does_not_bind_has_no_price(limit):
    """As released, a limit of 0.27 is one of 2.7, and no distribution costs more than 1."""
    w, action, metrics = learned("fork", limit, released_limit=limit < 1.0)
    np.testing.assert_allclose(w * FORK.share, visits(free_share()), atol=0.03)
    assert metrics["multiplier"] < 0.1
    assert action == pytest.approx(policy_of(free_share()), abs=0.06)


def worst_data(w, rows, radius):
    """The distribution of rows near their shares under which the mean of w c is greatest, while w
    is still stationary: by a general solver."""

    def balance(p):
        place = np.eye(3)
        change = (GAMMA * place[rows.to] - place[rows.at]).T @ (p * w)
        return (1.0 - GAMMA) * place[0] + change

    found = scipy.optimize.minimize(
        lambda p: -np.sum(p * w * rows.cost),
        rows.share,
        bounds=[(1e-9, 1.0)] * len(w),
        constraints=[
            {"type": "eq", "fun": balance},
            {"type": "eq", "fun": lambda p: p.sum() - 1.0},
            {"type": "ineq", "fun": lambda p: radius - np.sum(p * np.log(p / rows.share))},
        ],
        options={"ftol": 1e-10, "maxiter": 500},
    )
    assert found.success
    return found.x


def test_a_cautious_limit_holds_for_the_worst_data_that_are_near():
    w, _, metrics = learned("chance", 0.27, radius=0.01)
    p = worst_data(w, CHANCE, 0.01)
    assert p[2] > 1.1 * p[3]  # costs are more frequent
    expected = np.sum(p * w * CHANCE.cost)
    assert expected == pytest.approx(0.27, abs=0.02)
    assert metrics["worst_cost"] == pytest.approx(expected, abs=0.015)
    assert metrics["cost_bound"] == pytest.approx(expected, abs=0.015)
    plain = learned("chance", 0.27)[2]
    assert plain["cost"] == pytest.approx(0.27, abs=0.02)
    assert metrics["cost"] < plain["cost"] - 0.02
    assert metrics["multiplier"] > 1.05 * plain["multiplier"]


def test_where_one_thing_leads_to_one_caution_changes_nothing():
    """At the fork only one distribution keeps w stationary: the data's."""
    w, _, metrics = learned("fork", 0.27, radius=0.02)
    np.testing.assert_allclose(worst_data(w, FORK, 0.02), FORK.share, atol=0.01)
    assert metrics["cost"] == pytest.approx(0.27, abs=0.02)
    assert metrics["cost_bound"] == pytest.approx(0.27, abs=0.02)


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limit": -1.0}, "cost_limit = -1.0; allowed: 0 or more"),
        ({"alpha": 0.0}, "alpha = 0.0; allowed: above 0"),
        ({"radius": -0.1}, "radius = -0.1; allowed: 0 or more"),
        ({"discount": 1.0}, "discount = 1.0; allowed: 0 or more, below 1"),
        ({"divergence": "kl"}, "divergence = 'kl'; allowed: softchi, chi2"),
        ({"num_updates": 0}, "num_updates = 0; allowed: 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        coptidice.make_train(dataclasses.replace(coptidice.Config(), **setting))
    assert message in str(error.value)
