"""Controllers of the multiplier: worked examples, closed forms, and what each mends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import multipliers
from algos.multipliers import RELEASED, Controller


def trace(config, costs, limit=20.0, scale=1.0):
    """Lambda (N,) and the states after each call."""
    state, states = multipliers.init(config, scale=scale), []
    step = jax.jit(multipliers.update, static_argnums=0)
    for cost in costs:
        state = step(config, state, jnp.asarray([float(cost)]), jnp.asarray([limit]))
        states.append(state)
    return np.array([float(s.multiplier[0]) for s in states]), states


VECTORS = {  # of the released controller: costs -> lambda, and K_p after each call
    "A": (
        [40.0] * 5,
        [1.300000000e-4, 2.080928571e-4, 2.745753400e-4, 3.345205411e-4, 3.901856701e-4],
        [2.869047619e-6, 2.289210684e-6, 2.002758664e-6, 1.830011451e-6, 1.715028157e-6],
    ),
    "B": (
        [50.0, 30.0, 10.0, 0.0, 25.0],
        [1.900000000e-4, 2.348817308e-4, 2.045534836e-4, 1.489179505e-4, 1.713485433e-4],
        [3.326923077e-6, 2.713521635e-6, 2.323576092e-6, 2.020715024e-6, 1.790508643e-6],
    ),
    "C": (
        [0.0, 0.0, 60.0, 60.0, 60.0],
        [0.0, 0.0, 5.029000000e-5, 1.038888233e-4, 1.575724199e-4],
        [5e-7] * 5,
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", VECTORS)
def test_the_released_controller_gives_the_numbers_worked_out_from_the_release(name):
    costs, expected, gains = VECTORS[name]
    found, states = trace(RELEASED, costs)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-15)
    kp = [float(s.gains.proportional[0]) for s in states]
    np.testing.assert_allclose(kp, gains, rtol=1e-8)
    for s in states:  # equal gains and rates: K_i is K_p for ever
        assert s.gains.integral == s.gains.proportional
    if name == "A":
        kd = [float(s.gains.derivative[0]) for s in states]
        expected = [5.238095238e-6, 5.443049082e-6, 5.635739141e-6, 5.822625938e-6, 6.006549468e-6]
        np.testing.assert_allclose(kd, expected, rtol=1e-8)


@pytest.mark.usefixtures("double")
def test_the_released_controller_is_an_integrator_that_hardly_comes_back():
    up, states = trace(RELEASED, [40.0] * 1000)
    assert float(states[99].parts.proportional[0]) == pytest.approx(2.2e-4, rel=0.05)
    assert float(states[99].parts.integral[0]) == pytest.approx(8.6e-3, rel=0.02)
    assert float(states[-1].parts.integral[0]) == pytest.approx(0.880, abs=2e-3)
    both, _ = trace(RELEASED, [40.0] * 1000 + [10.0] * 400)
    np.testing.assert_allclose(both[999], up[-1])
    assert both[1099] == pytest.approx(0.857, abs=2e-3)
    assert both[1399] == pytest.approx(0.855, abs=2e-3)
    # In 2,000 calls at half the distance the released rule loses 4 %. The symmetric one has gains
    # of x = 0.95 f / (1 - 0.95 f) 0.05 / 0.95 times the first, f = exp(0.05 tanh(|m - k| / k)).
    mended, _ = trace(
        dataclasses.replace(RELEASED, adaptation="symmetric"), [40.0] * 1000 + [10.0] * 2000
    )
    up, down = (np.exp(0.05 * np.tanh(x)) for x in (1.0, 0.5))
    up, down = (0.05 * f / (1.0 - 0.95 * f) for f in (up, down))
    left = 1.0 - 2_000 * 10.0 * down / (1_000 * 20.0 * up)
    assert mended[-1] / mended[999] == pytest.approx(left, abs=0.05) and left < 0.6


def test_dual_ascent_is_the_clipped_sum():
    found, _ = trace(Controller("dual", rate=0.1, initial=1.0), [25.0, 20.0, 0.0, 0.0, 30.0])
    np.testing.assert_allclose(found, [1.5, 1.5, 0.0, 0.0, 1.0], atol=1e-6)


def test_adams_steps_are_of_the_size_of_its_rate():
    found, _ = trace(Controller("adam", rate=1e-3), [25.0] * 50)
    np.testing.assert_allclose(found, 1e-3 * np.arange(1, 51), rtol=1e-3)


@pytest.mark.usefixtures("double")
def test_pid_in_closed_form():
    config = Controller("pid", proportional=0.5, integral=0.1, derivative=0.2)
    found, states = trace(config, [30.0] * 15)
    n = np.arange(1, 16)
    average = 1.0 - 0.9**n
    # The oldest of the last ten c_bar, with the zeros before the first.
    oldest = np.where(n > 10, 1.0 - 0.9 ** np.maximum(n - 10, 0), 0.0)
    expected = 0.5 * 10.0 * average + 0.1 * 10.0 * n + 0.2 * 30.0 * (average - oldest)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose([float(sum(s.parts)[0]) for s in states], found)


def test_the_integral_does_not_go_below_0():
    config = Controller("pid", proportional=0.0, integral=0.1, derivative=0.0)
    found, _ = trace(config, [0.0] * 5 + [30.0])
    np.testing.assert_allclose(found, [0.0] * 5 + [1.0], atol=1e-6)


def test_the_papers_rule_adapts_before_it_acts_and_follows_the_variance():
    for spread, power in (("variance", 2), ("deviation", 1)):
        config = Controller("apid", adaptation="paper", spread=spread)
        _, states = trace(config, [30.0, 50.0])
        gain = 1e-2 * (1.0 + 0.05 * 10.1 / 30.1)
        parts = states[0].parts
        np.testing.assert_allclose(states[0].gains.proportional, gain, rtol=1e-5)
        np.testing.assert_allclose(parts.integral, gain * 10.0, rtol=1e-5)  # already adapted
        wide = 1e-2 * (1.0 + 0.05 * 10.0**power / 40.1)  # 30 and 50: deviation 10
        np.testing.assert_allclose(states[1].gains.derivative, wide, rtol=1e-5)


def test_the_symmetric_rule_grows_alike_on_both_sides_and_is_bounded():
    config = Controller("apid", adaptation="symmetric", max_integral=2.0, delay=1)
    above, below = (trace(config, [x] * 5)[1][-1].gains for x in (30.0, 10.0))
    np.testing.assert_allclose(above.proportional, below.proportional, rtol=1e-6)
    assert float(above.proportional[0]) > 1.05e-2
    # A factor of exp(0.05), after 5 % of the way back, ends at 41 times the first value.
    _, states = trace(config, [1e4] * 300)
    assert float(states[-1].parts.integral[0]) == 2.0
    assert float(states[-1].gains.integral[0]) == pytest.approx(0.1)
    # All return to their first values when costs are calm and at the limit.
    config = dataclasses.replace(config, delay=10)
    _, states = trace(config, [0.0, 60.0] * 20 + [20.0] * 200)
    assert float(states[39].gains.derivative[0]) > 1.2e-2
    for gain in states[-1].gains:
        assert float(gain[0]) == pytest.approx(1e-2, rel=1e-3)


def test_a_limit_of_0_is_no_division_by_0():
    for adaptation in ("paper", "released", "symmetric"):
        config = Controller("apid", adaptation=adaptation)
        found, states = trace(config, [0.0, 0.0, 3.0], limit=0.0)
        assert np.isfinite(found).all()
        assert all(np.isfinite(x).all() for x in states[-1].gains)


def test_several_constraints_are_so_many_controllers():
    config = Controller("apid")
    state = multipliers.init(config, 2)
    limits = jnp.asarray([2.0, 5.0])
    costs = np.random.default_rng(0).uniform(0.0, 10.0, (20, 2))
    for cost in costs:
        state = multipliers.update(config, state, jnp.asarray(cost), limits)
    for m, limit in enumerate((2.0, 5.0)):
        alone, _ = trace(config, costs[:, m], limit)
        np.testing.assert_allclose(state.multiplier[m], alone[-1], rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        *(Controller(rule, initial=0.5) for rule in ("fixed", "dual", "adam", "pid")),
        *(Controller("apid", adaptation=a) for a in ("paper", "released", "symmetric")),
        Controller("apid", adaptation="symmetric", max_integral=0.2),
    ],
)
def test_the_scale_multiplies_the_multiplier(config):
    costs = [30.0, 10.0, 40.0]
    np.testing.assert_allclose(
        trace(config, costs, scale=7.0)[0], 7.0 * trace(config, costs)[0], rtol=1e-5
    )


def test_after_a_reset_the_derivative_starts_anew_and_lambda_stays():
    _, states = trace(Controller("apid", spread="deviation"), [0.0, 60.0] * 10)
    before, after = states[-1], multipliers.reset(states[-1])
    assert float(before.gains.derivative[0]) > 1.1e-2
    np.testing.assert_allclose(after.gains.derivative, 1e-2)
    np.testing.assert_array_equal(after.multiplier, before.multiplier)
    np.testing.assert_array_equal(after.cost, before.cost)
    calm = multipliers.update(Controller("apid"), after, before.cost, jnp.asarray([20.0]))
    np.testing.assert_allclose(calm.parts.derivative, 0.0, atol=1e-6)  # no kick


def test_after_a_reset_adam_steps_as_at_first():
    config = Controller("adam", rate=1e-3)
    _, states = trace(config, [25.0, 60.0] * 5)
    state = multipliers.reset(states[-1])
    after = multipliers.update(config, state, jnp.asarray([25.0]), jnp.asarray([20.0]))
    np.testing.assert_allclose(after.multiplier - state.multiplier, 1e-3, rtol=1e-3)


@pytest.mark.parametrize("rule", ["pid", "apid"])
def test_at_the_limit_the_first_multiplier_stays(rule):
    config = Controller(rule, initial=1.5, derivative=0.0)
    np.testing.assert_allclose(trace(config, [20.0] * 5)[0], 1.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"integral": -1.0}, "integral = -1.0; allowed: 0 or more"),
        ({"rule": "bang"}, "rule = 'bang'; allowed: fixed, dual, adam, pid, apid"),
        ({"smoothing": 1.0}, "smoothing = 1.0; allowed: 0 or more, below 1"),
        ({"delay": 0}, "delay = 0; allowed: 1 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        multipliers.init(dataclasses.replace(Controller(), **setting))
    assert message in str(error.value)
