"""The PICNN layer: convexity, what the cost model learns, and what a correction does."""

import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from algos import bc, iql, picnn
from algos.common import Algorithm
from polycstr_jax.data import Normaliser, TrainingData

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ACTIVATIONS = list(picnn.CONVEX_ACTIVATIONS)
TRACKS = ["default", "published"]
ACTION_LOW, ACTION_HIGH = np.asarray([-0.8, -0.3]), np.asarray([0.9, 0.2])
in_double = pytest.mark.usefixtures("double")


def random_params(config, seed, scale):
    """Weights, raw ones too, drawn from a normal distribution."""
    network = picnn.make_network(config)
    one = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(9), jnp.zeros(2))
    leaves, structure = jax.tree.flatten(one)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    shapes = [(config.num_models, *leaf.shape) for leaf in leaves]
    draws = [scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    return jax.tree.unflatten(structure, draws)


# --- Convexity ---


def bulge(cost, start, end, share):
    """How far c rises above its chords between points (obs, action), relative to |c|.

    At most 0 of a convex cost; the largest of all chords.
    """
    between = tuple(share * x + (1.0 - share) * y for x, y in zip(start, end, strict=True))
    points = (jnp.concatenate(x) for x in zip(between, start, end, strict=True))
    middle, left, right = jnp.split(jax.vmap(cost)(*points), 3)
    above = middle - (share[:, 0] * left + (1.0 - share[:, 0]) * right)
    return jnp.max(above) / (1.0 + jnp.max(jnp.abs(middle)))


def lowest_curvature(cost, obs, action):
    """The smallest eigenvalue of the Hessians in the action, relative to the largest."""
    curvature = jnp.linalg.eigvalsh(jax.vmap(jax.hessian(cost, argnums=1))(obs, action))
    return curvature.min() / (1.0 + jnp.abs(curvature).max())


def worst_of_many(config, jointly=False):
    """The largest bulge and the lowest curvature over random weights, states and actions."""

    @jax.jit
    def measure(params, key):
        keys = jax.random.split(key, 5)
        start, end = (
            (jax.random.normal(keys[n], (200, 9)), 2.0 * jax.random.normal(keys[n + 1], (200, 2)))
            for n in (0, 2)
        )
        if not jointly:
            end = (start[0], end[1])

        def cost(obs, action):
            return picnn.make_cost(config)(params, obs, action)

        share = jax.random.uniform(keys[4], (200, 1))
        return bulge(cost, start, end, share), lowest_curvature(cost, *start)

    worst = [
        measure(random_params(config, seed, scale), jax.random.key(seed))
        for seed, scale in itertools.product(range(3), (0.3, 1.0, 3.0))
    ]
    bulges, curvatures = zip(*worst, strict=True)
    return float(max(bulges)), float(min(curvatures))


@in_double
@pytest.mark.parametrize(
    ("state_path", "activation", "members"),
    [*itertools.product(["mlp", "linear"], ACTIVATIONS, [1]), ("mlp", "softplus", 5)],
)
def test_cost_is_convex_in_the_action_for_every_state(state_path, activation, members):
    config = picnn.Config(
        hidden=(12, 12),
        state_path=state_path,
        activation=activation,
        num_models=members,
        uncertainty=0.0 if members == 1 else 1.0 / math.sqrt(members - 1),  # the largest allowed
    )
    picnn.make_train(config)  # is not refused
    above, curvature = worst_of_many(config)
    assert above <= 1e-12
    assert curvature >= -1e-12


@in_double
def test_only_the_linear_state_path_is_convex_in_the_state_too():
    config = picnn.Config(hidden=(12, 12))
    assert worst_of_many(replace(config, state_path="linear"), jointly=True)[0] <= 1e-12
    assert worst_of_many(replace(config, state_path="mlp"), jointly=True)[0] > 0.01


@in_double
def test_the_standard_network_is_not_convex():
    above, curvature = worst_of_many(picnn.Config(hidden=(12, 12), model="nn"))
    assert above > 0.01
    assert curvature < -0.01


@in_double
def test_without_the_reparametrisation_convexity_is_lost(monkeypatch):
    monkeypatch.setattr(picnn, "nonnegative", lambda raw: raw)
    above, curvature = worst_of_many(picnn.Config(hidden=(12, 12)))
    assert above > 0.01
    assert curvature < -0.01


def test_pessimistic_is_the_mean_and_k_standard_deviations():
    costs = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    expected = costs.mean(axis=0) + 0.5 * costs.std(axis=0)
    np.testing.assert_allclose(picnn.pessimistic(jnp.asarray(costs), 0.5), expected, atol=1e-5)
    slope = jax.grad(lambda c: picnn.pessimistic(c, 0.5))(jnp.ones(4))
    np.testing.assert_allclose(slope, 0.25, atol=1e-6)  # finite where all members agree


@in_double
@pytest.mark.parametrize("members", [2, 3, 5])
def test_beyond_its_limit_the_charge_for_disagreement_is_not_convex(members):
    limit = 1.0 / math.sqrt(members - 1)

    def cost(action, uncertainty):  # one member a parabola far below the others, which are flat
        return picnn.pessimistic(jnp.asarray([action**2] + [10.0] * (members - 1)), uncertainty)

    def bend(uncertainty):
        return cost(1.0, uncertainty) - 2.0 * cost(0.0, uncertainty) + cost(-1.0, uncertainty)

    assert bend(0.5 * limit) > 0.1 / members
    assert abs(bend(limit)) < 1e-9  # the limit is sharp
    assert bend(1.1 * limit) < -0.1 / members
    for settings in ({"uncertainty": 1.001 * limit}, {"uncertainty": -0.1}):
        with pytest.raises(ValueError, match=f"uncertainty = .* num_models = {members}"):
            picnn.make_train(picnn.Config(num_models=members, **settings))


def test_weights_on_hidden_units_are_never_negative_and_never_stuck():
    raw = jnp.asarray([-1e4, -80.0, -5.0, -0.1, 0.0, 0.1, 5.0, 80.0, 1e4])
    weight = picnn.nonnegative(raw)
    assert np.all(weight >= 0.0) and np.all(weight[1:] > 0.0)
    slope = jax.vmap(jax.grad(picnn.nonnegative))(raw)
    np.testing.assert_allclose(slope[1:], scipy.special.expit(np.asarray(raw[1:])), rtol=1e-5)
    assert np.all(slope[1:] > 0.0)


@pytest.mark.parametrize("state_path", ["mlp", "linear"])
def test_with_no_weight_on_hidden_units_the_cost_is_a_plane_that_still_slopes(state_path):
    # The action enters every layer, so also the last: c = Wa a + (what the state says).
    config = picnn.Config(hidden=(12, 12), state_path=state_path)
    params = random_params(config, 0, 1.0)
    raw = {name: -1e4 + weight for name, weight in params["params"].items() if "raw" in name}
    assert len(raw) == 2
    action = jnp.asarray(np.random.default_rng(0).normal(size=(100, 2)), jnp.float32)

    @jax.jit
    def slopes(params):
        cost = picnn.make_cost(config)
        return jax.vmap(jax.grad(lambda a: cost(params, jnp.ones(9), a)))(action)

    flat, curved = slopes({"params": {**params["params"], **raw}}), slopes(params)
    np.testing.assert_allclose(flat, np.tile(flat[:1], (100, 1)), atol=1e-6)
    assert np.all(np.abs(flat[0]) > 0.01)
    assert np.ptp(curved, axis=0).min() > 0.1


def test_softplus_has_the_value_slope_and_curvature_of_softplus(x64):
    x = jnp.concatenate([jnp.linspace(-30.0, 30.0, 241), jnp.asarray([-1e4, -80.0, 80.0, 1e4])])
    exact = np.asarray(x, np.float64)
    rtol, rounding = (1e-12, 1e-15) if x64 else (2e-6, 2e-7)
    slope = scipy.special.expit(exact)
    first, second = jax.grad(picnn.softplus), jax.grad(jax.grad(picnn.softplus))
    curvature = slope * scipy.special.expit(-exact)
    np.testing.assert_allclose(picnn.softplus(x), np.logaddexp(exact, 0.0), rtol=rtol)
    np.testing.assert_allclose(jax.vmap(first)(x), slope, rtol=rtol)
    np.testing.assert_allclose(jax.vmap(second)(x), curvature, rtol=rtol, atol=rounding)


# --- Data and a base policy ---


def transitions(seed=0, count=512) -> TrainingData:
    """Random states and actions in a range that is not symmetric; episodes of 64."""
    rng = np.random.default_rng(seed)
    action = jnp.asarray(rng.uniform(ACTION_LOW, ACTION_HIGH, (count, 2)), jnp.float32)
    obs = jnp.asarray(rng.normal(size=(count, 9)), jnp.float32)
    nothing = jnp.zeros(count)
    return TrainingData(
        obs=obs,
        action=action,
        reward=nothing,
        cost=nothing,
        constraint=nothing,
        next_obs=obs,
        terminated=jnp.zeros(count, bool),
        truncated=jnp.arange(count) % 64 == 63,
        tracking_cost=jnp.asarray(rng.uniform(5.0, 30.0, count), jnp.float32),
        normaliser=Normaliser(
            obs_mean=jnp.full(9, 5.0),
            obs_std=jnp.full(9, 3.0),
            action_mean=jnp.asarray([0.1, -0.05]),
            action_std=jnp.asarray([0.5, 0.1]),
            action_low=jnp.asarray(ACTION_LOW, jnp.float32),
            action_high=jnp.asarray(ACTION_HIGH, jnp.float32),
            reward_std=jnp.ones(()),
        ),
    )


def raw_obs(count=40, seed=3):
    """Observations as the environment gives them, tracking errors above 10 among them."""
    obs = np.random.default_rng(seed).normal(5.0, 3.0, (count, 9))
    return jnp.asarray(obs, jnp.float32)


def constant_policy(track="default"):
    """A base that always takes the action which is its state."""

    def train(rng, data):
        return jnp.zeros(2), {}

    def policy(state):
        return lambda obs, rng: state

    return Algorithm(None, None, policy, train, bc.Config(track=track))


def layer(base_action=(0.2, -0.1), spread=1.0, **settings):
    """Configuration, state, and the actions at observations (N, 9) of a constant policy with an
    untrained cost model on top, its weights times `spread`."""
    config = picnn.Config(hidden=(12, 12), **{"gate": 0.0, **settings})
    functions = picnn.make_train(config, base=constant_policy(config.track))
    state = functions.init(jax.random.key(1), transitions(), jnp.asarray(base_action))
    state = state._replace(params=jax.tree.map(lambda x: spread * x, state.params))

    @jax.jit
    def actions(state, obs):
        return jax.vmap(functions.policy(state), (0, None))(obs, jax.random.key(0))

    return config, state, actions


# --- Targets ---

LENGTHS = (7, 5)
ENDS = np.isin(np.arange(12), [6, 11])
TARGETS = [("one_step", 0.9, 3), ("n_step", 0.9, 3), ("n_step", 0.9, 1), ("n_step", 0.9, 20)]
TARGETS += [("discounted", 0.9, 3), ("discounted", 0.0, 3)]


def targets_of(costs, target, discount, num_steps):
    return picnn.cost_targets(costs, jnp.asarray(ENDS), target, discount, num_steps)


@pytest.mark.parametrize(("target", "discount", "num_steps"), TARGETS)
def test_targets_are_means_of_the_costs_to_come(target, discount, num_steps):
    costs = np.random.default_rng(0).uniform(1.0, 9.0, sum(LENGTHS))
    expected = []
    for episode in np.split(costs, [LENGTHS[0]]):
        held = np.concatenate([episode, np.full(1_000, episode[-1])])
        for t in range(len(episode)):
            if target == "one_step":
                weights = np.ones(1)
            elif target == "n_step":
                weights = np.full(num_steps, 1.0 / num_steps)
            else:
                weights = (1.0 - discount) * discount ** np.arange(900)
            expected.append(weights @ held[t : t + weights.size])
    computed = targets_of(jnp.asarray(costs, jnp.float32), target, discount, num_steps)
    np.testing.assert_allclose(computed, expected, rtol=1e-5)


@pytest.mark.parametrize(("target", "discount", "num_steps"), TARGETS)
def test_a_target_knows_only_later_costs_of_its_own_episode(target, discount, num_steps):
    costs = jnp.ones(sum(LENGTHS))
    weights = jax.jacobian(targets_of)(costs, target, discount, num_steps)
    row, column = np.indices(weights.shape)
    episode = np.repeat([0, 1], LENGTHS)
    foreign = (column < row) | (episode[row] != episode[column])
    np.testing.assert_array_equal(np.asarray(weights)[foreign], 0.0)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)  # a constant stays what it is


