"""The reactor obeys its equations: exact solutions, balances, hot states, gradients, bad input."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import polycstr_jax
from polycstr_jax import reactor
from polycstr_jax.controllers import make_pi, pi_state
from polycstr_jax.env import initial_state
from polycstr_jax.reactor import Inputs, ReactorParams, simulate_interval, steady_state
from polycstr_jax.rollout import rollout
from tests.exact import INTERVAL, exact_interval, published_rhs

KELVIN_PER_POLYMER = 0.5  # heat of reaction / (density heat_capacity molar mass), K m3/kg
IGNITING = 0  # golden episode
CALM = slice(1, None)


def hot_states(number, seed=0):
    """States, previous feeds and controls of reactors at 350 to 560 K, ordered by temperature."""
    rng = np.random.default_rng(seed)
    states = np.stack(
        [
            rng.uniform(0.0, 600.0, number),
            rng.uniform(0.0, 60.0, number),
            10.0 ** rng.uniform(-9.0, -3.0, number),
            rng.uniform(0.0, 500.0, number),
            np.sort(rng.uniform(350.0, 560.0, number)),
        ],
        axis=-1,
    )
    controls = np.stack([rng.uniform(0.0, 2.5, number), rng.uniform(300.0, 350.0, number)], -1)
    return states, rng.uniform(0.0, 2.5, number), controls


@functools.cache
def batched(rtol, **constants):
    simulate = functools.partial(simulate_interval, params=ReactorParams(**constants), rtol=rtol)
    return jax.jit(jax.vmap(simulate))


def golden_intervals(golden, rtol, **constants):
    arrays = (golden["iv_state"], golden["iv_prev_feed"], golden["iv_control"])
    end, peak = batched(rtol, **constants)(*map(jnp.asarray, arrays))
    return np.asarray(end, np.float64), np.asarray(peak, np.float64)


# --- the published simulator ---


# Tolerances: T and peak [K], P [kg/m3], R relative. The last 64 intervals are runaways.
@pytest.mark.parametrize(
    ("x64", "rtol", "kelvin", "polymer", "radicals"),
    [
        (True, 1e-5, 5e-4, 1e-3, 1e-4),
        (True, 1e-7, 2e-5, 2e-5, 1e-6),
        (False, 1e-5, 1e-3, 2e-3, 1e-4),
    ],
    ids=["x64 1e-5", "x64 1e-7", "x32 1e-5"],
    indirect=["x64"],
)
def test_published_intervals_are_reproduced(x64, golden, rtol, kelvin, polymer, radicals):
    end, peak = golden_intervals(golden, rtol)
    exact = golden["iv_next"]
    np.testing.assert_allclose(end[:, 4], exact[:, 4], atol=kelvin, rtol=0)
    np.testing.assert_allclose(peak, golden["iv_peak"], atol=kelvin, rtol=0)
    np.testing.assert_allclose(end[:, [0, 3]], exact[:, [0, 3]], atol=polymer, rtol=0)
    np.testing.assert_allclose(end[:, 1], exact[:, 1], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(end[:, 2], exact[:, 2], rtol=radicals)


@functools.cache
def closed_loop(rtol):
    env, params = polycstr_jax.make("startup", max_increment=np.array([100.0, 1000.0]), rtol=rtol)
    run = jax.jit(
        lambda params, state, pi, keys: rollout(env, params, make_pi(params), pi, state, keys, 200)
    )
    return run, params


def golden_loops(golden, rtol, **constants):
    """|deviations| of state (12, 200, 5), peak and controls from the published episodes."""
    run, params = closed_loop(rtol)
    params = params.replace(reactor=ReactorParams(**constants))
    start = jax.vmap(lambda s: initial_state(s, params.initial_control))(golden["states"][:, 0])
    pi = pi_state(golden["kp"], golden["ki"], params.initial_control)
    trajectory = run(params, start, pi, jax.random.split(jax.random.key(0), 12))
    return (
        np.abs(np.swapaxes(trajectory.state, 0, 1) - golden["states"][:, 1:]),
        np.abs(np.swapaxes(trajectory.peak_temperature, 0, 1) - golden["peak"]),
        np.abs(np.swapaxes(trajectory.control, 0, 1) - golden["controls"]),
    )


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "x32"], indirect=True)
def test_published_closed_loops_are_reproduced_at_rtol_1e_5(x64, golden):
    error, peak, control = golden_loops(golden, 1e-5)
    assert np.percentile(error[..., 4], 99) < 1e-3
    assert np.percentile(error[..., 3], 99) < 8e-3
    assert error[CALM, :, 4].max() < 5e-3
    assert peak[CALM].max() < 5e-3
    assert control[CALM].max() < 1e-3
    # The episode that ignites (515 K) forgives less: its spike is hundreds of K steep.
    assert error[IGNITING, :, 4].max() < (5e-3 if x64 else 5e-2)
    assert peak[IGNITING].max() < (5e-3 if x64 else 5e-2)


def test_published_closed_loops_are_reproduced_at_rtol_1e_7(double, golden):
    error, peak, _ = golden_loops(golden, 1e-7)
    assert error[CALM, :, 4].max() < 2e-4
    assert error[CALM, :, 3].max() < 2e-4
    assert error[IGNITING, :, 4].max() < 2e-4
    assert peak.max() < 2e-4


def test_the_outflow_follows_the_previous_feed(double, golden):
    # The quirk of the published simulator: without it, episodes are off by a hundredth of a kelvin.
    error, _, _ = golden_loops(golden, 1e-7, current_feed_in_flow=1.0)
    assert 0.01 < error[CALM, :, 4].max() < 0.1


# --- equations ---


def test_the_vector_field_is_the_published_right_hand_side(double):
    states, previous, controls = hot_states(50)
    for state, previous_feed, control in zip(states, previous, controls, strict=True):
        expected = published_rhs(0.0, state, *control, previous_feed)
        three = np.append(control, previous_feed)
        np.testing.assert_allclose(reactor.vector_field(0.0, state, three), expected, rtol=1e-9)
        # With two entries the current feed sets the outflow.
        expected = published_rhs(0.0, state, *control, control[0])
        np.testing.assert_allclose(reactor.vector_field(0.0, state, control), expected, rtol=1e-9)


def test_the_jacobian_is_the_derivative_of_the_right_hand_side(double):
    states, previous, controls = map(jnp.asarray, hot_states(50))

    def both(state, previous_feed, control):
        args = (Inputs(control[0], control[1], previous_feed), ReactorParams())
        y = reactor.to_internal(state)
        derived = jax.jacfwd(lambda y: reactor._rhs(0.0, y, args))(y)
        given = reactor._jacobian(0.0, y, args)
        return tuple(jnp.stack([jnp.stack([*map(jnp.asarray, row)]) for row in rows])
                     for rows in (given, derived))  # fmt: skip

    given, derived = jax.jit(jax.vmap(both))(states, previous, controls)
    np.testing.assert_allclose(given, derived, rtol=1e-10, atol=1e-18)


def total_mass(states, previous_feed):
    """A + P after an interval: it flows in and out, but reaction does not change it."""
    q = (previous_feed + 180.0) / 1000.0 / 3600.0
    fed = 100.0 / 3600.0 / q
    return fed + (states[:, 0] + states[:, 3] - fed) * np.exp(-q * INTERVAL)


def test_mass_is_conserved(double, golden):
    end, _ = golden_intervals(golden, 1e-5)
    expected = total_mass(golden["iv_state"], golden["iv_prev_feed"])
    np.testing.assert_allclose(end[:, 0] + end[:, 3], expected, rtol=1e-9)


def test_energy_is_conserved_without_cooling(double, golden):
    # In an adiabatic reactor T - K P, the temperature without the heat of reaction, is only
    # washed out: it relaxes to the feed temperature, runaway or not.
    end, _ = golden_intervals(golden, 1e-6, heat_transfer=0.0)
    start, q = golden["iv_state"], (golden["iv_prev_feed"] + 180.0) / 1000.0 / 3600.0
    sensible = start[:, 4] - KELVIN_PER_POLYMER * start[:, 3]
    expected = 350.0 + (sensible - 350.0) * np.exp(-q * INTERVAL)
    np.testing.assert_allclose(end[:, 4] - KELVIN_PER_POLYMER * end[:, 3], expected, rtol=1e-8)
    assert np.ptp(end[:, 4]) > 100.0


# --- steady states ---

STEADY = {60.0: (0.523, 343.98), 80.0: (1.026, 341.95), 100.0: (1.788, 339.90)}


@pytest.mark.parametrize("polymer", STEADY)
def test_steady_states_stand_still(double, polymer):
    state, control = steady_state(polymer, 350.0)
    assert state[3] == polymer and state[4] == 350.0
    feed, coolant = STEADY[polymer]
    assert control[0] == pytest.approx(feed, abs=6e-4)
    assert control[1] == pytest.approx(coolant, abs=6e-3)
    drift = published_rhs(0.0, np.asarray(state), *np.asarray(control), control[0])
    np.testing.assert_allclose(drift * INTERVAL / np.asarray(state), np.zeros(5), atol=1e-9)


def test_heat_is_balanced_at_steady_state(double):
    state, (feed, coolant) = steady_state(80.0, 355.0)
    q = (feed + 180.0) / 1000.0 / 3600.0
    released = 1e5 * q * state[3] / 0.1  # J/s: all polymer made leaves with the flow
    removed = 500.0 * (355.0 - coolant) + q * 2e6 * (355.0 - 350.0)
    assert released == pytest.approx(float(removed), rel=1e-9)


def test_steady_states_vmap(x64):
    polymer = jnp.array([60.0, 80.0, 100.0])
    states, controls = jax.jit(jax.vmap(lambda p: steady_state(p, 350.0)))(polymer)
    for n, one in enumerate(STEADY):
        state, control = steady_state(one, 350.0)
        np.testing.assert_allclose(states[n], state, rtol=1e-5)
        np.testing.assert_allclose(controls[n], control, rtol=1e-5)


def test_an_unreachable_polymer_names_the_possible_range(double):
    with pytest.raises(ValueError, match=r"polymer = 115.0 .*from \d.* to 113\.\d kg/m3") as error:
        steady_state(115.0, 350.0)
    assert "2.5 kg/h" in str(error.value)
    steady_state(113.0, 350.0)
    for polymer, temperature in ((-1.0, 350.0), (np.nan, 350.0), (80.0, np.nan), (80.0, 1200.0)):
        with pytest.raises(ValueError, match="polymer"):
            steady_state(polymer, temperature)


# --- runaways ---


@functools.cache
def hot_intervals(x64):
    """100,000 hot states integrated at rtol 1e-4, in chunks of similar temperature."""

    def one(lane):
        state, previous_feed, control = lane
        inputs = Inputs(control[0], control[1], previous_feed)
        first_step = jnp.asarray(reactor.FIRST_STEP, state.dtype)
        return reactor.integrate_interval(state, first_step, inputs, ReactorParams(), 1e-4)

    lanes = tuple(map(jnp.asarray, hot_states(100_000)))
    result = jax.jit(lambda lanes: jax.lax.map(one, lanes, batch_size=500))(lanes)
    return jax.tree.map(np.asarray, result)


def test_no_hot_state_fails_or_ends_in_nonsense(x64):
    states, previous_feeds, controls = hot_states(100_000)
    result = hot_intervals(x64)
    assert not result.failed.any()
    assert np.isfinite(result.state).all() and np.isfinite(result.peak).all()
    assert (result.state[:, :4] >= 0.0).all()
    # The hottest possible: all monomer, held and fed, burnt at once. The coldest: the coolest
    # of the start, the feed and the coolant.
    fed = 100.0 * 1000.0 / (previous_feeds + 180.0)
    monomer = np.maximum(states[:, 0] + states[:, 3], fed)
    sensible = np.maximum(states[:, 4] - KELVIN_PER_POLYMER * states[:, 3], 350.0)
    assert (result.peak < sensible + KELVIN_PER_POLYMER * monomer + 0.1).all()
    coldest = np.minimum(np.minimum(states[:, 4], 350.0), controls[:, 1])
    assert (result.state[:, 4] > coldest - 0.1).all()
    assert (result.peak >= result.state[:, 4]).all()
    # Whatever was accepted conserves mass.
    expected = total_mass(states, previous_feeds)
    total = result.state[:, 0].astype(np.float64) + result.state[:, 3]
    np.testing.assert_allclose(total, expected, rtol=1e-8 if x64 else 5e-6)


def test_the_hottest_states_agree_with_scipy(double):
    lanes = hot_states(4000, seed=1)
    end, peak = batched(1e-7)(*map(jnp.asarray, lanes))
    hottest = np.argsort(np.asarray(peak))[-40:]
    assert peak[hottest].min() > 700.0
    for n in hottest:
        exact_end, exact_peak = exact_interval(*(array[n] for array in lanes))
        np.testing.assert_allclose(end[n], exact_end, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(peak[n], exact_peak, atol=0.01)


def test_the_peak_within_an_interval_is_that_of_dense_output(double, golden):
    lanes = [golden[name] for name in ("iv_state", "iv_prev_feed", "iv_control")]
    above_ends = golden["iv_peak"] - np.maximum(golden["iv_state"], golden["iv_next"])[:, 4]
    inside = np.argsort(above_ends)[-6:]
    assert above_ends[inside].min() > 20.0
    _, peak = golden_intervals(golden, 1e-5)
    for n in inside:
        exact_end, exact_peak = exact_interval(*(array[n] for array in lanes))
        assert exact_end[4] == pytest.approx(golden["iv_next"][n, 4], abs=1e-4)
        assert peak[n] == pytest.approx(exact_peak, abs=5e-3)


def test_the_hermite_maximum_is_the_largest_value_of_the_cubic(double):
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(20_000, 4)) * 10.0 ** rng.integers(-3, 3, size=(20_000, 4))
    special = [[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, -1, -1], [0, 0, 1, -1], [0, 0, -1, 1],
               [0, 1, 0, 0], [0, 1, 0, 1e-20], [2, 2, 1e-9, 0], [0, 0, 0, 1]]  # fmt: skip
    y0, y1, k0, k1 = np.concatenate([ends, np.array(special, float)]).T
    s = np.linspace(0.0, 1.0, 1001)[:, None]
    cubic = (
        (1 + 2 * s) * (1 - s) ** 2 * y0
        + s * (1 - s) ** 2 * k0
        + s**2 * (3 - 2 * s) * y1
        - s**2 * (1 - s) * k1
    )
    size = np.abs([y0, y1, k0, k1]).max(axis=0)
    maximum = np.asarray(reactor.hermite_maximum(y0, y1, k0, k1))
    assert (maximum >= cubic.max(axis=0) - 1e-12 * size).all()
    assert (maximum <= cubic.max(axis=0) + 1e-5 * size).all()  # as fine as the grid


# --- failure ---


@pytest.mark.parametrize("temperature", [2000.0, 100.0])
def test_a_state_outside_physics_gives_nan(x64, golden, temperature):
    state = golden["iv_state"][0].copy()
    state[4] = temperature
    end, peak = simulate_interval(state, 1.0, np.array([1.0, 345.0]))
    assert np.isnan(end).all() and np.isnan(peak)


def test_an_interval_of_too_many_steps_gives_nan(double, golden):
    hot, control = golden["iv_state"][-1], golden["iv_control"][-1]
    params = ReactorParams(interval=1e9)  # it ignites again and again
    end, peak = simulate_interval(hot, 1.0, np.array([2.5, 345.0]), params, rtol=1e-12)
    assert np.isnan(end).all() and np.isnan(peak)
    inputs = Inputs(*jnp.asarray(control), jnp.asarray(1.0))
    result = reactor.integrate_interval(jnp.asarray(hot), jnp.asarray(60.0), inputs, params, 1e-12)
    assert result.failed and result.num_steps == 2000
    assert np.isfinite(result.state).all() and np.isfinite(result.peak)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_lane_fails_alone(x64, golden, bad):
    names = ("iv_state", "iv_prev_feed", "iv_control")
    arrays = [golden[name][:8].copy() for name in names]
    clean, clean_peak = batched(1e-5)(*map(jnp.asarray, arrays))
    arrays[0][3, 2] = bad
    end, peak = batched(1e-5)(*map(jnp.asarray, arrays))
    assert np.isnan(end[3]).all() and np.isnan(peak[3])
    others = np.arange(8) != 3
    np.testing.assert_array_equal(end[others], clean[others])
    np.testing.assert_array_equal(peak[others], clean_peak[others])


def test_vmap_equals_loop(x64, golden):
    chosen = [0, 100, 200, 450, 500, 511]
    lanes = [golden[name][chosen] for name in ("iv_state", "iv_prev_feed", "iv_control")]
    together = batched(1e-5)(*map(jnp.asarray, lanes))
    for n in range(len(chosen)):
        alone = simulate_interval(*(jnp.asarray(array[n]) for array in lanes), rtol=1e-5)
        np.testing.assert_allclose(together[0][n], alone[0], rtol=1e-8 if x64 else 2e-5, atol=1e-12)
        np.testing.assert_allclose(together[1][n], alone[1], rtol=1e-8 if x64 else 2e-5)


# --- gradients ---


def outcome(arguments):
    """The end in units of order one, and the peak, as functions of everything that moves."""
    state, previous_feed, control, constants = arguments
    end, peak = simulate_interval(
        state, previous_feed, control, ReactorParams(**constants), rtol=1e-9
    )
    return jnp.append(end * jnp.array([1.0, 1.0, 1e6, 1.0, 1.0]), peak)


def gradient_points(golden):
    """A calm interval, the highest peak inside one, a runaway that has just been lit; constants."""
    above_ends = golden["iv_peak"] - np.maximum(golden["iv_state"], golden["iv_next"])[:, 4]
    chosen = [0, int(np.argmax(above_ends)), int(np.argmax(golden["iv_next"][:, 4]))]
    constants = {"heat_transfer": 500.0, "propagation_energy": 25e3, "monomer_feed": 100.0}
    constants = {name: jnp.full(len(chosen), value) for name, value in constants.items()}
    arrays = [jnp.asarray(golden[f"iv_{key}"][chosen]) for key in ("state", "prev_feed", "control")]
    return (*arrays, constants)


def forward(x, direction):
    return jax.jvp(outcome, (x,), (direction,))[1]


def reverse(x, weights):
    return jax.grad(lambda x: jnp.vdot(weights, outcome(x)))(x)


def inner(left, right):
    """Inner products of two pytrees, one per lane."""
    products = jax.tree.map(lambda x, y: jnp.sum((x * y).reshape(len(x), -1), axis=1), left, right)
    return sum(jax.tree.leaves(products))


def test_gradients_equal_finite_differences(double, golden):
    function, push, pull = (jax.jit(jax.vmap(f)) for f in (outcome, forward, reverse))
    points = gradient_points(golden)
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(3, 6)))
    pulled = pull(points, weights)
    h = 1e-5
    for argument in range(len(points)):
        for _ in range(3):
            # Everything in one argument moves by about as much as it is large.
            direction = [jax.tree.map(jnp.zeros_like, part) for part in points]
            direction[argument] = jax.tree.map(
                lambda x: x * rng.normal(size=x.shape), points[argument]
            )
            direction = tuple(direction)
            ahead = jax.tree.map(lambda x, d: x + h * d, points, direction)
            behind = jax.tree.map(lambda x, d: x - h * d, points, direction)
            difference = (function(ahead) - function(behind)) / (2.0 * h)
            pushed = push(points, direction)
            scale = float(jnp.abs(difference).max())
            np.testing.assert_allclose(pushed, difference, rtol=1e-4, atol=1e-6 * scale)
            np.testing.assert_allclose(inner(pulled, direction), inner(weights, pushed), rtol=1e-9)


def test_gradients_exist_in_float32(golden):
    with jax.enable_x64(False):
        state, previous_feed, control = (
            jnp.asarray(golden[name][0], jnp.float32)
            for name in ("iv_state", "iv_prev_feed", "iv_control")
        )
        end = jax.grad(lambda control: simulate_interval(state, previous_feed, control)[0][4])
        gradient = jax.jit(end)(control)
    # A kelvin more of coolant warms the reactor by UA t / (rho c_p V) = 0.45 K at most.
    assert gradient.dtype == jnp.float32
    assert 0.2 < gradient[1] < 0.45


# --- bad input ---


def test_the_signatures_are_checked_in_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        simulate_interval(jnp.zeros(4), jnp.ones(()), jnp.ones(2))


GOOD = {"state": np.array([400.0, 1.0, 1e-7, 50.0, 350.0]), "previous_feed": 1.0,
        "control": np.array([1.0, 345.0])}  # fmt: skip
BAD = [
    ("state", np.zeros(4), r"state has shape \(4,\); allowed: \(5,\)"),
    ("state", np.zeros((2, 5)), r"state has shape \(2, 5\); allowed: \(5,\).*vmap"),
    ("state", np.zeros(5, complex), r"state has dtype complex\d+; allowed: .*float"),
    ("state", np.zeros(5, bool), r"state has dtype bool; allowed: .*float"),
    ("state", "hot", r"state = 'hot'; allowed: .*\(5,\)"),
    ("previous_feed", np.ones(1), r"previous_feed has shape \(1,\); allowed: \(\)"),
    ("control", np.ones(3), r"control has shape \(3,\); allowed: \(2,\)"),
    ("rtol", 0, r"rtol = 0; allowed: a positive"),
    ("rtol", -1.0, r"rtol = -1.0; allowed: a positive"),
    ("rtol", np.nan, r"rtol = nan; allowed: a positive"),
    ("rtol", np.inf, r"rtol = inf; allowed: a positive"),
    ("rtol", "small", r"rtol = 'small'; allowed: a positive"),
    ("rtol", 1e-16, r"rtol = 1e-16 is below 10 eps of float\d\d.*larger rtol"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_arguments_are_named(x64, unchecked, name, value, message):
    with pytest.raises(ValueError, match=message):
        simulate_interval(**{**GOOD, name: value})


def test_float32_cannot_hold_a_tiny_rtol():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"float32.*jax_enable_x64"):
        simulate_interval(**GOOD, rtol=1e-9)
    with jax.enable_x64(True):
        simulate_interval(**GOOD, rtol=1e-9)


def test_integers_and_lists_count_as_floats(x64, unchecked):
    end, peak = simulate_interval([400, 1, 0, 50, 350], 1, [1, 345])
    same, _ = simulate_interval(np.array([400.0, 1.0, 0.0, 50.0, 350.0]), 1.0, [1.0, 345.0])
    np.testing.assert_array_equal(end, same)
    assert end.dtype == peak.dtype == (jnp.float64 if x64 else jnp.float32)


def test_the_vector_field_takes_two_or_three_controls(unchecked):
    with pytest.raises(ValueError, match=r"control has shape \(4,\); allowed: \(2,\) or \(3,\)"):
        reactor.vector_field(0.0, np.ones(5), np.ones(4))


# --- The safeguards of a step, on candidates made up for the purpose ---


class Candidate:
    """A solver that proposes a given end with a given error."""

    def __init__(self, end, error):
        self.end, self.error = end, error

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        zero = tuple(jnp.zeros_like(y) for y in y0)
        end = tuple(
            y if e is None else jnp.asarray(e, y.dtype) for y, e in zip(y0, self.end, strict=True)
        )
        error = tuple(jnp.asarray(self.error, y.dtype) for y in y0)
        return end, error, dict(k0=zero, k1=zero), None, None


OLD = (400.0, 2.0, 1.0, 80.0, 360.0)


def try_candidate(monkeypatch, end, error):
    monkeypatch.setattr(reactor, "_solver", lambda tableau: Candidate(end, error))
    y = tuple(jnp.asarray(value) for value in OLD)
    inputs = reactor.Inputs(*(jnp.asarray(value) for value in (1.0, 345.0, 1.0)))
    before = reactor.start_interval(y, 600.0)
    return reactor.internal_step(before, inputs, reactor.ReactorParams(), 1e-4)


def test_a_wild_candidate_does_not_approve_its_own_error(monkeypatch):
    # Its error is small against the new state (1e8 against 1e13), enormous against the old one.
    after = try_candidate(monkeypatch, (1e13, None, None, None, None), 1e8)
    assert after.time == 0.0 and after.y[0] == OLD[0]
    assert after.step_size < 600.0 and after.peak == OLD[4]


@pytest.mark.parametrize(
    "end",
    [
        (None, None, None, None, 2000.0),
        (None, None, None, None, 100.0),
        (-1.0, None, None, None, None),
        (None, -1.0, None, None, None),
        (None, None, -1.0, None, None),
        (None, None, None, -1.0, None),
        (jnp.nan, None, None, None, None),
        (None, None, None, None, jnp.inf),
    ],
)
def test_a_non_physical_candidate_is_rejected_whatever_its_error(monkeypatch, end):
    after = try_candidate(monkeypatch, end, 0.0)
    assert after.time == 0.0 and after.y == OLD and after.step_size < 600.0


def test_a_physical_candidate_is_accepted_and_rounding_below_zero_clipped(monkeypatch):
    after = try_candidate(monkeypatch, (None, None, None, -1e-5, 361.0), 0.0)
    assert after.time == 600.0 and after.y[4] == 361.0 and after.y[3] == 0.0
    assert after.peak >= 361.0


def test_an_error_at_the_tolerance_decides(monkeypatch):
    smallest_scale = 1e-4 * (1.0 + OLD[2])
    end = (None,) * 5
    assert try_candidate(monkeypatch, end, 0.99 * smallest_scale).time == 600.0
    assert try_candidate(monkeypatch, end, 1.01 * smallest_scale).time == 0.0
