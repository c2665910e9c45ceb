"""What the safest policy can still save; and a shield that never lets go of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polycstr_jax import evaluate, viability
from polycstr_jax.controllers import SAFEST, safest, uniform_random
from polycstr_jax.env import PolyCSTR, initial_state, scenario_params, state_from_obs
from polycstr_jax.rollout import rollout
from polycstr_jax.viability import SAFEST_STEPS

SCENARIO = "grade_up"


@functools.cache
def params():
    return scenario_params(SCENARIO)


@functools.cache
def hot():
    """States around the end of a boost, half of them doomed."""
    return evaluate.starts(SCENARIO, "hot")


@functools.cache
def over_states(function, *settings):
    """A function of one state and its controls, for many."""
    return jax.jit(jax.vmap(lambda state, controls: function(state, controls, *settings)))


def roll(controller, memory, starts, num_steps):
    """A controller from many starts, by the environment's engine."""
    initial = evaluate.start_states(starts)
    keys = jax.random.split(jax.random.key(0), len(starts.state))
    run = jax.jit(
        lambda: rollout(PolyCSTR(), params(), controller, memory, initial, keys, num_steps)
    )
    return jax.device_get(run())


@functools.cache
def peaks():
    """Peaks (64,) under the safest policy from the hot starts."""
    return np.asarray(over_states(viability.peak_under_safest)(hot().state, hot().control))


def test_the_peak_is_that_of_the_safest_controller_in_the_environment():
    trajectory = roll(safest, jnp.zeros((64,)), hot(), SAFEST_STEPS)
    expected = np.maximum(trajectory.peak_temperature.max(axis=0), hot().state[:, 4])
    np.testing.assert_allclose(peaks(), expected, atol=0.02)


def test_peaks_of_many_states_are_those_of_each_ignitions_included():
    rng = np.random.default_rng(0)
    # Hotter and hotter, up to states that no control can hold; more than two chunks of them.
    index = rng.integers(64, size=150)
    state = hot().state[index] + np.float32([0, 0, 0, 0, 1]) * rng.uniform(0, 12, (150, 1))
    state, control = jnp.asarray(state, jnp.float32), jnp.asarray(hot().control[index])
    each = np.asarray(over_states(viability.peak_under_safest)(state, control))
    many = np.asarray(viability.peaks_under_safest(state, control, chunk=64))
    assert (each > 400.0).any() and (each < 356.0).any()
    calm = each < 380.0
    np.testing.assert_allclose(many[calm], each[calm], atol=0.01)
    np.testing.assert_allclose(many, each, rtol=0.01)  # an ignition multiplies rounding
    assert viability.peaks_under_safest(state[:0], control[:0]).shape == (0,)
    with pytest.raises(ValueError, match="chunk = 0"):
        viability.peaks_under_safest(state, control, chunk=0)


def test_the_committed_starts_are_doomed_where_the_margin_is_negative():
    margin = np.asarray(over_states(viability.feasible_margin)(hot().state, hot().control))
    np.testing.assert_allclose(margin, 356.0 - peaks(), atol=1e-4)
    clear = np.abs(margin) > 0.02
    np.testing.assert_array_equal((margin < 0.0)[clear], hot().doomed[clear])
    assert hot().doomed.sum() == 32 and clear.sum() > 56


def test_warmer_or_less_cooled_is_never_safer():
    peak = over_states(viability.peak_under_safest)
    for change in ([0, 0, 0, 0, 0.5], [20.0, 0, 0, 0, 0], [0, 0.2, 0, 0, 0]):
        higher = np.asarray(peak(hot().state + np.float32(change), hot().control))
        assert (higher >= peaks() - 0.01).all() and higher.mean() > peaks().mean()
    for change in ([0.1, 0.0], [0.0, 1.0]):
        higher = np.asarray(peak(hot().state, hot().control + np.float32(change)))
        assert (higher >= peaks() - 0.01).all() and higher.mean() > peaks().mean()


def test_no_sequence_of_actions_stays_below_the_safest_policy():
    """The conjecture behind `doomed`, at a small size: random and structured sequences."""
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1.0, 1.0, (60, SAFEST_STEPS, 2))
    corners = rng.choice([-1.0, 1.0], (20, SAFEST_STEPS, 2))
    late = np.full((SAFEST_STEPS, SAFEST_STEPS, 2), -1.0)  # one interval with one control raised
    late[np.arange(SAFEST_STEPS), np.arange(SAFEST_STEPS), rng.integers(0, 2, SAFEST_STEPS)] = 1.0
    sequences = jnp.asarray(np.concatenate([uniform, corners, late]), jnp.float32)
    near = np.argsort(np.abs(peaks() - 356.0))[:16]
    step = viability.make_step(params())

    def peak_of(state, controls, sequence):
        def interval(carry, action):
            *rest, peak = step(*carry[:3], action)
            return (*rest, jnp.maximum(carry[3], peak)), None

        start = (state, controls, jnp.asarray(60.0), state[4])
        return jax.lax.scan(interval, start, sequence)[0][3]

    over_all = jax.vmap(jax.vmap(peak_of, (None, None, 0)), (0, 0, None))
    found = np.asarray(jax.jit(over_all)(hot().state[near], hot().control[near], sequences))
    assert (found >= peaks()[near, None] - 2e-3).all()
    assert found.max() > peaks()[near].max() + 1.0  # the sequences do differ


