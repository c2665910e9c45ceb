"""The contract that every file of algos/ keeps, and what is special to each."""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import polycstr_jax
from algos import bc, common, cpq, iql
from algos.common import scan_updates
from polycstr_jax.data import Normaliser, TrainingData

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SHARED = {"__init__", "actor_critic", "checkpoints", "common", "multipliers"}
SHARED |= {"export", "numpy_policy"}  # which train nothing
NAMES = sorted(
    path.stem
    for path in (Path(__file__).parent.parent / "algos").glob("*.py")
    if path.stem not in SHARED
)
NUM_TRANSITIONS = 400
SMALL = {"hidden": (16, 16), "batch_size": 32}
# Of the denoiser; of several samples the one taken would depend on rounding.
SMALL_DENOISER = {"width": 16, "num_blocks": 1, "num_samples": 1}
# Of those that train online: one episode of ten intervals an update.
SMALL_ONLINE = {"gradient_steps": 2, "vpa_updates": 5, "capacity": 200}
HORIZON = 10
OFFLINE_TO_ONLINE = ("marvel", "o2o_baselines")
SMALL_BASE = bc.Config(**SMALL, num_updates=20)
SMALL_CPQ = cpq.Config(**SMALL, vae_hidden=(16,), num_updates=20)


def settings(name):
    """Names of the fields of an algorithm's configuration."""
    return {field.name for field in dataclasses.fields(module_of(name).Config)}


def module_of(name):
    return importlib.import_module(f"algos.{name}")


LAYERS = [name for name in NAMES if "base" in settings(name)]


def synthetic_data(policy=lambda obs: jnp.tanh(obs[:, :2])) -> TrainingData:
    """Transitions with a known behaviour policy, in raw units offset by 5 and scaled by 3."""
    key_obs, key_next = jax.random.split(jax.random.key(7))
    obs = jax.random.normal(key_obs, (NUM_TRANSITIONS, 9))
    column = jnp.linspace(-1.0, 0.0, NUM_TRANSITIONS)
    action = policy(obs)
    return TrainingData(
        obs=obs,
        action=action,
        reward=column,
        cost=(column > -0.2).astype(jnp.float32),
        constraint=column + 0.2,
        next_obs=jax.random.normal(key_next, (NUM_TRANSITIONS, 9)),
        terminated=jnp.zeros(NUM_TRANSITIONS, bool),
        truncated=jnp.arange(NUM_TRANSITIONS) % 200 == 199,
        tracking_cost=-column,
        normaliser=Normaliser(
            obs_mean=jnp.full(9, 5.0),
            obs_std=jnp.full(9, 3.0),
            action_mean=jnp.full(2, 0.1),
            action_std=jnp.full(2, 0.5),
            action_low=action.min(axis=0),
            action_high=action.max(axis=0),
            reward_std=jnp.ones(()),
        ),
    )


@pytest.fixture(scope="module")
def data():
    return synthetic_data()


def small_algorithm(name):
    """Module, small configuration, and functions; of a layer, around a small BC."""
    module = module_of(name)
    wanted = {**SMALL, **SMALL_DENOISER, **SMALL_ONLINE, "num_updates": 100}
    small = {k: v for k, v in wanted.items() if k in settings(name)}
    config = dataclasses.replace(module.PRESETS["default"], **small)
    env, params = polycstr_jax.make("startup", max_steps_in_episode=HORIZON)
    around = {"base": small_base(name)} if name in LAYERS else {}
    return module, config, module.make_train(config, env, params, **around)


def small_base(name):
    """What a layer wraps: BC, or, for its critics, CPQ."""
    return cpq.make_train(SMALL_CPQ) if name in OFFLINE_TO_ONLINE else bc.make_train(SMALL_BASE)


@pytest.fixture(scope="module", params=NAMES)
def algorithm(request):
    yield small_algorithm(request.param)
    jax.clear_caches()  # as conftest's `free_programs`: together they are too many


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    yield small_algorithm(request.param)
    jax.clear_caches()


