"""Two safety problems with a known answer, for reachability learned from data.

`double_integrator`: x'' = a in [-1, 1], keep |x| <= 1. It can where braking ends inside:
x + v |v| / 2 in [-1, 1].

`point_robot`: the reach-avoid problem of arXiv 2401.10700 (a car that turns and accelerates, two
discs to avoid, one to reach). Its data set is not public; ours is a mixture of episodes of random
actions and of a noisy controller that seeks the goal and turns away from discs. What is feasible
is certified by a search over 84 manoeuvres that end in a standstill; the one manoeuvre of the
paper's own figure, braking while turning away, is among them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polycstr_jax.data import Normaliser, TrainingData

DT_INTEGRATOR = 0.1
INTEGRATOR_STD = np.array([1.0, 1.0])

DT, RADIUS, ARENA = 0.05, 0.8, 3.0
HAZARDS = np.array([[0.4, -1.2], [-0.4, 1.2]])
GOAL, GOAL_RADIUS = np.array([2.2, 2.2]), 0.3
HORIZON = 300
SLICES = ((0.5, np.pi / 4), (1.0, np.pi / 2), (1.5, np.pi / 4))  # speed, heading; the paper's
SWITCHES = (0, 4, 8, 16)  # steps of a first phase, before braking to a standstill
NUM_BRAKING_STEPS = 60
TURNS = (-1.0, 0.0, 1.0)
ROBOT_STD = np.array([1.5, 1.5, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.5, 1.0, 1.0])


class Transitions(NamedTuple):
    """Transitions of a problem, NumPy; N of them, in its own units."""

    obs: np.ndarray  # (N, S)
    action: np.ndarray  # (N, A) in [-1, 1]
    reward: np.ndarray  # (N,)
    h: np.ndarray  # (N,) of the state reached; > 0 violates
    next_obs: np.ndarray  # (N, S)
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool


def training_data(found: Transitions, obs_std) -> TrainingData:
    """What an algorithm takes; observations divided by `obs_std` (S,), h as `constraint`."""
    num, num_actions = found.action.shape
    columns = {name: jnp.asarray(x, np.float32) for name, x in found._asdict().items()}
    return TrainingData(
        obs=columns["obs"] / jnp.asarray(obs_std, np.float32)[None],
        action=columns["action"],
        reward=columns["reward"],
        cost=jnp.asarray(found.h > 0.0, np.float32),
        constraint=columns["h"],
        next_obs=columns["next_obs"] / jnp.asarray(obs_std, np.float32)[None],
        terminated=jnp.asarray(found.terminated),
        truncated=jnp.asarray(found.truncated),
        tracking_cost=jnp.zeros(num),
        normaliser=Normaliser(
            obs_mean=jnp.zeros(len(obs_std)),
            obs_std=jnp.asarray(obs_std, np.float32),
            action_mean=jnp.zeros(num_actions),
            action_std=jnp.full(num_actions, 0.5),
            action_low=-jnp.ones(num_actions),
            action_high=jnp.ones(num_actions),
            reward_std=jnp.ones(()),
        ),
    )


# --- The double integrator ---


def integrator_step(state, action):
    """(x, v) (..., 2) after 0.1 s of acceleration (...,)."""
    x, v = state[..., 0], state[..., 1]
    dt = DT_INTEGRATOR
    return np.stack([x + v * dt + 0.5 * action * dt**2, v + action * dt], axis=-1)


def integrator_data(num: int, seed: int = 0) -> Transitions:
    """Single steps from uniform states: a third brake at full rate, a third accelerate at full
    rate either way, a third act uniformly at random."""
    rng = np.random.default_rng(seed)
    state = rng.uniform([-2.0, -2.5], [2.0, 2.5], (num, 2))
    action = rng.uniform(-1.0, 1.0, num)
    kind = rng.integers(3, size=num)
    action = np.select([kind == 0, kind == 1], [-np.sign(state[:, 1]), np.sign(action)], action)
    after = integrator_step(state, action)
    no = np.zeros(num, bool)
    h = np.abs(after[:, 0]) - 1.0
    return Transitions(state, action[:, None], -(after[:, 0] ** 2), h, after, no, no)


def integrator_feasible(state):
    """Whether |x| <= 1 can be kept (...,): in continuous time, braking at once."""
    x, v = state[..., 0], state[..., 1]
    return (np.abs(x) <= 1.0) & (np.abs(x + v * np.abs(v) / 2.0) <= 1.0)


def integrator_grid(num: int = 81):
    """States (num, num, 2) in |x| <= 1.3, |v| <= 1.8."""
    x, v = np.meshgrid(np.linspace(-1.3, 1.3, num), np.linspace(-1.8, 1.8, num), indexing="ij")
    return np.stack([x, v], axis=-1)


# --- The point robot ---


def robot_step(state, action):
    """(x, y, v, heading) (..., 4) after 0.05 s of (acceleration, turn rate) (..., 2); explicit
    Euler, as published."""
    x, y, v, angle = (state[..., n] for n in range(4))
    acceleration, turn = action[..., 0], action[..., 1]
    moved = [x + v * jnp.cos(angle) * DT, y + v * jnp.sin(angle) * DT]
    return jnp.stack([*moved, v + acceleration * DT, angle + turn * DT], axis=-1)


def robot_h(state):
    """Depth inside the nearer disc (...,); > 0 violates."""
    offset = state[..., None, :2] - HAZARDS.reshape((1,) * (state.ndim - 1) + (2, 2))
    return RADIUS - jnp.sqrt(jnp.sum(offset**2, axis=-1)).min(axis=-1)


def robot_obs(state):
    """Position, speed, heading, and of each disc distance and bearing (..., 11)."""
    x, y, v, angle = (state[..., n] for n in range(4))
    parts = [x, y, v, jnp.cos(angle), jnp.sin(angle)]
    for centre in HAZARDS:
        away, bearing = polar(centre, state)
        parts += [away, jnp.cos(bearing), jnp.sin(bearing)]
    return jnp.stack(parts, axis=-1)


def polar(point, state):
    """Distance of a point and its bearing, against the heading (...,)."""
    dx, dy = point[0] - state[..., 0], point[1] - state[..., 1]
    bearing = jnp.arctan2(dy, dx) - state[..., 3]
    return jnp.sqrt(dx**2 + dy**2), jnp.arctan2(jnp.sin(bearing), jnp.cos(bearing))


def robot_controller(state):
    """Towards the goal at speed 1.2, turning away from a disc ahead and slowing down (..., 2)."""
    _, turn = polar(GOAL, state)
    turn, speed = 3.0 * turn, 1.2
    for centre in HAZARDS:
        away, bearing = polar(centre, state)
        near = (away < RADIUS + 0.9) & (jnp.abs(bearing) < 1.2)
        turn = jnp.where(near, -3.0 * jnp.sign(bearing), turn)
        speed = jnp.where(near, 0.4, speed)
    return jnp.clip(jnp.stack([2.0 * (speed - state[..., 2]), turn], axis=-1), -1.0, 1.0)


@jax.jit
def robot_episodes(keys):
    """(before, action, after) (300, E, ...), half of the episodes by random actions held for ten
    steps, half by the controller with noise."""

    def one(key):
        key_start, key_actions, key_kind = jax.random.split(key, 3)
        low = jnp.asarray([-ARENA, -ARENA, 0.5, 0.25 * jnp.pi])
        high = jnp.asarray([ARENA, ARENA, 2.0, 0.75 * jnp.pi])
        start = low + (high - low) * jax.random.uniform(key_start, (4,))
        held = jax.random.uniform(key_actions, (HORIZON // 10, 2), minval=-1.0)
        is_random = jax.random.bernoulli(key_kind)

        def step(state, index):
            draw = held[index // 10]
            steered = jnp.clip(robot_controller(state) + 0.5 * draw, -1.0, 1.0)
            action = jnp.where(is_random, draw, steered)
            after = robot_step(state, action)
            return after, (state, action, after)

        return jax.lax.scan(step, start, jnp.arange(HORIZON))[1]

    return jax.vmap(one, out_axes=1)(keys)


def robot_data(num: int, seed: int = 0) -> Transitions:
    """`num` transitions of whole episodes, which end at the goal or outside the arena."""
    found: list[list[np.ndarray]] = []
    count, batch = 0, 0
    while count < num:
        keys = jax.random.split(jax.random.key(seed + 1_000 * batch), 256)
        before, action, after = (np.asarray(x) for x in robot_episodes(keys))
        gap = np.linalg.norm(after[..., :2] - GOAL, axis=-1)
        was = np.linalg.norm(before[..., :2] - GOAL, axis=-1)
        done = (gap <= GOAL_RADIUS) | (np.abs(after[..., :2]) > ARENA).any(axis=-1)
        alive = np.cumsum(done, axis=0) - done == 0
        last = np.zeros_like(done)
        last[-1] = ~done[-1]
        reward = was - gap + (gap <= GOAL_RADIUS)
        rows = (before, action, reward, np.asarray(robot_h(after)), after, done, last)
        # Episode by episode.
        found.append([np.moveaxis(x, 1, 0)[alive.T] for x in rows])
        count, batch = count + int(alive.sum()), batch + 1
    before, action, reward, h, after, done, last = (
        np.concatenate(parts)[:num] for parts in zip(*found, strict=True)
    )
    obs, next_obs = (np.asarray(robot_obs(x)) for x in (before, after))
    return Transitions(obs, action, reward, h, next_obs, done, last)


def robot_grid(speed: float, heading: float, num: int = 101):
    """States (num, num, 4) of a slice of the arena."""
    axis = np.linspace(-2.7, 2.7, num)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([x, y, np.full_like(x, speed), np.full_like(x, heading)], axis=-1)


def manoeuvres():
    """First phase (acceleration, turn), its steps, and the turn while braking; (M, 4)."""
    found = [
        (acceleration, turn, steps, last)
        for acceleration in TURNS
        for turn in TURNS
        for steps in SWITCHES[1:]
        for last in TURNS
    ]
    return np.array([(0.0, 0.0, 0, last) for last in TURNS] + found)


@jax.jit
def robot_depth(states):
    """Least over the manoeuvres of the greatest depth in a disc, now or later, (N,).

    At most 0: certified feasible, by a manoeuvre that ends in a standstill outside.
    """

    def of_manoeuvre(manoeuvre):
        acceleration, turn, steps, last = manoeuvre

        def step(carry, index):
            state, depth = carry
            v = state[:, 2]
            brake = jnp.clip(-v / DT, -1.0, 1.0)
            first = index < steps
            action = jnp.stack(
                [
                    jnp.where(first, acceleration, brake),
                    jnp.where(first, turn, last) * jnp.ones_like(v),
                ],
                axis=-1,
            )
            state = robot_step(state, action)
            return (state, jnp.maximum(depth, robot_h(state))), None

        start = (states, robot_h(states))
        (_, depth), _ = jax.lax.scan(step, start, jnp.arange(NUM_BRAKING_STEPS + max(SWITCHES)))
        return depth

    return jax.lax.map(of_manoeuvre, jnp.asarray(manoeuvres(), states.dtype)).min(axis=0)


# --- Comparison ---


def intersection_over_union(a, b) -> float:
    """Of two boolean arrays."""
    union = np.sum(a | b)
    return float(np.sum(a & b) / union) if union else 1.0
