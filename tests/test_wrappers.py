"""The wrappers count what happened, change nothing else, and survive copying."""

import copy
import pickle

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from polycstr_jax.wrappers import LegacyStepAPI, LogWrapper

LANES, HORIZON = 4, 5
STEPS = 2 * HORIZON + 1  # two episodes, and the first interval of a third


@pytest.fixture(scope="module")
def problem():
    """Starts between 346 and 366 K, so that lanes differ in cost and in runaway."""
    return polycstr_jax.make(
        "startup",
        max_steps_in_episode=HORIZON,
        start_mean=np.asarray([440.0, 0.0, 0.0, 0.0, 356.0]),
        start_width=np.asarray([110.0, 0.0, 0.0, 0.0, 10.0]),
        temperature_limit=354.0,
        runaway_temperature=358.0,
    )


@pytest.fixture(scope="module")
def logged(problem):
    """Every transition of random actions through LogWrapper, and through the bare environment."""
    env, params = problem

    def run(step, state, actions, keys):
        def interval(state, inputs):
            obs, state, reward, terminated, truncated, info = jax.vmap(step, (0, 0, 0, None))(
                inputs[1], state, inputs[0], params
            )
            return state, (obs, reward, terminated, truncated, info)

        return jax.lax.scan(interval, state, (actions, keys))

    log = LogWrapper(env)
    reset_keys = jax.random.split(jax.random.key(0), LANES)
    keys = jax.random.split(jax.random.key(1), (STEPS, LANES))
    actions = jax.random.uniform(jax.random.key(2), (STEPS, LANES, 2), minval=-1.0)
    _, log_state = jax.vmap(log.reset, (0, None))(reset_keys, params)
    _, env_state = jax.vmap(env.reset, (0, None))(reset_keys, params)
    final, through_log = jax.jit(run, static_argnums=0)(log.step, log_state, actions, keys)
    bare_final, bare = jax.jit(run, static_argnums=0)(env.step, env_state, actions, keys)
    return jax.device_get((final, through_log, bare_final, bare))


def test_statistics_are_those_accumulated_by_hand_over_two_episodes(logged):
    _, (_, reward, terminated, truncated, info), _, _ = logged
    for lane in range(LANES):
        total, cost, length, peak, ran_away = 0.0, 0.0, 0, 0.0, False
        expected = [0.0, 0.0, 0, 0.0, False]
        for k in range(STEPS):
            total += reward[k, lane]
            cost += info["cost"][k, lane]
            length += 1
            peak = max(peak, info["peak_temperature"][k, lane])
            ran_away |= info["runaway"][k, lane]
            done = terminated[k, lane] or truncated[k, lane]
            if done:
                expected = [total, cost, length, peak, ran_away]
                total, cost, length, peak, ran_away = 0.0, 0.0, 0, 0.0, False
            names = ("return", "cost", "length", "peak_temperature", "runaway")
            returned = [info[f"returned_episode_{name}"][k, lane] for name in names]
            np.testing.assert_allclose(returned, expected, rtol=1e-5)
            assert info["returned_episode"][k, lane] == done
            assert info["returned_episode_violation"][k, lane] == (expected[1] > 0.0)
        np.testing.assert_allclose(
            [total, cost, length, peak],
            [
                logged[0].episode_return[lane],
                logged[0].episode_cost[lane],
                logged[0].episode_length[lane],
                logged[0].episode_peak_temperature[lane],
            ],
            rtol=1e-5,
        )


def test_cost_counts_the_intervals_above_the_limit(logged):
    _, (_, _, _, truncated, info), _, _ = logged
    assert np.array_equal(np.flatnonzero(truncated[:, 0]), [HORIZON - 1, 2 * HORIZON - 1])
    above = info["peak_temperature"] > 354.0
    counts = above[: 2 * HORIZON].reshape(2, HORIZON, LANES).sum(1)
    returned = info["returned_episode_cost"][[HORIZON - 1, 2 * HORIZON - 1]]
    assert np.array_equal(counts, returned)
    assert len(np.unique(counts)) > 1, "the lanes should differ for this test to mean something"
    runaways = info["returned_episode_runaway"][[HORIZON - 1, 2 * HORIZON - 1]]
    assert runaways.any() and not runaways.all()