def initial_state(functions, rng, data):
    """Before the first update; of a layer, around a base before its first."""
    of_base = () if functions.base is None else (initial_state(functions.base, rng, data),)
    return jax.jit(functions.init)(rng, data, *of_base)


@functools.cache
def train_two(functions):
    """`train` vmapped over seeds and jitted, made once: the tests give it two."""
    return jax.jit(jax.vmap(functions.train, (0, None)))


def actions(functions, state, obs):
    """Of standardised observations (N, 9)."""
    act = functions.policy(state)
    return jax.jit(jax.vmap(lambda o: act(5.0 + 3.0 * o, jax.random.key(0))))(obs)


def same_bytes(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    )


def test_every_algorithm_is_held_to_the_contract():
    expected = {
        "bc",
        "bcql",
        "bearl",
        "coptidice",
        "cpq",
        "fisor",
        "iql",
        "marvel",
        "o2o_baselines",
        "picnn",
        "sac_lag",
    }
    assert expected <= set(NAMES)


def test_configuration_is_frozen_hashable_and_explained(algorithm):
    module, config, functions = algorithm
    assert functions.config is config
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_updates = 3
    name = module.__name__.rpartition(".")[2]
    assert f"Run: python algos/{name}.py" in module.__doc__
    assert "Deviations from the paper" in module.__doc__


def test_same_key_same_bytes_and_other_key_other_result(algorithm, data):
    _, _, functions = algorithm
    train = jax.jit(functions.train)
    first, again, other = (train(jax.random.key(n), data)[0].params for n in (0, 0, 1))
    assert same_bytes(first, again)
    assert not same_bytes(first, other)


def test_running_in_chunks_equals_running_in_one_go(algorithm, data):
    _, _, functions = algorithm
    run = jax.jit(functions.run, static_argnums=3)
    start = initial_state(functions, jax.random.key(0), data)
    whole, _ = run(start, data, jax.random.key(1), 8)
    part, _ = run(start, data, jax.random.key(1), 4)
    part, _ = run(part, data, jax.random.key(1), 4)
    assert same_bytes(whole.params, part.params)


def test_vmapped_seeds_stay_close_to_single_ones_over_100_updates(algorithm, data):
    _, config, functions = algorithm
    keys = jax.random.split(jax.random.key(3), 2)
    vmapped, metrics = train_two(functions)(keys, data)
    for n in range(2):
        single, _ = jax.jit(functions.train)(keys[n], data)
        lane = jax.tree.map(lambda x, n=n: x[n], vmapped)
        one, other = (actions(functions, state, data.obs[:50]) for state in (single, lane))
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert int(vmapped.step[0]) == config.num_updates
    for name, values in metrics.items():
        assert values.shape == (2,) and np.all(np.isfinite(values)), name


def test_data_are_an_argument_and_nothing_calls_back(algorithm, data):
    _, _, functions = algorithm
    jaxpr = jax.make_jaxpr(functions.train)(jax.random.key(0), data)
    assert sum(np.size(const) for const in jaxpr.consts) < 100
    assert "callback" not in str(jaxpr)


def test_policy_maps_raw_observations_into_the_action_box(algorithm, data):
    _, _, functions = algorithm
    state = initial_state(functions, jax.random.key(0), data)
    act = jax.jit(functions.policy(state))
    for obs in (jnp.zeros(9), jnp.full(9, 1e6), 5.0 + 3.0 * data.obs[0]):
        action = act(obs, jax.random.key(1))
        assert action.shape == (2,)
        assert np.all(np.abs(action) <= 1.0)


def test_seeds_trained_under_a_progress_bar_are_those_of_train(algorithm, data):
    _, config, functions = algorithm
    keys = jax.random.split(jax.random.key(5), 2)
    states, curves, seconds = common.train_seeds(
        functions, data, keys, config.num_updates, num_chunks=4
    )
    expected, _ = train_two(functions)(keys, data)

    def learned(state):
        base = [] if functions.base is None else [state.base.params]
        return [state.params, *base]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        learned(states),
        learned(expected),
    )
    assert all(curve.shape == (2, 4) for curve in curves.values())
    assert seconds["compile"] > 0.0 and seconds["run"] > 0.0
    with pytest.raises(ValueError, match=r"num_updates = 0; allowed: 1 or more"):
        common.train_seeds(functions, data, keys, 0)


