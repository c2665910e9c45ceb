"""The Gymnasium adapter is the JAX environment, one reactor at a time, with polite errors."""

import copy
import importlib
import pickle
import warnings

import gymnasium
import gymnax
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import polycstr_jax
from polycstr_jax import gymnasium_env
from polycstr_jax.gymnasium_env import PolyCSTRGymnasium, episode_keys

IDS = list(polycstr_jax.SCENARIOS.values())
NOISY = dict(
    measurement_noise=np.asarray([1.0, 0.1, 0.1, 1.0, 0.5]),
    mismatch_width=np.asarray([0.1, 0.1, 0.1]),
    disturbance_std=np.asarray([1.0, 1.0]),
)
HOLD = np.zeros(2, np.float32)


def random_actions(number, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (number, 2)).astype(np.float32)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_nothing_to_complain_about(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id).unwrapped)


@pytest.mark.parametrize(("scenario", "env_id"), polycstr_jax.SCENARIOS.items())
def test_both_registries_know_every_scenario(scenario, env_id):
    assert gymnasium.make(env_id).unwrapped.env.scenario == scenario
    env, params = gymnax.make(env_id)
    assert env == polycstr_jax.PolyCSTR(scenario)
    assert params.polymer_setpoint == polycstr_jax.make(scenario)[1].polymer_setpoint


def test_importing_again_changes_nothing():
    specs = {env_id: gymnasium.spec(env_id) for env_id in IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(polycstr_jax)
    assert all(gymnasium.spec(env_id) is specs[env_id] for env_id in IDS)
    assert all(gymnax.registered_envs.count(env_id) == 1 for env_id in IDS)


def test_spaces_are_float32_and_hold_what_is_observed():
    env = PolyCSTRGymnasium()
    assert env.observation_space.shape == (9,) and env.observation_space.dtype == np.float32
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    obs, _ = env.reset(seed=0)
    for action in random_actions(20):
        assert obs in env.observation_space
        obs, reward, terminated, truncated, info = env.step(action)
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        kinds = {name: type(value) for name, value in info.items()}
        assert kinds.pop("constraints") is np.ndarray
        assert set(kinds.values()) == {float, bool, int}
        assert info["cost"] == float(info["peak_temperature"] > 356.0)


def test_same_seed_same_episode():
    first, second = PolyCSTRGymnasium(**NOISY), PolyCSTRGymnasium(**NOISY)
    second.reset(seed=5)  # what happened before a seed does not matter
    assert np.array_equal(first.reset(seed=7)[0], second.reset(seed=7)[0])
    for action in random_actions(5):
        assert np.array_equal(first.step(action)[0], second.step(action)[0])
    again = first.reset()[0], second.reset()[0]
    assert np.array_equal(*again), "an unseeded reset continues the seeded sequence"
    assert not np.array_equal(again[0], first.reset(seed=7)[0])
    assert not np.array_equal(first.reset(seed=7)[0], first.reset(seed=8)[0])


def test_adapter_steps_as_the_jax_environment_does_for_the_same_keys():
    adapter = PolyCSTRGymnasium("grade_up", **NOISY)
    env, params = polycstr_jax.make("grade_up", **NOISY)
    obs, _ = adapter.reset(seed=3)
    key_reset, key_steps = episode_keys(adapter.episode_seed)
    core_obs, state = env.reset(key_reset, params)
    np.testing.assert_allclose(obs, core_obs, rtol=1e-6)
    step_env = jax.jit(env.step_env)
    for k, action in enumerate(random_actions(10)):
        obs, reward, terminated, truncated, info = adapter.step(action)
        key = jax.random.fold_in(key_steps, k)
        core_obs, state, core_reward, core_terminated, core_info = step_env(
            key, state, action, params
        )
        np.testing.assert_allclose(obs, core_obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reward, core_reward, rtol=1e-5)
        assert terminated == core_terminated and not truncated
        assert info.keys() == core_info.keys()
        for name, value in info.items():
            np.testing.assert_allclose(value, core_info[name], rtol=1e-5, atol=1e-5)


def test_an_episode_ends_after_200_intervals_with_its_own_last_observation():
    adapter = gymnasium.make("PolyCSTR-Startup-v0")
    adapter.reset(seed=0)
    for k in range(200):
        before = adapter.unwrapped.state
        obs, _, terminated, truncated, _ = adapter.step(HOLD)
        assert not terminated and truncated == (k == 199)
    # gymnax resets within step: its observation is the next episode's, the last one is in info.
    env, params = polycstr_jax.make("startup")
    next_obs, _, _, _, core_truncated, info = env.step(jax.random.key(0), before, HOLD, params)
    assert core_truncated
    np.testing.assert_allclose(obs, info["final_observation"], rtol=1e-5, atol=1e-3)
    assert np.abs(obs - next_obs).max() > 1.0


def test_step_needs_a_reset_first_and_after_the_end():
    env = PolyCSTRGymnasium(max_steps_in_episode=2)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"before reset\(\)"):
        env.step(HOLD)
    env.reset(seed=0)
    env.step(HOLD)
    assert env.step(HOLD)[3]
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"ended \(truncated\)"):
        env.step(HOLD)
    env.reset()
    env.step(HOLD)