def test_logging_leaves_the_transitions_alone(logged):
    final, through_log, bare_final, bare = logged
    *log_values, log_info = through_log
    *bare_values, bare_info = bare
    log_info = {name: log_info[name] for name in bare_info}
    for one, other in zip(
        jax.tree.leaves((log_values, log_info, final.env_state)),
        jax.tree.leaves((bare_values, bare_info, bare_final)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_names_that_purejaxrl_reads(logged):
    info = logged[1][-1]
    assert np.array_equal(info["returned_episode_returns"], info["returned_episode_return"])
    assert np.array_equal(info["returned_episode_lengths"], info["returned_episode_length"])


def test_reset_and_step_states_have_equal_shapes_and_dtypes(x64):
    env, params = polycstr_jax.make("startup")
    log = LogWrapper(env)
    key, action = jax.random.key(0), jnp.zeros((2,))
    _, start = jax.eval_shape(log.reset, key, params)
    _, after, *_ = jax.eval_shape(log.step, key, start, action, params)
    assert jax.tree.structure(start) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(start), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert start.episode_return.dtype == (jnp.float64 if x64 else jnp.float32)
    assert start.episode_length.dtype == jnp.int32


def test_legacy_step_is_the_six_values_with_done_merged(problem, logged):
    env, params = problem
    legacy = LegacyStepAPI(env)
    step = jax.jit(jax.vmap(legacy.step, in_axes=(0, 0, 0, None)))  # as rejax calls it
    reset_keys = jax.random.split(jax.random.key(0), LANES)
    keys = jax.random.split(jax.random.key(1), (STEPS, LANES))
    actions = jax.random.uniform(jax.random.key(2), (STEPS, LANES, 2), minval=-1.0)
    _, state = jax.jit(jax.vmap(legacy.reset, (0, None)))(reset_keys, params)
    for k in range(HORIZON + 1):
        obs, state, reward, done, info = step(keys[k], state, actions[k], params)
        six = jax.tree.map(lambda leaf, k=k: leaf[k], logged[3])
        np.testing.assert_allclose(obs, six[0], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(reward, six[1], rtol=1e-5)
        assert np.array_equal(done, six[2] | six[3])
        assert np.array_equal(info["terminated"], six[2])
        assert np.array_equal(info["truncated"], six[3])
        np.testing.assert_allclose(
            info["final_observation"], six[4]["final_observation"], rtol=1e-5, atol=1e-3
        )


def test_legacy_around_log_gives_five_values_with_statistics():
    env, params = polycstr_jax.make("grade_up")
    legacy = LegacyStepAPI(LogWrapper(env))
    key = jax.random.key(0)
    _, state = jax.eval_shape(legacy.reset, key, params)
    *_, done, info = jax.eval_shape(legacy.step, key, state, jnp.zeros((2,)), params)
    assert done.shape == info["returned_episode_cost"].shape == ()


def test_legacy_works_around_any_gymnax_environment():
    env, params = gymnax.make("Pendulum-v1")
    legacy = LegacyStepAPI(env)
    key = jax.random.key(0)
    _, state = jax.eval_shape(legacy.reset, key, params)
    values = jax.eval_shape(legacy.step, key, state, jnp.zeros((1,)), params)
    assert len(values) == 5 and values[3].dtype == bool


@pytest.mark.parametrize("wrapper", [LegacyStepAPI, LogWrapper])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]
)
def test_copies_are_equal_wrappers(wrapper, duplicate):
    env, _ = polycstr_jax.make("grade_down")
    original = wrapper(env)
    twin = duplicate(original)
    assert type(twin) is wrapper and twin is not original
    assert twin == original and hash(twin) == hash(original)
    assert twin.name == "PolyCSTR-GradeDown-v0"
    assert original != wrapper(polycstr_jax.make("startup")[0])


@pytest.mark.parametrize("wrapper", [LegacyStepAPI, LogWrapper])
def test_attributes_come_from_the_environment_or_are_errors(wrapper):
    env, params = polycstr_jax.make("startup")
    wrapped = wrapper(env)
    assert wrapped.num_actions == 2
    assert wrapped.observation_space(params).shape == (9,)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = wrapped.no_such_thing
    with pytest.raises(AttributeError, match="_env"):
        _ = wrapper.__new__(wrapper).name  # as copy and pickle see it, before __init__