def test_the_file_runs_alone_and_its_states_come_back(algorithm, tmp_path, monkeypatch, capsys):
    module, *_ = algorithm
    for base, config in ((bc, SMALL_BASE), (cpq, SMALL_CPQ)):  # of a layer, in no time
        monkeypatch.setitem(base.PRESETS, "default", config)
    monkeypatch.setenv("COLUMNS", "200")  # the whole table
    name = module.__name__.rpartition(".")[2]
    out = tmp_path / "trained"
    arguments = [name, "--num-seeds", "2", "--num-updates", "3", "--out", str(out)]
    for setting in SMALL_ONLINE.keys() & settings(name) - {"capacity"}:
        arguments += [f"--{setting.replace('_', '-')}", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    common.command_line(name, module.PRESETS, module.make_train)
    assert "P(runaway)" in capsys.readouterr().out
    with orbax.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(out)
    assert restored["step"].tolist() == [3, 3]
    with pytest.raises(SystemExit, match=r"exists; remove it or name another"):
        common.command_line(name, module.PRESETS, module.make_train)
    (tmp_path / "file").write_text("")
    for bad, message in (
        (["--num-updates", "0"], "num-updates = 0; allowed: 1 or more"),
        (["--num-seeds", "0"], "num-seeds = 0; allowed: 1 or more"),
        (["--out", str(tmp_path / "file" / "x")], "cannot be written to"),
    ):
        monkeypatch.setattr("sys.argv", [name, "--out", str(tmp_path / "other"), *bad])
        with pytest.raises(SystemExit, match=message):
            common.command_line(name, module.PRESETS, module.make_train)


# --- Layers around another algorithm ---


def test_there_is_a_layer():
    assert "picnn" in LAYERS


def test_a_layer_wraps_the_policy_that_its_base_is_alone(layer, data):
    _, _, functions = layer
    key = jax.random.key(2)
    wrapped = jax.jit(functions.train)(key, data)[0].base
    alone, _ = jax.jit(functions.base.train)(key, data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), wrapped.params, alone.params
    )


def test_a_layer_leaves_the_base_states_it_is_given_as_they_were(layer, data):
    _, config, functions = layer
    keys = jax.random.split(jax.random.key(5), 2)
    given = train_two(functions.base)(keys, data)[0]
    before = jax.device_get(given)
    states, _, _ = common.train_seeds(
        functions, data, keys, config.num_updates, num_chunks=2, base_states=given
    )
    assert same_bytes(given, before)
    assert same_bytes(states.base, before)


# --- Tracks ---

TRACKED = pytest.mark.parametrize("module", [bc, iql], ids=["bc", "iql"])


def wide_awake(module, track, data):
    """Functions, and an untrained state whose outputs reach beyond any limit of the actions."""
    functions = module.make_train(module.Config(hidden=(), track=track))
    state = functions.init(jax.random.key(0), data)
    return functions, state._replace(params=jax.tree.map(lambda x: 10.0 * x, state.params))


@TRACKED
@pytest.mark.parametrize("track", ["default", "published"])
def test_only_the_default_track_sees_monomer_initiator_and_radicals(module, track, data):
    functions = module.make_train(module.Config(**SMALL, num_updates=20, track=track))
    state, _ = jax.jit(functions.train)(jax.random.key(0), data)
    obs = data.obs[:20]
    plain = actions(functions, state, obs)
    assert np.all(np.abs(plain) <= 1.0)
    other_air = actions(functions, state, obs.at[:, :3].add(1.0))  # A, I, R
    other_pt = actions(functions, state, obs.at[:, 3:].add(1.0))
    assert np.all(np.any(plain != other_pt, axis=1))
    if track == "published":
        np.testing.assert_array_equal(plain, other_air)
    else:
        assert np.all(np.any(plain != other_air, axis=1))