def test_a_failed_integration_terminates_with_a_finite_observation():
    env = PolyCSTRGymnasium()
    env.reset(seed=0)
    env.state = env.state.replace(step_size=np.full((), np.nan, env.state.step_size.dtype))
    obs, _, terminated, truncated, info = env.step(HOLD)
    assert terminated and info["solver_failed"] and not truncated
    assert np.all(np.isfinite(obs))
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"ended \(terminated\)"):
        env.step(HOLD)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([np.nan, 0.0], r"action = \[nan +0\.\]; allowed: finite values, between -1 and 1"),
        ([0.0, -np.inf], "action = .*inf.*; allowed: finite values"),
        (np.zeros(3), r"action has shape \(3,\); allowed: \(2,\)"),
        (0.5, r"action has shape \(\); allowed: \(2,\)"),
        (np.zeros((1, 2)), r"action has shape \(1, 2\); allowed: \(2,\)"),
        ("up", "action = 'up'; allowed: 2 numbers between -1 and 1"),
        ([1.0, [2.0]], "action = .*; allowed: 2 numbers"),
        (None, "action = None; allowed: 2 numbers"),
    ],
)
def test_an_impossible_action_is_named_and_changes_nothing(action, message):
    env = PolyCSTRGymnasium()
    env.reset(seed=0)
    before = env.state
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert env.state is before
    assert not env.step(HOLD)[4]["clipped_action"]


@pytest.mark.parametrize("excess", [1.5, 1e39])  # 1e39 is infinite in float32
def test_a_finite_action_out_of_range_is_clipped_and_flagged(excess):
    env = PolyCSTRGymnasium()
    env.reset(seed=0)
    obs, *_, info = env.step([excess, -excess])
    env.reset(seed=0)
    expected, *_, expected_info = env.step([1.0, -1.0])
    assert info["clipped_action"] and not info["invalid_action"]
    assert not expected_info["clipped_action"]
    assert np.array_equal(obs, expected)


def test_overrides_reach_the_parameters_through_gymnasium_make():
    env = gymnasium.make("PolyCSTR-GradeUp-v0", temperature_limit=358.0, rtol=1e-4).unwrapped
    assert env.params.temperature_limit == 358.0 and env.env.rtol == 1e-4
    with pytest.raises(ValueError, match="temperature_limt is no parameter"):
        gymnasium.make("PolyCSTR-Startup-v0", temperature_limt=358.0)
    with pytest.raises(ValueError, match="scenario = 'shutdown'; allowed: startup"):
        PolyCSTRGymnasium("shutdown")
    with pytest.raises(TypeError, match="render_mode = 'human'; allowed: None"):
        PolyCSTRGymnasium(render_mode="human")