# --- Gradient steps ---


@in_double
@pytest.mark.parametrize("activation", ["softplus", "elu"])
def test_small_gradient_steps_only_ever_lower_the_cost(activation):
    config = picnn.Config(hidden=(12, 12), activation=activation)
    side = jnp.linspace(-1.0, 1.0, 15)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)

    @jax.jit
    def costs_of_steps(params, obs, b):
        def cost(b):
            return picnn.make_cost(config)(params, obs, b)

        steepest = jnp.linalg.eigvalsh(jax.vmap(jax.hessian(cost))(grid)).max()
        rate = 0.5 / steepest  # a step of at most 1 / the largest curvature never overshoots

        def step(b, _):
            return picnn.gradient_steps(cost, b, -1.0, 1.0, rate, 1), cost(b)

        end, costs = jax.lax.scan(step, b, None, 10)
        together = picnn.gradient_steps(cost, b, -1.0, 1.0, rate, 10)
        return jnp.append(costs, cost(end)), jnp.abs(together - end).max()

    for seed in range(3):
        rng = np.random.default_rng(seed)
        obs, b = rng.normal(size=(30, 9)), rng.uniform(-1.0, 1.0, (30, 2))
        params = random_params(config, seed, 1.0)
        costs, apart = jax.vmap(costs_of_steps, (None, 0, 0))(params, obs, b)
        assert apart.max() < 1e-12  # ten steps are ten times one
        assert np.all(np.diff(costs, axis=1) <= 1e-12)
        assert np.median(costs[:, 10] - costs[:, 0]) < -1e-3


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("precondition", [True, False])
def test_gradient_steps_are_those_of_the_documentation(track, precondition):
    # In units of the action: a - eta P grad_a c, where c is the cost in its own units. P = 1,
    # or, preconditioned, a moves in units of its standard deviation and c is standardised. On
    # the published track, `the action` is what its data code scales to [-1, 1].
    eta = 0.05 if precondition else 0.005
    config, state, actions = layer(track=track, precondition=precondition, eta=eta, num_steps=3)
    normaliser, obs = transitions().normaliser, raw_obs()
    half_width = jnp.asarray((ACTION_HIGH - ACTION_LOW) / 2.0, jnp.float32)
    if track == "published":
        shift, scale = jnp.asarray(ACTION_LOW, jnp.float32) + half_width, half_width
        low, high = ACTION_LOW.astype(np.float32), ACTION_HIGH.astype(np.float32)
    else:
        shift, scale, low, high = normaliser.action_mean, normaliser.action_std, -1.0, 1.0

    def cost(action, obs):
        seen = ((obs - 5.0) / 3.0)[3 if track == "published" else 0 :]
        standardised = picnn.make_cost(config)(state.params, seen, (action - shift) / scale)
        return state.target_mean + state.target_std * standardised

    if precondition:
        metric = normaliser.action_std**2 / state.target_std
    else:
        metric = half_width**2 if track == "published" else 1.0

    @jax.jit
    @jax.vmap
    def by_hand(obs):
        action = jnp.asarray([0.2, -0.1])
        for _ in range(3):
            action = jnp.clip(action - eta * metric * jax.grad(cost)(action, obs), low, high)
        return action

    expected = by_hand(obs)
    assert np.abs(expected - jnp.asarray([[0.2, -0.1]])).max() > 0.01
    np.testing.assert_allclose(actions(state, obs), expected, atol=2e-6)


