"""Roll-outs of many lanes are the environment, interval by interval, only faster."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from polycstr_jax.controllers import make_pi, pi_state, uniform_random, zero
from polycstr_jax.env import initial_state
from polycstr_jax.rollout import MIN_LANES_TO_COMPACT, rollout

NUM_STEPS = 24
NOISE = {
    "measurement_noise": np.array([4.0, 0.1, 0.05, 1.0, 0.3]),
    "disturbance_std": np.array([1.0, 2.0]),
    "mismatch_width": np.array([0.1, 0.1, 0.05]),
    "action_delay": 2,
}


@functools.cache
def startup():
    """Without limits on the increments, so that the published gains can ignite the reactor."""
    return polycstr_jax.make("startup", max_increment=np.array([100.0, 1000.0]))


@functools.cache
def runner():
    env, _ = startup()

    @jax.jit
    def run(params, pi, state, keys):
        return rollout(env, params, make_pi(params), pi, state, keys, NUM_STEPS)

    return run


@functools.cache
def stepper():
    env, _ = startup()

    @jax.jit
    def step(params, obs, pi, state, keys, index):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        action, pi = jax.vmap(make_pi(params))(obs, pi)
        step = jax.vmap(env.step_env, (0, 0, 0, None))
        return (action, pi, *step(keys, state, action, params))

    return step


def lanes(golden, number, params, seed=0):
    """Controllers, states and keys: half of the lanes calm start-ups, half in a runaway."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, 12, number)
    hot = rng.integers(448, 512, number)
    is_hot = rng.permutation(number) % 2 == 0
    start = np.where(is_hot[:, None], golden["iv_state"][hot], golden["states"][chosen, 0])
    factors = 1.0 + params.mismatch_width * rng.uniform(-1.0, 1.0, (number, 3))
    states = jax.vmap(lambda s, f: initial_state(s, params.initial_control, plant_factors=f))(
        start, factors
    )
    pi = pi_state(golden["kp"][chosen], golden["ki"][chosen], params.initial_control)
    return pi, states, jax.random.split(jax.random.key(seed), number)


def agree(one, other):
    """Equal but for rounding, which may once in a while decide differently about a step's size:
    then the results differ by less than the integrator's tolerance, 1e-5."""
    for name in one:
        if name == "solver_steps":
            assert np.mean(one[name] == other[name]) > 0.97
        else:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("hooks", [{}, NOISE], ids=["calm", "noisy"])
@pytest.mark.parametrize("number", [8, 96])
def test_a_rollout_is_the_environment_stepped_by_hand(double, golden, number, hooks):
    assert (number >= MIN_LANES_TO_COMPACT) == (number == 96)
    _, params = startup()
    params = params.replace(**hooks)
    pi, state, keys = lanes(golden, number, params)
    trajectory = runner()(params, pi, state, keys)
    assert trajectory.peak_temperature.max() > 450.0
    assert trajectory.solver_steps.max() > 10 * np.median(trajectory.solver_steps)
    obs = trajectory.obs[0]
    for k in range(NUM_STEPS):
        action, pi, obs, state, reward, terminated, info = stepper()(
            params, obs, pi, state, keys, k
        )
        row = jax.tree.map(lambda leaf, k=k: leaf[k], trajectory)
        assert not terminated.any() and not row.terminated.any() and row.alive.all()
        stepped = {
            "action": action,
            "next_obs": obs,
            "state": state.reactor,
            "control": state.control,
            "reward": reward,
            "cost": info["cost"],
            "constraints": info["constraints"],
            "tracking_cost": info["tracking_cost"],
            "peak_temperature": info["peak_temperature"],
            "solver_steps": info["solver_steps"],
        }
        agree({name: getattr(row, name) for name in stepped}, stepped)


def test_what_a_controller_sees_next_is_what_it_saw_after(double, golden):
    _, params = startup()
    params = params.replace(**NOISE)
    trajectory = runner()(params, *lanes(golden, 96, params))
    np.testing.assert_array_equal(trajectory.next_obs[:-1], trajectory.obs[1:])


def test_the_true_state_is_recorded_beside_the_noisy_one(double, golden):
    _, params = startup()
    params = params.replace(**NOISE)
    trajectory = runner()(params, *lanes(golden, 96, params))
    true = np.asarray(trajectory.state[..., 3:5])
    noise = trajectory.next_obs[..., 3:5] - true
    np.testing.assert_allclose(np.std(noise, axis=(0, 1)), NOISE["measurement_noise"][3:], rtol=0.1)
    errors = np.array([100.0, 350.0]) - true
    np.testing.assert_allclose(trajectory.reward, -np.sum(errors**2, axis=-1), rtol=1e-12)