@TRACKED
def test_published_actions_fill_the_range_of_the_data_and_no_more(module, data):
    low, high = jnp.asarray([-0.9, -0.2]), jnp.asarray([1.0, 0.1])
    ranged = data._replace(normaliser=data.normaliser._replace(action_low=low, action_high=high))
    functions, state = wide_awake(module, "published", ranged)
    chosen = actions(functions, state, data.obs)
    np.testing.assert_allclose(chosen.min(axis=0), low, atol=1e-5)
    np.testing.assert_allclose(chosen.max(axis=0), high, atol=1e-5)


@TRACKED
def test_default_actions_end_at_the_box_and_not_at_the_range_of_the_data(module, data):
    functions, state = wide_awake(module, "default", data)
    chosen = actions(functions, state, data.obs)
    np.testing.assert_array_equal(chosen.min(axis=0), -1.0)
    np.testing.assert_array_equal(chosen.max(axis=0), 1.0)


@TRACKED
def test_an_unknown_track_is_refused(module):
    with pytest.raises(ValueError, match=r"^track = 'x'; allowed: default, published\.$"):
        module.make_train(module.Config(track="x"))


# --- Shared pieces ---


def test_metrics_are_averaged_over_the_updates(data):
    class State(NamedTuple):
        step: jax.Array

    def update(state, batch, rng):
        return State(state.step + 1), {"step": state.step.astype(jnp.float32)}

    state, metrics = scan_updates(
        update, State(jnp.zeros((), jnp.int32)), data, jax.random.key(0), 5, 8
    )
    assert int(state.step) == 5
    assert float(metrics["step"]) == 2.0


def test_chunks_of_unequal_size_are_all_run(data):
    functions = bc.make_train(dataclasses.replace(SMALL_BASE, num_updates=10))
    keys = jax.random.split(jax.random.key(5), 2)
    states, curves, _ = common.train_seeds(functions, data, keys, 10, num_chunks=4)
    assert states.step.tolist() == [10, 10]
    assert all(curve.shape == (2, 4) for curve in curves.values())  # of 2, 3, 2 and 3
    expected, _ = train_two(functions)(keys, data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states.params, expected.params
    )


def test_batches_are_uniform_with_aligned_columns(data):
    batch = common.sample_batch(jax.random.key(0), data, 20_000)
    np.testing.assert_array_equal(batch.reward, -batch.tracking_cost)
    counts = np.unique(np.asarray(batch.reward), return_counts=True)[1]
    assert counts.size == NUM_TRANSITIONS  # every transition is drawn (expected 50 times)
    assert batch.obs.shape == (20_000, 9) and batch.normaliser.obs_mean.shape == (9,)


# --- BC ---


def test_bc_loss_is_the_squared_distance():
    predicted, action = jnp.zeros((4, 2)), jnp.tile(jnp.asarray([3.0, 4.0]), (4, 1))
    assert float(bc.bc_loss(predicted, action)) == 25.0
    gradient = jax.grad(bc.bc_loss)(predicted, action)
    np.testing.assert_allclose(gradient, 2.0 * (predicted - action) / 4)


@pytest.mark.parametrize("track", ["default", "published"])
def test_bc_recovers_a_known_policy(track):
    def behaviour(obs):
        return 0.3 + 0.6 * jnp.tanh(obs[:, 3:5])  # of what both tracks see

    data = synthetic_data(behaviour)
    config = bc.Config(
        hidden=(64, 64), num_updates=3_000, batch_size=64, learning_rate=1e-3, track=track
    )
    functions = bc.make_train(config)
    state, _ = jax.jit(functions.train)(jax.random.key(0), data)
    obs = jax.random.normal(jax.random.key(99), (200, 9))  # not in the data
    error = actions(functions, state, obs) - behaviour(obs)
    assert float(jnp.sqrt(jnp.mean(error**2))) < 0.35 * float(jnp.std(behaviour(obs)))


def test_bc_ignores_reward_and_cost():
    data = synthetic_data()
    changed = data._replace(reward=-7.0 * data.reward, cost=1.0 - data.cost)
    functions = bc.make_train(bc.Config(hidden=(16,), num_updates=20, batch_size=32))
    first, second = (functions.train(jax.random.key(0), d)[0].params for d in (data, changed))
    assert same_bytes(first, second)