# --- The shield ---


@functools.cache
def shielded_at(action):
    """The shield's answer to one action at all hot starts."""
    shield = over_states(functools.partial(viability.shield, action=jnp.asarray(action, "f4")))
    return jax.device_get(shield(hot().state, hot().control))


def test_the_shield_leaves_a_safe_action_alone_and_a_doomed_state_to_the_safest():
    answer = shielded_at(SAFEST)
    np.testing.assert_array_equal(answer.blend[~hot().doomed & (peaks() < 355.98)], 0.0)
    answer = shielded_at((1.0, 1.0))
    clear = np.abs(peaks() - 356.0) > 0.03
    np.testing.assert_array_equal(answer.feasible[clear], ~hot().doomed[clear])
    lost = hot().doomed & clear
    np.testing.assert_array_equal(answer.action[lost], np.tile(SAFEST, (lost.sum(), 1)))
    np.testing.assert_allclose(answer.margin[lost], 356.0 - peaks()[lost], atol=0.02)


def test_the_shield_blends_as_little_as_it_must():
    answer = shielded_at((1.0, 1.0))
    blended = (answer.blend > 0.0) & (answer.blend < 1.0)
    assert blended.sum() >= 5
    expected = 1.0 - 2.0 * answer.blend[:, None]  # from +1 to -1, both controls alike
    np.testing.assert_allclose(answer.action, np.tile(expected, 2), atol=1e-6)
    margin = jax.jit(jax.vmap(viability.action_margin))
    states, controls = hot().state[blended], hot().control[blended]
    kept = np.asarray(margin(states, controls, answer.action[blended]))
    np.testing.assert_allclose(kept, answer.margin[blended], atol=1e-3)
    assert (kept >= viability.SHIELD_MARGIN - 1e-3).all()
    less = answer.action[blended] + 2.0 * 2.0 / 2**viability.NUM_BISECTIONS
    assert (np.asarray(margin(states, controls, less)) < viability.SHIELD_MARGIN + 1e-3).all()


@pytest.mark.parametrize("behind", ["shield", "alarm", "nothing"])
def test_random_actions_violate_unless_shielded(behind):
    feasible = np.flatnonzero(~hot().doomed & (peaks() < 355.98))
    starts = evaluate.Starts(*(x[feasible] for x in hot()))
    wrap = {
        "shield": functools.partial(viability.shielded, params=params()),
        "alarm": functools.partial(viability.alarmed, threshold=351.0),
        "nothing": lambda act: act,
    }[behind]
    memory = jax.random.split(jax.random.key(1), len(feasible))
    trajectory = roll(wrap(uniform_random), memory, starts, 40)
    violated = (trajectory.peak_temperature > 356.0).any(axis=0)
    if behind == "shield":
        assert not violated.any()
        moved = np.abs(trajectory.action - np.asarray(SAFEST)).max()
        assert moved > 1.5  # it still acts
    elif behind == "nothing":
        assert violated.mean() > 0.2
    else:
        hot_obs = trajectory.obs[..., 4] > 351.0
        assert hot_obs.any() and (~hot_obs).any()
        assert (trajectory.action[hot_obs] == -1.0).all()
        assert (np.abs(trajectory.action[~hot_obs]) < 1.0).any()


def test_an_observation_shows_the_state():
    state = initial_state(hot().state[0], hot().control[0])
    obs = PolyCSTR().observation(state, jnp.zeros((7,)), params())
    found, controls = state_from_obs(obs)
    np.testing.assert_allclose(found, hot().state[0], rtol=1e-6)
    np.testing.assert_array_equal(controls, hot().control[0])