def test_no_step_is_the_base_policy_itself():
    data = transitions()
    base = bc.make_train(bc.Config(hidden=(16,), num_updates=20, batch_size=32))
    for correction in ("gradient", "newton", "exact"):
        config = picnn.Config(hidden=(8,), num_steps=0, correction=correction, num_updates=3)
        functions = picnn.make_train(config, base=base)
        state, _ = jax.jit(functions.train)(jax.random.key(0), data)
        corrected, plain = (
            jax.jit(jax.vmap(act, (0, None)))(raw_obs(), jax.random.key(0))
            for act in (functions.policy(state), base.policy(state.base))
        )
        np.testing.assert_array_equal(corrected, plain)


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("correction", ["gradient", "newton", "exact"])
def test_corrected_actions_stay_in_the_box_however_far_they_are_pushed(correction, track):
    low, high = (ACTION_LOW, ACTION_HIGH) if track == "published" else (-np.ones(2), np.ones(2))
    _, state, actions = layer(track=track, correction=correction, eta=1e4, spread=2.0)
    chosen = np.asarray(actions(state, raw_obs()))
    assert np.all(chosen >= low - 1e-6) and np.all(chosen <= high + 1e-6)
    assert np.any(np.isclose(chosen, low) | np.isclose(chosen, high))  # and reach its end


