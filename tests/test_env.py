"""The environment keeps gymnax's contract and does to the reactor what its documentation says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polycstr_jax
from polycstr_jax import SCENARIOS, ReactorParams
from polycstr_jax.controllers import make_pi, pi_state
from polycstr_jax.env import initial_state
from polycstr_jax.reactor import simulate_interval, steady_state
from polycstr_jax.rollout import rollout

CALM = np.array([400.0, 1.0, 1e-6, 60.0, 348.0])
CONTROL = np.array([1.0, 345.0])
KEY = np.array([0, 0], np.uint32)


LANES = 9  # of the one compiled step that these tests share


@functools.cache
def stepper():
    env, _ = polycstr_jax.make("startup")
    return jax.jit(jax.vmap(env.step_env))


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def repeat(tree, number):
    return stack([tree] * number)


def step(keys, states, actions, params):
    """One interval of up to nine lanes, each with parameters of its own."""
    number = len(actions)
    lanes = np.arange(LANES) % number
    padded = jax.tree.map(lambda leaf: np.asarray(leaf)[lanes], (keys, states, actions, params))
    result = stepper()(*padded)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:number], result)


def act(actions, params=None, state=None):
    """Apply each action to the same state of the same plant."""
    params = params or polycstr_jax.make("startup")[1]
    state = state or initial_state(CALM, CONTROL)
    actions = np.asarray(actions)
    number = len(actions)
    return step(repeat(KEY, number), repeat(state, number), actions, repeat(params, number))


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- gymnax ---


def test_an_episode_is_200_intervals_then_truncated_and_reset(double):
    env, params = polycstr_jax.make("PolyCSTR-Startup-v0")
    obs, state = env.reset(KEY, params)
    for k, key in enumerate(jax.random.split(KEY, 201)):
        assert state.time == k % 200
        action = jax.random.uniform(key, (2,), minval=-1.0)
        obs, state, _, terminated, truncated, info = env.step(key, state, action, params)
        assert not terminated and truncated == (k == 199)
        assert (info["terminated"], info["truncated"]) == (terminated, truncated)
        if truncated:
            # The observation is that of a new start, without polymer; `final_observation` is not.
            assert obs[3] == 0.0 and info["final_observation"][3] > 10.0
        else:
            np.testing.assert_array_equal(info["final_observation"], obs)


def test_step_env_does_not_reset(double):
    params = polycstr_jax.make("startup", max_steps_in_episode=1)[1]
    state = initial_state(CALM, CONTROL)
    obs, state, _, terminated, _ = step(
        KEY[None], repeat(state, 1), np.zeros((1, 2)), repeat(params, 1)
    )
    assert state.time[0] == 1 and not terminated[0]
    assert obs[0, 3] > 50.0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_reset_and_step_have_the_same_shapes_and_dtypes(x64, scenario):
    env, params = polycstr_jax.make(scenario)
    obs, state = jax.eval_shape(env.reset_env, KEY, params)
    next_obs, next_state, reward, terminated, info = jax.eval_shape(
        env.step_env, KEY, state, env.action_space().sample(KEY), params
    )
    assert (obs, state) == (next_obs, next_state)
    assert obs.shape == (9,) and terminated.dtype == bool
    expected = jnp.dtype("float64" if x64 else "float32")
    assert {obs.dtype, reward.dtype, info["cost"].dtype, info["constraints"].dtype} == {expected}


def test_spaces_contain_what_they_should():
    env, params = polycstr_jax.make("startup")
    assert env.action_space(params).shape == (2,) and env.num_actions == 2
    obs, _ = env.reset(KEY, params)
    assert env.observation_space(params).contains(obs)
    runaway = initial_state(np.array([300.0, 30.0, 2e-5, 250.0, 420.0]), CONTROL)
    assert env.observation_space(params).contains(act(np.zeros((1, 2)), state=runaway)[0][0])


def test_ids_and_short_names_mean_the_same():
    for scenario, env_id in SCENARIOS.items():
        by_id, by_name = polycstr_jax.make(env_id), polycstr_jax.make(scenario)
        assert by_id[0] == by_name[0] and by_id[0].name == env_id
        equal(by_id[1], by_name[1])
        equal(by_id[0].default_params, by_id[1])


def test_equal_environments_compile_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def reset(env, params):
        traced.append(env)
        return env.reset_env(KEY, params)[0]

    for _ in range(2):
        env, params = polycstr_jax.make("startup")
        reset(env, params)
        reset(env, params.replace(polymer_setpoint=90.0))
    assert len(traced) == 1
    assert hash(env) == hash(polycstr_jax.make("startup")[0])
    others = [polycstr_jax.make("startup", rtol=1e-4)[0], polycstr_jax.make("grade_up")[0]]
    assert env not in [*others, env.with_transition_gradients(), "startup"]


def test_scenarios_are_data(double):
    made = [polycstr_jax.make(scenario) for scenario in SCENARIOS]
    env, all_params = made[0][0], stack([params for _, params in made])
    obs, state = jax.vmap(env.reset_env, (None, 0))(KEY, all_params)
    together = step(repeat(KEY, 3), state, np.full((3, 2), 0.3), all_params)
    for n, (own_env, params) in enumerate(made):
        own_obs, own_state = own_env.reset(KEY, params)
        np.testing.assert_allclose(obs[n], own_obs, rtol=1e-12)
        alone = act(np.full((1, 2), 0.3), params, own_state)
        for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(many[n], one[0], rtol=1e-9, atol=1e-12)


# --- observation, action, reward ---


def test_observations_are_in_the_documented_order_and_units(x64):
    env, params = polycstr_jax.make("startup")
    state = initial_state(np.array([400.0, 1.5, 2e-6, 60.0, 348.0]), np.array([1.2, 344.0]))
    obs = env.observe(KEY, state, None, params)
    np.testing.assert_allclose(obs, [400, 1.5, 2, 60, 348, 40, 2, 1.2, 344], rtol=1e-6)


def test_actions_are_increments_within_the_control_bounds(x64):
    actions = [[0, 0], [1, -1], [-0.5, 0.25], [1, 1]]
    _, state, *_ = act(actions)
    np.testing.assert_allclose(
        state.control, [[1, 345], [1.5, 344], [0.75, 345.25], [1.5, 346]], rtol=1e-6
    )
    for control, actions, end in (
        ([2.4, 349.5], [1, 1], [2.5, 350.0]),
        ([0.1, 300.5], [-1, -1], [0.0, 300.0]),
    ):
        _, state, *_ = act([actions], state=initial_state(CALM, np.array(control)))
        np.testing.assert_allclose(state.control[0], end, atol=1e-6)


def test_the_interval_is_the_reactors(double):
    obs, state, *_, info = act([[0.5, -1.0]])
    end, peak = simulate_interval(CALM, 1.0, np.array([1.25, 344.0]))
    np.testing.assert_allclose(state.reactor[0], end, rtol=1e-9)
    np.testing.assert_allclose(info["peak_temperature"][0], peak, rtol=1e-9)
    np.testing.assert_allclose(obs[0, [0, 1, 3, 4]], end[jnp.array([0, 1, 3, 4])], rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_action_holds_the_controls_of_its_lane_only(x64, bad):
    good = np.array([[0.3, -0.4], [0.7, 0.2], [-1.0, 1.0], [0.0, 0.5]])
    clean = act(good)
    for row, column in ((1, 0), (2, 1)):
        actions = good.copy()
        actions[row, column] = bad
        dirty = act(actions)
        held = act([[0.0, 0.0]] * 4)
        info = dirty[-1]
        np.testing.assert_array_equal(info["invalid_action"], np.arange(4) == row)
        assert not info["clipped_action"].any()
        np.testing.assert_array_equal(dirty[0][row], held[0][row])
        others = np.arange(4) != row
        keep = lambda leaf, others=others: leaf[others]  # noqa: E731
        equal(jax.tree.map(keep, dirty), jax.tree.map(keep, clean))


def test_finite_excess_is_clipped_and_flagged(x64):
    excess = act([[7.0, 0.5], [0.2, -1e9], [1.0, -1.0]])
    clipped = act([[1.0, 0.5], [0.2, -1.0], [1.0, -1.0]])
    equal(excess[:4], clipped[:4])
    np.testing.assert_array_equal(excess[-1]["clipped_action"], [True, True, False])
    assert not excess[-1]["invalid_action"].any() and not clipped[-1]["clipped_action"].any()


def test_rewards_are_paid_for_the_state_reached(double):
    _, state, reward, terminated, info = act([[0.0, 0.0], [1.0, 1.0]])
    polymer, temperature = np.asarray(state.reactor[:, 3:]).T
    np.testing.assert_allclose(
        reward, -((100.0 - polymer) ** 2) - (350.0 - temperature) ** 2, rtol=1e-12
    )
    np.testing.assert_allclose(
        info["tracking_cost"], abs(100.0 - polymer) + abs(350.0 - temperature), rtol=1e-12
    )
    assert not terminated.any()


def test_cost_counts_a_peak_within_the_interval(double, golden):
    # A golden runaway whose peak lies tens of kelvin above both ends.
    above_ends = golden["iv_peak"] - np.maximum(golden["iv_state"], golden["iv_next"])[:, 4]
    n = np.argmax(above_ends)
    peak = golden["iv_peak"][n]
    start = initial_state(golden["iv_state"][n], [golden["iv_prev_feed"][n], 345.0])
    increments = golden["iv_control"][n] - np.asarray(start.control)
    params = polycstr_jax.make("startup", max_increment=np.abs(increments))[1]
    for limit, cost in ((peak - 0.1, 1.0), (peak + 0.1, 0.0)):
        params = params.replace(temperature_limit=limit, runaway_temperature=limit)
        _, state, _, _, info = act([np.sign(increments)], params, start)
        assert state.reactor[0, 4] < peak - 10.0 and start.reactor[4] < peak - 10.0
        assert info["peak_temperature"][0] == pytest.approx(peak, abs=0.02)
        assert info["cost"][0] == cost
        assert info["runaway"][0] == bool(cost)
        assert info["constraints"][0, 0] == pytest.approx(peak - limit, abs=0.02)


def test_the_overshoot_margin_can_be_switched_on(double):
    state = initial_state(np.array([400.0, 1.0, 1e-6, 130.0, 345.0]), CONTROL)
    _, end, _, _, info = act([[0.0, 0.0]], state=state)
    assert info["constraints"][0, 1] == -10.0
    params = polycstr_jax.make("startup", overshoot_constraint=True)[1]
    _, end, _, _, info = act([[0.0, 0.0]], params, state)
    assert info["constraints"][0, 1] == pytest.approx(float(end.reactor[0, 3]) - 100.0 - 10.0)
    assert info["constraints"][0, 1] > 0.0 and info["cost"][0] == 0.0


# --- scenarios ---


def check_uniform(values, low, high):
    values, low, high = np.asarray(values, np.float64), float(low), float(high)
    assert low <= values.min() and values.max() <= high
    assert np.ptp(values) > 0.98 * (high - low)
    assert values.mean() == pytest.approx((low + high) / 2.0, abs=0.04 * (high - low))
    assert values.std() == pytest.approx((high - low) / np.sqrt(12.0), rel=0.06)


def starts(scenario, **overrides):
    env, params = polycstr_jax.make(scenario, **overrides)
    keys = jax.random.split(KEY, 2048)
    return jax.jit(jax.vmap(env.reset_env, (0, None)))(keys, params)


def test_startups_begin_as_published(x64):
    obs, state = starts("startup")
    check_uniform(state.reactor[:, 0], 330.0 - 1e-3, 550.0 + 1e-3)
    check_uniform(state.reactor[:, 4], 345.0 - 1e-3, 355.0 + 1e-3)
    assert not state.reactor[:, 1:4].any()
    np.testing.assert_array_equal(state.control, np.tile([1.0, 345.0], (2048, 1)))
    np.testing.assert_allclose(obs[:, 5], np.full(2048, 100.0))
    np.testing.assert_allclose(obs[:, 6], 350.0 - obs[:, 4], atol=1e-4)


@pytest.mark.parametrize(
    ("scenario", "old", "new"), [("grade_down", 100, 60), ("grade_up", 60, 100)]
)
def test_grade_changes_begin_around_the_old_steady_state(double, scenario, old, new):
    steady, control = steady_state(float(old), 350.0)
    obs, state = starts(scenario)
    check_uniform(state.reactor[:, 0], 0.95 * steady[0], 1.05 * steady[0])
    check_uniform(state.reactor[:, 3], 0.95 * old, 1.05 * old)
    check_uniform(state.reactor[:, 4], 348.0, 352.0)
    np.testing.assert_allclose(state.reactor[:, 1:3], np.tile(steady[1:3], (2048, 1)), rtol=1e-12)
    np.testing.assert_allclose(state.control, np.tile(control, (2048, 1)), rtol=1e-12)
    np.testing.assert_allclose(obs[:, 5], new - state.reactor[:, 3], rtol=1e-12)


# --- robustness hooks ---


def test_without_hooks_nothing_is_random_but_the_start(x64):
    env, params = polycstr_jax.make("startup")
    state = initial_state(CALM, CONTROL)
    one, other = (env.step(jax.random.PRNGKey(n), state, jnp.ones(2), params) for n in (1, 2))
    equal(one, other)


def test_noise_is_in_the_observation_only(x64):
    std = np.array([4.0, 0.1, 0.05, 1.0, 0.3])
    noisy = polycstr_jax.make("startup", measurement_noise=std)[1]
    clean = act([[0.5, 0.5]])
    dirty = act([[0.5, 0.5]], noisy)
    equal(dirty[1:], clean[1:])
    obs = dirty[0][0]
    assert (obs[:5] != clean[0][0, :5]).all()
    np.testing.assert_allclose(obs[5:7], [100.0 - obs[3], 350.0 - obs[4]], rtol=1e-5)
    np.testing.assert_array_equal(obs[7:], clean[0][0, 7:])


def test_noise_has_the_stated_size(double):
    std = np.array([4.0, 0.1, 0.05, 1.0, 0.3])
    env, params = polycstr_jax.make("startup", measurement_noise=std)
    state = initial_state(CALM, CONTROL)
    keys = jax.random.split(KEY, 20_000)
    obs = jax.jit(jax.vmap(lambda key: env.observe(key, state, None, params)))(keys)
    np.testing.assert_allclose(np.std(obs[:, :5], axis=0), std, rtol=0.03)
    error = np.mean(obs[:, :5], axis=0) - CALM * [1.0, 1.0, 1e6, 1.0, 1.0]
    assert (np.abs(error) < 4.0 * std / np.sqrt(20_000)).all()
    correlation = np.corrcoef(obs[:, :5].T) - np.eye(5)
    assert np.abs(correlation).max() < 0.04


def test_mismatch_is_drawn_at_reset_and_stays(double):
    width = np.array([0.2, 0.1, 0.05])
    _, state = starts("startup", mismatch_width=width)
    for n in range(3):
        check_uniform(state.plant_factors[:, n], 1.0 - width[n], 1.0 + width[n])
    params = polycstr_jax.make("startup", mismatch_width=width)[1]
    lanes = jax.tree.map(lambda leaf: leaf[:4], state)
    _, after, *_ = step(repeat(KEY, 4), lanes, np.zeros((4, 2)), repeat(params, 4))
    np.testing.assert_array_equal(after.plant_factors, lanes.plant_factors)


@pytest.mark.parametrize(
    ("factors", "constants"),
    [
        ([0.8, 1.0, 1.0], {"heat_transfer": 400.0}),
        ([1.0, 1.1, 1.0], {"propagation_rate": 4.4e4}),
        ([1.0, 1.0, 0.95], {"monomer_feed": 95.0}),
    ],
)
def test_a_mismatched_plant_has_other_constants(double, factors, constants):
    params = polycstr_jax.make("startup")[1]
    mismatched = initial_state(CALM, CONTROL, plant_factors=np.array(factors))
    _, state, *_ = act([[0.0, 0.0]], params, mismatched)
    end, _ = simulate_interval(CALM, 1.0, CONTROL, ReactorParams(**constants))
    np.testing.assert_allclose(state.reactor[0], end, rtol=1e-9)
    nominal, _ = simulate_interval(CALM, 1.0, CONTROL)
    assert np.abs(end - nominal).max() > 0.01


def test_disturbances_change_the_feed(double):
    params = polycstr_jax.make("startup")[1]
    # With no kick the disturbance of the last interval decays by its rate, 0.1.
    state = initial_state(CALM, CONTROL).replace(disturbance=np.array([3.0, 5.0]))
    _, state, *_ = act([[0.0, 0.0]], params, state)
    np.testing.assert_allclose(state.disturbance, [[2.7, 4.5]])
    constants = ReactorParams(feed_temperature=352.7, monomer_feed=104.5)
    end, _ = simulate_interval(CALM, 1.0, CONTROL, constants)
    np.testing.assert_allclose(state.reactor[0], end, rtol=1e-9)


def test_disturbances_are_stationary(double):
    std, rate = np.array([1.0, 2.0]), 0.4
    params = polycstr_jax.make("startup", disturbance_std=std, disturbance_rate=rate)[1]
    params = repeat(params, LANES)
    state, rest = repeat(initial_state(CALM, CONTROL), LANES), np.zeros((LANES, 2))
    visited = []
    for keys in jax.random.split(KEY, (800, LANES)):
        _, state, *_ = stepper()(keys, state, rest, params)
        visited.append(state.disturbance)
    chain = np.array(visited)[20:]
    np.testing.assert_allclose(chain.std(axis=(0, 1)), std, rtol=0.06)
    assert (np.abs(chain.mean(axis=(0, 1))) < 0.1 * std).all()
    correlation = (chain[1:] * chain[:-1]).mean(axis=(0, 1)) / std**2
    np.testing.assert_allclose(correlation, [1.0 - rate] * 2, atol=0.06)
    assert abs(np.corrcoef(chain[..., 0].ravel(), chain[..., 1].ravel())[0, 1]) < 0.1


def test_a_delayed_action_arrives_exactly_so_many_intervals_later(x64):
    delays = range(9)
    params = stack([polycstr_jax.make("startup", action_delay=delay)[1] for delay in delays])
    state = repeat(initial_state(CALM, CONTROL), 9)
    pulse, rest = np.ones((9, 2)), np.zeros((9, 2))
    controls = []
    for k in range(10):
        _, state, *_ = step(repeat(KEY, 9), state, rest if k else pulse, params)
        controls.append(state.control)
    arrived = np.arange(10)[:, None] >= np.array(delays)
    expected = np.where(arrived[..., None], [1.5, 346.0], [1.0, 345.0])
    np.testing.assert_allclose(controls, expected, rtol=1e-6)


# --- failure and robustness ---


def test_a_solver_failure_terminates_with_a_finite_observation(x64):
    env, params = polycstr_jax.make("startup")
    impossible = initial_state(np.array([400.0, 1.0, 1e-6, 60.0, 2000.0]), CONTROL)
    lanes = stack([initial_state(CALM, CONTROL), impossible])
    obs, state, reward, terminated, info = step(
        repeat(KEY, 2), lanes, np.zeros((2, 2)), repeat(params, 2)
    )
    np.testing.assert_array_equal(terminated, [False, True])
    np.testing.assert_array_equal(info["solver_failed"], [False, True])
    for leaf in jax.tree.leaves((obs, state, reward, info)):
        assert np.isfinite(leaf).all()
    obs, state, _, terminated, truncated, info = env.step(KEY, impossible, jnp.zeros(2), params)
    assert terminated and not truncated and info["terminated"]
    assert state.time == 0 and 340.0 < obs[4] < 360.0  # a new episode


numbers = functools.partial(st.floats, width=32)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    state=st.tuples(
        numbers(0.0, 600.0), numbers(0.0, 60.0), numbers(0.0, 0.001953125),
        numbers(0.0, 600.0), numbers(300.0, 560.0),
    ),
    control=st.tuples(numbers(0.0, 2.5), numbers(300.0, 350.0)),
    action=st.tuples(numbers(), numbers()),
)  # fmt: skip
def test_any_state_and_action_give_a_finite_physical_result(state, control, action):
    with jax.enable_x64(False):
        start = initial_state(np.array(state), np.array(control))
        obs, after, reward, _, info = act([action], state=start)
    for leaf in jax.tree.leaves((obs, after, reward, info)):
        assert np.isfinite(leaf).all()
    assert (after.reactor[0, :4] >= 0.0).all() and 250.0 < after.reactor[0, 4] < 1000.0
    assert (after.control[0] >= jnp.array([0.0, 300.0])).all()
    assert (after.control[0] <= jnp.array([2.5, 350.0])).all()
    assert info["invalid_action"][0] == (not np.isfinite(action).all())
    assert info["cost"][0] in (0.0, 1.0)


# --- transformations ---


def test_transition_gradients_are_an_option(double):
    env, params = polycstr_jax.make("startup", rtol=1e-9)
    start, action = initial_state(CALM, CONTROL), jnp.array([0.2, -0.3])

    def reached(env, action):
        obs, state, *_ = env.step_env(KEY, start, action, params)
        return jnp.stack([obs[3], obs[4], state.reactor[3], state.reactor[4]])

    gradient = jax.jit(jax.jacfwd(reached, argnums=1), static_argnums=0)
    assert not gradient(env, action).any()
    value = jax.jit(reached, static_argnums=0)
    ends = [[value(env, action + sign * step) for sign in (1, -1)] for step in 1e-4 * np.eye(2)]
    difference = np.stack([(ahead - behind) / 2e-4 for ahead, behind in ends], axis=-1)
    np.testing.assert_allclose(
        gradient(env.with_transition_gradients(), action), difference, rtol=1e-4, atol=1e-7
    )


def exported(function, *args):
    """StableHLO for TPU, CUDA and CPU at once."""
    return jax.export.export(jax.jit(function), platforms=["tpu", "cuda", "cpu"])(
        *args
    ).mlir_module()


def test_the_core_lowers_for_tpu_without_callbacks_or_float64():
    with jax.enable_x64(False):
        env, params = polycstr_jax.make("startup", measurement_noise=np.ones(5))
        keys = jax.random.split(KEY, 96)
        _, state = jax.vmap(env.reset, (0, None))(keys, params)
        pi = pi_state(np.ones((96, 2)), np.ones((96, 2)), params.initial_control)
        one = jax.tree.map(lambda leaf: leaf[0], state)
        texts = [
            exported(env.step, KEY, one, jnp.zeros(2), params),
            exported(env.reset, KEY, params),
            exported(
                lambda *args: rollout(env, params, make_pi(params), *args, 3), pi, state, keys
            ),
        ]
    for text in texts:
        assert "stablehlo" in text
        assert "custom_call" not in text  # a callback is one
        assert "f64" not in text


# --- bad input ---

BAD = [
    ({"polymer_set": 90.0}, r"polymer_set is no parameter; allowed: rtol, .*polymer_setpoint"),
    ({"polymer_setpoint": 115.0}, r"115.0 kg/m3 at 350.0 K cannot .*from 0.\d to 113\.\d kg/m3"),
    ({"polymer_setpoint": np.nan}, r"polymer_setpoint = nan; allowed: finite"),
    ({"polymer_setpoint": "high"}, r"polymer_setpoint = 'high'; allowed: numbers"),
    ({"polymer_setpoint": np.ones(2)}, r"polymer_setpoint has shape \(2,\); allowed: \(\)"),
    ({"temperature_setpoint": 500.0}, r"no polymer concentration can be held at 500.0 K"),
    ({"temperature_limit": 350.0}, r"temperature_limit = 350.0; .*above the set-point of 350.0 K"),
    ({"temperature_limit": 700.0}, r"temperature_limit = 700.0; .*below 600 K"),
    ({"runaway_temperature": 355.0}, r"runaway_temperature = 355.0; .*from the limit of 356.0 K"),
    ({"max_increment": np.ones(3)}, r"max_increment has shape \(3,\); allowed: \(2,\)"),
    ({"max_increment": np.array([0.5, 0.0])}, r"max_increment = .*allowed: above 0"),
    ({"start_mean": np.full(5, np.nan)}, r"start_mean = .*nan.*allowed: finite"),
    ({"start_width": np.array([500.0, 0, 0, 0, 5])}, r"start_\w+ = .*concentrations from 0"),
    ({"start_width": np.array([-1.0, 0, 0, 0, 5])}, r"start_width = .*allowed: 0 or more"),
    ({"start_width": np.array([0.0, 0, 0, 0, 150])}, r"start_\w+ = .*temperatures from 250"),
    ({"initial_control": np.array([3.0, 345.0])}, r"initial_control = .*within the control bounds"),
    ({"measurement_noise": -np.ones(5)}, r"measurement_noise = .*allowed: 0 or more"),
    ({"mismatch_width": np.ones(3)}, r"mismatch_width = .*allowed: from 0 to below 1"),
    ({"disturbance_std": np.array([0.0, -1.0])}, r"disturbance_std = .*allowed: 0 or more"),
    ({"disturbance_rate": 0.0}, r"disturbance_rate = 0.0; allowed: above 0, at most 1"),
    ({"action_delay": 9}, r"action_delay = 9; allowed: 0 to 8 intervals"),
    ({"action_delay": 1.5}, r"action_delay = 1.5; allowed: 0 to 8 intervals"),
    ({"max_steps_in_episode": 0}, r"max_steps_in_episode = 0; allowed: .*1 or more"),
    ({"reactor": {"volume": 2.0}}, r"reactor = .*allowed: a reactor.ReactorParams"),
    ({"reactor": ReactorParams(density=np.inf)}, r"reactor.density = inf; allowed: finite"),
    ({"rtol": 0.0}, r"rtol = 0.0; allowed: a positive number"),
    ({"rtol": -1e-5}, r"rtol = -1e-05; allowed: a positive number"),
    ({"rtol": 1e-20}, r"rtol = 1e-20 is below 10 eps"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda value: str(value)[:40])
def test_impossible_parameters_are_refused(unchecked, overrides, message):
    with pytest.raises(ValueError, match=message):
        polycstr_jax.make("startup", **overrides)


@pytest.mark.parametrize("name", ["shutdown", "PolyCSTR-Startup-v1", ""])
def test_unknown_scenarios_are_answered_with_the_known(name):
    with pytest.raises(ValueError, match=rf"scenario = '{name}'; allowed: startup, .*GradeUp-v0"):
        polycstr_jax.make(name)


def test_a_float32_environment_refuses_a_tiny_rtol():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"rtol = 1e-08 .*float32"):
        polycstr_jax.make("startup", rtol=1e-8)


def test_other_set_points_and_grades_are_welcome():
    env, params = polycstr_jax.make("grade_up", polymer_setpoint=80.0, temperature_limit=354.0)
    obs, _ = env.reset(KEY, params)
    assert 17.0 - 1e-3 < obs[5] < 23.0 + 1e-3
    assert params.temperature_limit == 354.0


@pytest.mark.parametrize("action", [0.0, np.zeros(3), np.zeros((2, 2)), np.zeros(2, complex)])
def test_an_action_of_another_shape_or_kind_is_refused(action):
    env, params = polycstr_jax.make("startup")
    _, state = env.reset(jax.random.key(0), params)
    with pytest.raises(ValueError, match=r"action is .*allowed: real numbers of shape \(2,\)"):
        env.step(jax.random.key(0), state, jnp.asarray(action), params)