def test_options_choose_the_start():
    env = PolyCSTRGymnasium()
    start, control = [300.0, 5.0, 1e-6, 80.0, 352.0], [1.2, 341.0]
    obs, _ = env.reset(seed=0, options={"state": start, "control": control})
    np.testing.assert_allclose(
        obs, [300.0, 5.0, 1.0, 80.0, 352.0, 20.0, -2.0, 1.2, 341.0], rtol=1e-5
    )
    obs, _ = env.reset(options={"state": start})
    np.testing.assert_allclose(obs[7:], env.params.initial_control)
    drawn, _ = env.reset(seed=0)
    obs, _ = env.reset(seed=0, options={"control": control})
    np.testing.assert_allclose(obs, [*drawn[:7], *control], rtol=1e-6)


def test_choosing_the_start_that_would_be_drawn_changes_nothing():
    env = PolyCSTRGymnasium(**NOISY)
    drawn, _ = env.reset(seed=0)
    state = env.state
    chosen, _ = env.reset(seed=0, options={"state": state.reactor, "control": state.control})
    np.testing.assert_allclose(chosen, drawn, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(env.state), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": [1.0]}, "options has 'start'; allowed: 'state' and 'control'"),
        ({"state": np.zeros(4)}, r"options\['state'\] has shape \(4,\); allowed: \(5,\)"),
        ({"state": [400.0, 0, np.nan, 0, 350]}, r"options\['state'\] = .*allowed: finite"),
        ({"state": [400.0, -1, 0, 0, 350]}, r"options\['state'\] = .*concentrations from 0 to"),
        ({"state": [400.0, 0, 2.0, 0, 350]}, r"concentrations from 0 to \[1.e\+04 1.e\+03 1.e\+00"),
        ({"state": [400.0, 0, 0, 0, 77]}, "a temperature between 250.0 and 1000.0 K"),
        ({"control": [1.0]}, r"options\['control'\] has shape \(1,\); allowed: \(2,\)"),
        ({"control": [3.0, 345.0]}, r"options\['control'\] = \[.*\]; allowed: from \[  0. 300.\]"),
    ],
)
def test_an_impossible_start_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PolyCSTRGymnasium().reset(options=options)


def test_instances_and_scenarios_share_one_compilation():
    def play(**overrides):
        env = PolyCSTRGymnasium(**overrides)
        env.reset(seed=0)
        env.step(HOLD)

    play()
    compiled = gymnasium_env._step._cache_size(), gymnasium_env._reset._cache_size()
    play(temperature_limit=360.0, max_steps_in_episode=50)
    play(id_or_scenario="grade_up")
    assert compiled == (gymnasium_env._step._cache_size(), gymnasium_env._reset._cache_size())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]
)
def test_a_copy_continues_the_same_episode(duplicate):
    env = PolyCSTRGymnasium(**NOISY)
    env.reset(seed=0)
    env.step(HOLD)
    twin = duplicate(env)
    assert np.array_equal(env.step(HOLD)[0], twin.step(HOLD)[0])
    assert np.array_equal(env.reset()[0], twin.reset()[0])


def test_vectorised_by_gymnasium_with_the_true_final_observations():
    horizon, actions = 3, random_actions(4)
    lasts, starts = [], []
    for seed in (0, 1):  # make_vec seeds its environments with seed, seed + 1
        env = PolyCSTRGymnasium("grade_down", max_steps_in_episode=horizon)
        env.reset(seed=seed)
        lasts.append([env.step(action)[0] for action in actions[:horizon]][-1])
        starts.append(env.reset()[0])

    def play(mode):
        venv = gymnasium.make_vec(
            "PolyCSTR-GradeDown-v0",
            num_envs=2,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": mode},
            max_steps_in_episode=horizon,
        )
        venv.reset(seed=0)
        return [venv.step(np.stack([action, action])) for action in actions]

    same = play(AutoresetMode.SAME_STEP)[horizon - 1]
    assert same[3].all()
    np.testing.assert_array_equal(np.stack(same[4]["final_obs"]), np.stack(lasts))
    np.testing.assert_array_equal(same[0], np.stack(starts))

    following = play(AutoresetMode.NEXT_STEP)
    np.testing.assert_array_equal(following[horizon - 1][0], np.stack(lasts))
    np.testing.assert_array_equal(following[horizon][0], np.stack(starts))
    assert following[0][4]["constraints"].shape == (2, 2)