@pytest.mark.parametrize("correction", ["gradient", "newton", "exact"])
def test_below_the_gate_the_base_policy_acts_alone(correction):
    _, state, actions = layer(correction=correction, eta=0.3, gate=10.0)
    errors = np.asarray([[4.0, -5.0], [0.0, 0.0], [6.0, -4.0], [6.0, -5.0], [0.0, 10.5]])
    obs = raw_obs(5).at[:, 5:7].set(errors.astype(np.float32))
    base_action = jnp.tile(jnp.asarray([[0.2, -0.1]]), (5, 1))
    moved = np.any(actions(state, obs) != base_action, axis=1)
    np.testing.assert_array_equal(moved, [False, False, False, True, True])  # at 10: not above
    # The gate in the state decides: it can be tuned without compiling anything anew.
    open_gate = state._replace(gate=jnp.asarray(0.0))
    moved = np.any(actions(open_gate, obs) != base_action, axis=1)
    np.testing.assert_array_equal(moved, [True, False, True, True, True])


@pytest.mark.parametrize("correction", ["gradient", "newton"])
def test_the_step_size_in_the_state_is_that_of_the_configuration(correction):
    _, state, actions = layer(correction=correction, eta=0.1)
    _, other_state, other_actions = layer(correction=correction, eta=0.2)
    small, large = actions(state, raw_obs()), other_actions(other_state, raw_obs())
    tuned = state._replace(eta=other_state.eta)
    np.testing.assert_array_equal(actions(tuned, raw_obs()), large)
    assert np.all(np.any(small != large, axis=1))