def test_doom_is_counted_up_to_the_first_violation():
    trajectory = roll(uniform_random, jax.random.split(jax.random.key(1), 64), hot(), 30)
    found = jax.device_get(viability.doom(trajectory, params(), 256))
    violates = trajectory.peak_temperature > 356.0
    # By hand, an episode at a time.
    margin = jax.jit(jax.vmap(viability.feasible_margin))
    for lane in (0, 5, 20, 32, 40, 50, 63):
        first_violation = violates[:, lane].argmax() if violates[:, lane].any() else 29
        states = np.concatenate([hot().state[lane][None], trajectory.state[:-1, lane]])
        controls = np.concatenate([hot().control[lane][None], trajectory.control[:-1, lane]])
        doomed = (np.asarray(margin(states, controls)) < 0.0)[: first_violation + 1]
        assert found.doomed_share[lane] == pytest.approx(doomed.mean(), abs=0.05)
        if not doomed.any():
            assert np.isnan(found.first_doomed[lane]) and np.isnan(found.lead[lane])
            continue
        assert found.first_doomed[lane] == pytest.approx(0.5 * doomed.argmax(), abs=0.5)
        if violates[:, lane].any():
            lead = 0.5 * (first_violation + 1 - doomed.argmax())
            assert found.lead[lane] == pytest.approx(lead, abs=0.5)
    clear = np.abs(peaks() - 356.0) > 0.03
    np.testing.assert_array_equal((found.first_doomed == 0.0)[clear], hot().doomed[clear])
    assert np.isfinite(found.lead).sum() >= 32 and (found.lead[np.isfinite(found.lead)] > 0).all()


def test_a_calm_episode_is_never_doomed():
    trajectory = roll(safest, jnp.zeros((64,)), hot(), 30)
    found = jax.device_get(viability.doom(trajectory, params(), 256))
    calm = peaks() < 355.97
    assert calm.sum() > 20
    assert (found.doomed_share[calm] == 0.0).all() and np.isnan(found.lead[calm]).all()


# --- A learned feasibility against the answer key ---


def test_false_alarms_and_misses_are_counted_in_the_band_alone():
    margin = np.array([1.0, 2.0, 3.0, 4.9, -1.0, -2.0, 30.0, -30.0])
    called = np.array([True, False, True, True, True, False, False, True])
    found = viability.agreement(called, margin)
    assert found == (0.25, 0.5, 4, 2)  # the last two, far from the boundary, do not count
    assert viability.agreement(called, margin, band=100.0) == (0.4, 2.0 / 3.0, 5, 3)
    assert viability.agreement(margin >= 0.0, margin)[:2] == (0.0, 0.0)
    nobody = viability.agreement(called[:4], margin[:4])
    assert np.isnan(nobody.misses) and nobody.num_doomed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(3), np.ones(4)), r"called_feasible and margin have shapes \(3,\) and \(4,\)"),
        ((np.ones((2, 2)), np.ones((2, 2))), r"allowed: \(N,\) twice"),
        ((np.ones(3), np.ones(3), 0.0), "band = 0.0; allowed: above 0 K"),
    ],
)
def test_bad_verdicts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        viability.agreement(*arguments)


def test_24_intervals_are_enough():
    """Followed for 100 intervals, the safest policy gets no hotter."""
    starts = hot()

    def peaks(num_steps):
        follow = functools.partial(viability.peak_under_safest, num_steps=num_steps)
        return jax.jit(jax.vmap(follow))(*starts[:2])

    np.testing.assert_allclose(peaks(SAFEST_STEPS), peaks(100), atol=1e-3)


@pytest.mark.parametrize("kind", evaluate.START_SETS)
def test_doomed_starts_are_those_of_the_answer_key(kind):
    for scenario in ("startup", "grade_down", "grade_up"):
        starts = evaluate.starts(scenario, kind)
        margin = jax.jit(jax.vmap(viability.feasible_margin))(*starts[:2])
        clear = np.abs(margin) > 1e-3  # K, of another platform's rounding
        np.testing.assert_array_equal((np.asarray(margin) < 0.0)[clear], starts.doomed[clear])


def test_bad_limits_and_horizons_are_named():
    state, control = (jnp.asarray(x[0]) for x in hot()[:2])
    for limit in (340.0, 600.0, float("nan")):
        wrong = params().replace(temperature_limit=limit)
        for call in (
            lambda wrong=wrong: viability.feasible_margin(state, control, wrong),
            lambda wrong=wrong: viability.action_margin(state, control, jnp.zeros(2), wrong),
            lambda wrong=wrong: viability.shield(state, control, jnp.zeros(2), wrong),
            lambda wrong=wrong: viability.shielded(safest, wrong),
        ):
            with pytest.raises(ValueError, match=f"limit = {limit} K; allowed: above the set-po"):
                call()
    with pytest.raises(ValueError, match="num_steps = 0; allowed: an integer"):
        viability.peak_under_safest(state, control, num_steps=0)


def test_a_measurement_below_zero_is_read_as_zero():
    """As at the beginning of a start-up under noise."""
    obs = jnp.asarray([440.0, 0.0, 0.0, 0.0, 350.0, 100.0, 0.0, 1.0, 345.0])
    noisy = obs + jnp.asarray([0.0, -0.04, -0.006, -0.4, 0.0, 0.0, 0.0, 0.0, 0.0])
    for state, expected in zip(state_from_obs(noisy), state_from_obs(obs), strict=True):
        np.testing.assert_array_equal(state, expected)
    act = jax.jit(viability.shielded(lambda _: jnp.asarray([0.3, 0.2]), params()))
    np.testing.assert_array_equal(act(noisy), act(obs))