def make_vec(mode, seeds, how="sync", **more):
    """Two reactors, three intervals to an episode, and what they show after `reset(seed=seeds)`."""
    envs = gymnasium.make_vec(
        "PolyCSTR-GradeDown-v0",
        num_envs=2,
        vectorization_mode=how,
        vector_kwargs={"autoreset_mode": mode} | more,
        max_steps_in_episode=3,
    )
    return envs, envs.reset(seed=seeds)[0]


def alone(seed, actions):
    """What one reactor shows: at the start, after each action, and at its next start."""
    env = PolyCSTRGymnasium("grade_down", max_steps_in_episode=3)
    return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions), env.reset()[0]]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_each_seed_of_a_list_makes_its_own_reactor(mode):
    actions = random_actions(6).reshape((3, 2, 2))  # intervals, reactors, inputs
    expected = [alone(seed, actions[:, i]) for i, seed in enumerate((9, 5))]
    for _ in range(2):  # again, the same
        envs, start = make_vec(mode, [9, 5])
        assert envs.metadata["autoreset_mode"] == mode
        assert envs.single_observation_space.dtype == start.dtype == np.float32
        assert envs.single_action_space.dtype == np.float32
        seen = [start, *(envs.step(action)[0] for action in actions)]
        for i in (0, 1):
            for k in range(3):
                np.testing.assert_array_equal(seen[k][i], expected[i][k])
            shown = 4 if mode == AutoresetMode.SAME_STEP else 3
            np.testing.assert_array_equal(seen[3][i], expected[i][shown])
    assert np.abs(expected[0][0] - expected[1][0]).max() > 0.1, "the seeds differ"


def test_without_automatic_reset_only_the_reactors_named_start_anew():
    actions = random_actions(6).reshape((3, 2, 2))
    envs, _ = make_vec(AutoresetMode.DISABLED, [9, 5])
    for action in actions:
        obs, _, _, truncated, _ = envs.step(action)
    assert truncated.all()
    again, _ = envs.reset(options={"reset_mask": np.asarray([False, True])})
    np.testing.assert_array_equal(again[0], obs[0])
    np.testing.assert_array_equal(again[1], alone(5, actions[:, 1])[4])


def test_vector_environments_keep_their_own_mode():
    """Gymnasium writes the mode into the first reactor's metadata, so that must not be shared."""
    modes = list(AutoresetMode)
    envs = [make_vec(mode, [0, 1])[0] for mode in modes]
    assert [one.metadata["autoreset_mode"] for one in envs] == modes
    assert "autoreset_mode" not in PolyCSTRGymnasium.metadata


def test_reactors_in_processes_of_their_own_do_the_same(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    actions = random_actions(6).reshape((3, 2, 2))
    expected = [alone(seed, actions[:, i]) for i, seed in enumerate((9, 5))]
    envs, start = make_vec(AutoresetMode.SAME_STEP, [9, 5], "async", context="spawn")
    try:
        obs, _, terminated, truncated, info = [envs.step(action) for action in actions][-1]
        assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    finally:
        envs.close()
    assert truncated.all() and not terminated.any()
    for seen, k in ((start, 0), (np.stack(info["final_obs"]), 3), (obs, 4)):
        np.testing.assert_allclose(seen, np.stack([one[k] for one in expected]), rtol=1e-5)