# --- Newton steps ---


COUPLED = np.asarray([[1.0, 0.9], [0.9, 1.0]])


def quadratic(hessian, minimiser):
    return lambda b: 0.5 * (b - minimiser) @ hessian @ (b - minimiser) + 3.0


@jax.jit
def newton_step(hessian, minimiser, b, eta, damping):
    """One step down a quadratic over [-1, 1]."""
    return picnn.newton_steps(quadratic(hessian, minimiser), b, -1.0, 1.0, eta, damping, 1)


@jax.jit
def solve_quadratic(hessian, minimiser, b, low, high):
    """The minimiser of a quadratic over a box, and what is left of the gradient."""
    b = jnp.clip(b, low, high)
    return picnn.minimise_over_box(quadratic(hessian, minimiser), b, low, high)[:2]


@in_double
def test_one_undamped_newton_step_solves_a_quadratic():
    minimiser = np.asarray([0.4, -0.7])
    for start in ([0.9, 0.9], [-0.9, 0.9], [0.0, 0.0]):
        b = newton_step(COUPLED, minimiser, np.asarray(start), 1.0, 0.0)
        np.testing.assert_allclose(b, minimiser, atol=1e-12)


@in_double
def test_a_damped_newton_step_adds_the_damping_to_the_curvature():
    start, minimiser, eta, damping = np.asarray([0.9, 0.8]), np.asarray([0.4, -0.7]), 0.5, 0.3
    gradient = COUPLED @ (start - minimiser)
    expected = start - eta * np.linalg.solve(COUPLED + damping * np.eye(2), gradient)
    b = newton_step(COUPLED, minimiser, start, eta, damping)
    np.testing.assert_allclose(b, expected, atol=1e-12)


@in_double
def test_a_newton_step_holds_what_is_pressed_against_a_bound_and_solves_for_the_rest():
    # The first entry wants to go to 3 and is at its bound: the second minimises alone,
    # at -1 - 0.9 (1 - 3) = 0.8. Pressed inwards instead, an entry at a bound is free.
    start = np.asarray([1.0, 0.0])
    for minimiser, end in (([3.0, -1.0], [1.0, 0.8]), ([0.4, -0.7], [0.4, -0.7])):
        b = newton_step(COUPLED, np.asarray(minimiser), start, 1.0, 0.0)
        np.testing.assert_allclose(b, end, atol=1e-12)