def test_the_same_seed_gives_the_same_bytes(double, golden):
    _, params = startup()
    params = params.replace(**NOISE)
    pi, states, keys = lanes(golden, 96, params)
    first, second = (runner()(params, pi, states, keys) for _ in range(2))
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), name
    other_seed = runner()(params, pi, states, jax.random.split(jax.random.key(9), 96))
    assert not np.array_equal(first.obs, other_seed.obs)


def test_a_lane_does_not_notice_its_neighbours(double, golden):
    _, params = startup()
    pi, states, keys = lanes(golden, 96, params)
    alone = runner()(params, *jax.tree.map(lambda leaf: leaf[:8], (pi, states, keys)))
    crowded = runner()(params, pi, states, keys)
    agree(alone._asdict(), {name: leaf[:, :8] for name, leaf in crowded._asdict().items()})


def test_a_failed_lane_stands_still_and_disturbs_nobody(double, golden):
    _, params = startup()
    pi, states, keys = lanes(golden, 96, params)
    healthy = runner()(params, pi, states, keys)
    reactor_state = np.array(states.reactor)
    reactor_state[5, 4] = 2000.0  # K
    trajectory = runner()(params, pi, states.replace(reactor=reactor_state), keys)
    others = np.arange(96) != 5
    np.testing.assert_array_equal(trajectory.terminated[0], ~others)
    assert trajectory.alive[0].all()
    np.testing.assert_array_equal(trajectory.alive[1:], np.tile(others, (NUM_STEPS - 1, 1)))
    np.testing.assert_array_equal(trajectory.state[1:, 5], trajectory.state[:-1, 5])
    assert all(np.isfinite(leaf).all() for leaf in trajectory)
    pick = [{k: v[:, others] for k, v in t._asdict().items()} for t in (healthy, trajectory)]
    agree(*pick)


def test_scenarios_are_an_axis_to_vmap_over(double):
    made = [polycstr_jax.make(name, max_steps_in_episode=10) for name in polycstr_jax.SCENARIOS]
    env = made[0][0]
    keys = jax.random.split(jax.random.key(0), 4)

    def run(params):
        _, state = jax.vmap(env.reset_env, (0, None))(keys, params)
        return rollout(env, params, zero, (), state, keys, 10)

    all_params = [params for _, params in made]
    stacked = jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *all_params)
    together, single = jax.jit(jax.vmap(run))(stacked), jax.jit(run)
    for n, params in enumerate(all_params):
        alone = single(params)
        agree(alone._asdict(), {name: leaf[n] for name, leaf in together._asdict().items()})
        # The horizon truncates, and nothing terminates.
        np.testing.assert_array_equal(alone.truncated[:, 0], [False] * 9 + [True])
        assert not alone.terminated.any() and alone.alive.all()


def test_a_controller_may_carry_its_own_random_numbers():
    env, params = polycstr_jax.make("startup")
    keys = jax.random.split(jax.random.key(0), 6)
    _, state = jax.vmap(env.reset, (0, None))(keys, params)

    @jax.jit
    def run(seed):
        random = jax.random.split(jax.random.key(seed), 6)
        return rollout(env, params, uniform_random, random, state, keys, 40)

    action = run(0).action
    assert np.abs(action).max() <= 1.0
    assert len(np.unique(action)) == action.size
    assert np.std(action) == pytest.approx(1.0 / np.sqrt(3.0), rel=0.1)
    assert not np.array_equal(action, run(1).action)


def test_lanes_have_to_match():
    env, params = polycstr_jax.make("startup")
    keys = jax.random.split(jax.random.key(0), 3)
    one = initial_state(params.start_mean, params.initial_control)
    state = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
    with pytest.raises(ValueError, match=r"keys has shape \(\); allowed: \(N,\)"):
        rollout(env, params, zero, (), state, keys[0], 2)
    with pytest.raises(ValueError, match=r"keys has shape \(0,\); allowed: \(N,\)"):
        rollout(env, params, zero, (), state, keys[:0], 2)
    with pytest.raises(ValueError, match=r"initial_state has a leaf of shape .*leading axis of 2"):
        rollout(env, params, zero, (), state, keys[:2], 2)
    with pytest.raises(ValueError, match=r"initial_state has a leaf of shape \(\).*axis of 3"):
        rollout(env, params, zero, (), one, keys, 2)
    with pytest.raises(ValueError, match=r"controller_state has a leaf of shape \(5,\).*axis of 3"):
        rollout(env, params, zero, jnp.zeros(5), state, keys, 2)
