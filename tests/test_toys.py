"""The two small safety problems: their answers are right, and reachability finds one of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import fisor
from benchmarks import toys

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# --- The double integrator ---


def test_what_is_called_feasible_is_what_braking_keeps_inside():
    grid = toys.integrator_grid(61)
    x, v = grid[..., 0], grid[..., 1]
    furthest = np.abs(x)
    for time in np.linspace(0.0, 1.0, 201):  # of braking to a standstill, which takes |v|
        t = time * np.abs(v)
        furthest = np.maximum(furthest, np.abs(x + v * t - 0.5 * np.sign(v) * t**2))
    clear = np.abs(furthest - 1.0) > 1e-6
    np.testing.assert_array_equal(toys.integrator_feasible(grid)[clear], (furthest <= 1.0)[clear])
    assert 0.3 < toys.integrator_feasible(grid).mean() < 0.7


def test_steps_of_the_integrator_are_exact():
    state, action = np.array([0.2, -0.4]), np.array(0.7)
    for _ in range(10):
        state = toys.integrator_step(state, action)
    np.testing.assert_allclose(state, [0.2 - 0.4 + 0.35, -0.4 + 0.7], atol=1e-12)


def test_reachability_learns_what_the_integrator_can_keep():
    config = fisor.Config(
        hidden=(64, 64),
        width=8,
        num_blocks=1,
        batch_size=256,
        learning_rate=3e-3,
        num_updates=2_500,
        target_rate=0.02,
        action_unit="box",
        safety_expectile=0.97,
    )
    data = toys.training_data(toys.integrator_data(20_000), toys.INTEGRATOR_STD)
    state = jax.jit(fisor.make_train(config).train)(jax.random.key(0), data)[0]
    grid = toys.integrator_grid(41).reshape(-1, 2)
    obs = jnp.asarray(grid / toys.INTEGRATOR_STD, jnp.float32)
    # h is of the state reached: that the limit is kept now, too, is not its business.
    inside = np.abs(grid[:, 0]) <= 1.0
    called = (np.asarray(fisor.feasibility(config, state, obs)) <= 0.0) & inside
    feasible = toys.integrator_feasible(grid)
    # Position alone does worse: at high speed towards a wall the inside is lost.
    by_position = toys.intersection_over_union(inside, feasible)
    found = toys.intersection_over_union(called, feasible)
    assert found > 0.8 > by_position


# --- The point robot ---


def test_a_step_of_the_robot_is_explicit_euler():
    state = jnp.asarray([0.1, 0.2, 1.5, 0.25 * np.pi])
    after = toys.robot_step(state, jnp.asarray([-1.0, 0.5]))
    moved = 1.5 * np.sqrt(0.5) * 0.05
    np.testing.assert_allclose(
        after, [0.1 + moved, 0.2 + moved, 1.45, 0.25 * np.pi + 0.025], rtol=1e-6
    )


def test_depth_and_bearing_of_the_discs():
    state = jnp.asarray([-0.4, 0.0, 1.0, 0.5 * np.pi])  # heading at the upper disc's centre
    assert float(toys.robot_h(state)) == pytest.approx(0.8 - 1.2)
    obs = toys.robot_obs(state)
    np.testing.assert_allclose(obs[3:5], [0.0, 1.0], atol=1e-6)
    lower = np.hypot(0.8, 1.2)
    expected = [lower, np.cos(bearing := np.arctan2(-1.2, 0.8) - 0.5 * np.pi), np.sin(bearing)]
    np.testing.assert_allclose(obs[5:8], expected, rtol=1e-5)
    np.testing.assert_allclose(obs[8:], [1.2, 1.0, 0.0], atol=1e-6)


@functools.cache
def tips(speed):
    """How far in front of a disc's centre, against the heading, a robot aiming at it is lost, by
    braking while turning, and by the best manoeuvre found."""
    distance = np.linspace(0.81, 2.2, 140)
    start = np.stack(
        [-0.4 - distance, np.full_like(distance, 1.2), np.full_like(distance, speed), 0 * distance],
        axis=-1,
    )
    state = jnp.asarray(start, jnp.float32)
    best = np.asarray(toys.robot_depth(state)) <= 0.0
    depth = toys.robot_h(state)
    for _ in range(round(speed / toys.DT)):
        state = toys.robot_step(state, jnp.tile(jnp.asarray([-1.0, 1.0]), (len(distance), 1)))
        depth = jnp.maximum(depth, toys.robot_h(state))
    return distance[np.argmax(np.asarray(depth) <= 0.0)], distance[np.argmax(best)]


@pytest.mark.parametrize(("speed", "tip"), [(0.5, 0.922), (1.0, 1.244), (1.5, 1.580)])
def test_the_papers_manoeuvre_saves_from_where_it_should_and_the_search_from_nearer(speed, tip):
    """Closed form in continuous time, to which explicit Euler adds about 0.025 v."""
    published, best = tips(speed)
    assert published == pytest.approx(tip + 0.025 * speed, abs=0.02)
    assert 0.81 < best <= published + 0.01


def test_manoeuvres_hold_the_papers_and_end_at_rest():
    found = toys.manoeuvres()
    assert len(found) == 84 == len(np.unique(found, axis=0))
    assert {(0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, -1.0)} <= set(map(tuple, found))
    fastest = 2.0 + max(toys.SWITCHES) * toys.DT
    assert fastest <= toys.NUM_BRAKING_STEPS * toys.DT


@functools.cache
def robot_data():
    return toys.robot_data(6_000)


def test_episodes_of_the_robot_are_whole_and_chained():
    found = robot_data()
    ends = found.terminated | found.truncated
    chained = ~ends[:-1]
    np.testing.assert_array_equal(found.next_obs[:-1][chained], found.obs[1:][chained])
    position = found.next_obs[:, :2]
    at_goal = np.linalg.norm(position - toys.GOAL, axis=1) <= toys.GOAL_RADIUS
    outside = (np.abs(position) > toys.ARENA).any(axis=1)
    np.testing.assert_array_equal(found.terminated, at_goal | outside)
    assert at_goal.any() and outside.any()
    nearest = np.minimum(found.next_obs[:, 5], found.next_obs[:, 8])  # of the state reached
    np.testing.assert_allclose(found.h, 0.8 - nearest, atol=1e-5)
    assert 0.02 < (found.h > 0.0).mean() < 0.3
    assert np.abs(found.action).max() <= 1.0


def test_training_data_are_scaled_as_the_robot_says():
    found = robot_data()
    data = toys.training_data(found, toys.ROBOT_STD)
    np.testing.assert_allclose(data.obs * toys.ROBOT_STD[None], found.obs, atol=1e-5)
    np.testing.assert_allclose(data.normaliser.obs(jnp.asarray(found.obs)), data.obs, atol=1e-5)
    np.testing.assert_array_equal(data.cost, found.h > 0.0)


def test_intersection_over_union():
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert toys.intersection_over_union(a, b) == pytest.approx(1 / 3)
    assert toys.intersection_over_union(a, a) == 1.0
    assert toys.intersection_over_union(~a & a, ~a & a) == 1.0