# --- The exact minimiser ---


@in_double
@pytest.mark.parametrize("minimiser", [(0.3, -0.5), (3.0, -0.2), (3.0, -4.0), (1.0, 0.5)])
def test_the_minimiser_of_a_quadratic_is_that_of_bounded_least_squares(minimiser):
    root, minimiser = np.linalg.cholesky(COUPLED).T, np.asarray(minimiser)
    expected = scipy.optimize.lsq_linear(root, root @ minimiser, (-1.0, 1.0), "bvls").x
    low, high = np.asarray([-0.5, -0.2]), np.asarray([0.6, 1.5])
    for start in ([0.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [0.3, -0.9]):
        b, left = solve_quadratic(COUPLED, minimiser, np.asarray(start), -np.ones(2), np.ones(2))
        assert left <= 1e-5
        np.testing.assert_allclose(b, expected, atol=1e-5 / 0.1)  # 0.1: the smallest curvature
        # Without coupling, the box simply cuts it off.
        b, _ = solve_quadratic(np.diag([1.0, 40.0]), minimiser, np.asarray(start), low, high)
        np.testing.assert_allclose(b, np.clip(minimiser, low, high), atol=1e-5)


@in_double
def test_an_action_a_hair_from_a_bound_still_finds_the_minimiser():
    # As it comes from a saturated tanh. The full Newton direction of the minimum at (3, -1) runs
    # into the bound at once, and along it the second entry would go the wrong way.
    for hair in (1e-3, 1e-5, 1e-7, 1e-9, 0.0):
        start = np.asarray([1.0 - hair, 0.0])
        box = (-np.ones(2), np.ones(2))
        b, left = solve_quadratic(COUPLED, np.asarray([3.0, -1.0]), start, *box)
        np.testing.assert_allclose(b, [1.0, 0.8], atol=1e-5, err_msg=f"hair = {hair}")
        assert left <= 1e-5


@in_double
@pytest.mark.parametrize("slope", [1.0, 10.0, 30.0, 100.0])
def test_the_minimiser_is_found_from_where_the_cost_is_all_but_straight(slope):
    # Far from its minimum a softplus network is linear: its curvature underflows.
    def valley(b):
        return jnp.sum(jax.nn.softplus(slope * b) + jax.nn.softplus(-slope * b))

    b, left, _ = picnn.minimise_over_box(valley, jnp.asarray([20.0, -13.0]), -20.0, 20.0)
    np.testing.assert_allclose(b, 0.0, atol=1e-4)
    assert left <= 1e-5


@pytest.mark.parametrize("activation", ["softplus", "elu"])
def test_nothing_in_the_box_costs_less_than_the_minimiser(activation, x64):
    config = picnn.Config(hidden=(12, 12), activation=activation)
    side = jnp.linspace(0.0, 1.0, 41)
    corners = np.asarray([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    edges = np.asarray([[1e-6, 0.3], [1.0 - 1e-6, 0.7], [0.4, 1e-6], [0.6, 1.0 - 1e-6]])
    unit_grid = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)

    @jax.jit
    def solve(params, obs, b, low, high):
        def cost(b):
            return picnn.make_cost(config)(params, obs, b)

        def gradient_step(b, _):
            return (picnn.gradient_steps(cost, b, low, high, 0.1, 1),) * 2

        def newton_step(b, _):
            return (picnn.newton_steps(cost, b, low, high, 1.0, 0.1, 1),) * 2

        best, left, _ = picnn.minimise_over_box(cost, b, low, high)
        away = jnp.abs(best - jnp.clip(best - jax.grad(cost)(best), low, high)).max()
        others = [jax.lax.scan(step, b, None, 30)[1] for step in (gradient_step, newton_step)]
        others += [low[None] + unit_grid * (high - low)[None], b[None]]
        return best, left, away, cost(best), jax.vmap(cost)(jnp.concatenate(others))

    for seed, width in itertools.product(range(3), (1.0, 30.0)):
        rng = np.random.default_rng(seed)
        low, high = width * np.asarray([-1.0, -0.7]), width * np.asarray([0.8, 1.0])
        start = np.concatenate([corners, edges, rng.uniform(size=(32, 2))])
        start = np.clip(low + start * (high - low), low, high)
        params, obs = random_params(config, seed, 1.0), jnp.asarray(rng.normal(size=(40, 9)))
        box = (jnp.asarray(low), jnp.asarray(high))
        solved = jax.vmap(solve, (None, 0, 0, None, None))(params, obs, jnp.asarray(start), *box)
        best, left, away, least, others = jax.device_get(solved)
        assert np.all((best >= low - 1e-6) & (best <= high + 1e-6))
        assert np.all(others.max(axis=1) > least + 0.1)  # there is something to gain
        rounding = 1e-10 if x64 else 1e-6 * (1.0 + np.abs(others).max(axis=1))
        assert np.all(least <= others.min(axis=1) + rounding)
        np.testing.assert_allclose(left, away, rtol=1e-3, atol=1e-9 if x64 else 1e-4)
        if x64:
            assert left.max() <= 1e-5


# --- What the cost model learns ---


def best_action(obs):
    """Of standardised observations (N, 9)."""
    return jnp.asarray([[0.05, -0.05]]) + jnp.asarray([[0.5, 0.2]]) * jnp.tanh(obs[:, 3:5])


def true_cost(obs, action):
    off = (action - best_action(obs)) / jnp.asarray([[0.5, 0.2]])
    return 10.0 + 4.0 * jnp.sum(off**2, axis=-1)


@pytest.fixture(scope="module", params=TRACKS)
def trained(request):
    """A BC of random actions, and a cost model that saw a valley around the best action."""
    data = transitions(count=4_096)
    data = data._replace(tracking_cost=true_cost(data.obs, data.action))
    base = bc.make_train(
        bc.Config(hidden=(16,), batch_size=64, num_updates=300, track=request.param)
    )
    config = picnn.Config(
        track=request.param,
        hidden=(32, 32),
        target="one_step",
        batch_size=128,
        num_updates=800,
        learning_rate=1e-2,
        gate=0.0,
    )
    functions = picnn.make_train(config, base=base)
    state, metrics = jax.jit(functions.train)(jax.random.key(0), data)
    return config, base, state, metrics


def test_the_cost_model_explains_what_it_has_not_seen(trained):
    config, _, state, metrics = trained
    fresh = transitions(seed=1)
    if config.track == "published":
        shift, scale = (ACTION_LOW + ACTION_HIGH) / 2.0, (ACTION_HIGH - ACTION_LOW) / 2.0
        obs = fresh.obs[:, 3:]
    else:
        shift, scale = (np.asarray(x) for x in state.normaliser[2:4])  # mean and std
        obs = fresh.obs
    b = (np.asarray(fresh.action) - shift) / scale
    predicted = picnn.make_cost(config)(state.params, obs, b)
    predicted = state.target_mean + state.target_std * predicted
    actual = true_cost(fresh.obs, fresh.action)
    assert 1.0 - jnp.mean((predicted - actual) ** 2) / jnp.var(actual) > 0.9
    assert metrics["cost_loss"] < 0.5


@pytest.mark.parametrize(
    "settings",
    [
        {"correction": "gradient", "num_steps": 5, "eta": 1.0},
        {"correction": "newton", "num_steps": 5},
        {"correction": "exact"},
    ],
    ids=lambda settings: settings["correction"],
)
def test_corrections_move_a_policy_without_aim_towards_the_best_action(trained, settings):
    config, base, state, _ = trained
    functions = picnn.make_train(replace(config, **settings), base=base)
    eta = settings.get("eta", 1.0)
    act = functions.policy(state._replace(eta=jnp.asarray(eta)))
    obs = transitions(seed=1).obs[:200]

    def distance(act):
        actions = jax.jit(jax.vmap(act, (0, None)))(5.0 + 3.0 * obs, jax.random.key(0))
        return float(jnp.mean(jnp.linalg.norm(actions - best_action(obs), axis=1)))

    assert distance(act) < 0.4 * distance(base.policy(state.base))


def test_one_update_moves_every_weight_on_hidden_units():
    config = picnn.Config(hidden=(12, 12), num_updates=10, num_models=2, learning_rate=1e-3)
    functions = picnn.make_train(config, base=constant_policy())
    data = transitions()
    before = functions.init(jax.random.key(0), data, jnp.zeros(2))
    after, _ = jax.jit(functions.run, static_argnums=3)(before, data, jax.random.key(1), 1)
    for layer_name in ("raw_1", "raw_2"):
        old, new = (state.params["params"][layer_name] for state in (before, after))
        # Adam's first step is the learning rate, for every gradient that is not zero.
        np.testing.assert_allclose(np.abs(new - old), 1e-3, rtol=0.02)


# --- The base policy ---


def test_the_base_that_is_named_is_the_base_that_is_made():
    for name, module in (("bc", bc), ("iql", iql)):
        for track in TRACKS:
            made = picnn.make_train(picnn.Config(base=name, track=track)).base
            assert made.config == replace(module.PRESETS["default"], track=track)


def test_every_preset_can_be_made():
    for preset in picnn.PRESETS.values():
        assert picnn.make_train(preset).config is preset


# --- Bad input ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh"}, "activation = 'tanh' .* allowed: softplus, relu, elu"),
        ({"activation": "gelu"}, "activation = 'gelu' .* allowed: softplus, relu, elu"),
        ({"activation": "silu"}, "activation = 'silu' .* allowed: softplus, relu, elu"),
        ({"base": "sac"}, "base = 'sac'; allowed: bc, iql"),
        ({"track": "x"}, "track = 'x'; allowed: default, published"),
        ({"model": "icnn"}, "model = 'icnn'; allowed: picnn, nn"),
        ({"state_path": "x"}, "state_path = 'x'; allowed: mlp, linear"),
        ({"target": "x"}, "target = 'x'; allowed: one_step, n_step, discounted"),
        ({"correction": "x"}, "correction = 'x'; allowed: gradient, newton, exact"),
        ({"eta": 0.0}, "eta = 0.0; allowed: above 0"),
        ({"eta": -1.0}, "eta = -1.0; allowed: above 0"),
        ({"num_steps": -1}, r"num_steps = -1; allowed: 0 \(the base policy\) or more"),
        ({"gate": -0.5}, r"gate = -0.5; allowed: 0 \(no gate\) or more"),
        ({"damping": 0.0}, "damping = 0.0; allowed: above 0"),
        ({"eta": math.nan}, "eta = nan; allowed"),
        ({"gate": math.nan}, "gate = nan; allowed"),
        ({"damping": math.nan}, "damping = nan; allowed"),
        ({"discount": 1.0}, "discount = 1.0; allowed: 0 or more, below 1"),
        ({"num_target_steps": 0}, "num_target_steps = 0; allowed: 1 or more"),
        ({"num_models": 0}, "num_models = 0; allowed: 1 or more"),
        ({"uncertainty": 0.1}, "uncertainty = 0.1 with num_models = 1; allowed: 0 to"),
        (
            {"uncertainty": 0.6, "num_models": 5},
            r"uncertainty = 0.6 with num_models = 5; allowed: 0 to 1 / sqrt.* = 0.5",
        ),
        ({"activation": "relu", "correction": "newton"}, "'newton' needs .* activation = 'relu'"),
        ({"activation": "relu", "correction": "exact"}, "'exact' needs .* activation = 'relu'"),
        ({"model": "nn", "uncertainty": 0.1}, "uncertainty = 0.1 with num_models = 1; allowed"),
        ({"model": "nn", "correction": "exact"}, "correction = 'exact' needs .* model = 'nn'"),
        ({"model": "nn", "correction": "newton"}, "correction = 'newton' needs .* model = 'nn'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        picnn.make_train(picnn.Config(**settings))
    if "base" not in settings:  # nor around a base that is given
        with pytest.raises(ValueError, match=message):
            picnn.make_train(picnn.Config(**settings), base=constant_policy())


@pytest.mark.parametrize(("own", "other"), [TRACKS, TRACKS[::-1]])
def test_cost_model_and_base_must_share_their_track(own, other):
    message = f"track = '{own}' of the cost model, but '{other}' of the base policy"
    with pytest.raises(ValueError, match=message):
        picnn.make_train(picnn.Config(track=own), base=constant_policy(other))


def test_the_standard_network_may_charge_any_disagreement():
    _, state, actions = layer(model="nn", num_models=2, uncertainty=3.0, eta=0.1)
    assert np.all(np.isfinite(actions(state, raw_obs())))
