"""Offline data sets, regenerated from a seed in seconds instead of downloaded.

- `pi` (the data of arXiv 2507.22640): 100 episodes x 200 intervals per scenario under PI
  controllers with random gains; an episode whose temperature passes 380 K is drawn again.
- `mixed` (ours, for safe RL): 500 episodes per scenario under the recipe `MIXED_SHARES`.

What is random (gains, starts, dither, boosts, noise) is drawn by NumPy from the seed and is the
same everywhere; `checksums.json` holds its sha256. The trajectories are float32, and bit-equal
only on the same platform; the sha256 of the arrays is kept per platform.
"""

import functools
import hashlib
import json
import os
import platform
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polycstr_jax import env as env_module
from polycstr_jax.controllers import KI_HIGH, KI_LOW, KP_HIGH, KP_LOW, PIState, make_pi, pi_state
from polycstr_jax.env import EnvParams, PolyCSTR, initial_state, scenario_name, scenario_params
from polycstr_jax.rollout import Trajectory, rollout

DATASETS = ("pi", "mixed")
NUM_EPISODES = {"pi": 100, "mixed": 500}
EPISODE_LENGTH = 200
DATA_SEED = 0
REWARD_FLOOR = -20_000.0  # training rewards are clipped here: a runaway must not set the scale
OBS_CLIP = 10.0  # standardised observations

# The frozen recipe of `mixed`. Shares and boost lengths differ by scenario so that in each 20 to
# 70 % of the episodes violate the limit and 5 to 15 % run away (docs/environment.md).
PI, DITHER, BOOST, NOISE, RANDOM = range(5)
BEHAVIOURS = ("pi", "dither", "boost", "noise", "random")
MIXED_SHARES = {  # multiples of 1/20
    "startup": (0.65, 0.15, 0.1, 0.05, 0.05),
    "grade_down": (0.35, 0.2, 0.25, 0.1, 0.1),
    "grade_up": (0.4, 0.2, 0.2, 0.1, 0.1),
}
BOOST_LENGTH = {"startup": (2, 5), "grade_down": (3, 7), "grade_up": (2, 6)}  # intervals
GAIN_SPREAD = (0.3, 4.0)  # gains are multiplied by exp(U(ln 0.3, ln 4))
DITHER_SIZE = (20.0, 4.0)  # kg/m3, K
DITHER_HOLD = (10, 40)  # intervals
BOOST_START = (0, 60)  # intervals
OU_THETA, OU_SIGMA = 0.15, 0.3  # per interval, in action units
RANDOM_HOLD = (2, 10)  # intervals


class Dataset(NamedTuple):
    """Transitions, episode after episode; N = episodes x 200. All float32 unless stated."""

    obs: np.ndarray  # (N, 9)
    action: np.ndarray  # (N, 2) in [-1, 1]
    reward: np.ndarray  # (N,) unscaled, -(e_P^2 + e_T^2)
    cost: np.ndarray  # (N,) 0 or 1
    constraint: np.ndarray  # (N,) signed margin T_peak - limit, K
    next_obs: np.ndarray  # (N, 9)
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    tracking_cost: np.ndarray  # (N,) |e_P| + |e_T|
    episode: np.ndarray  # (N,) int32


COLUMN_SHAPES = {"obs": (9,), "action": (2,), "next_obs": (9,)}
COLUMN_DTYPES = {"terminated": np.bool_, "truncated": np.bool_, "episode": np.int32}


class Normaliser(NamedTuple):
    """Scales of the `pi` set, used for both sets by every algorithm."""

    obs_mean: np.ndarray  # (9,)
    obs_std: np.ndarray  # (9,)
    action_mean: np.ndarray  # (2,)
    action_std: np.ndarray  # (2,) a few hundredths: most increments are small
    action_low: np.ndarray  # (2,) smallest of the set
    action_high: np.ndarray  # (2,) largest of the set
    reward_std: np.ndarray  # () of the rewards clipped at -20,000

    def obs(self, obs):
        """Standardised observations, clipped to +-10; (..., 9)."""
        shape = (1,) * (obs.ndim - 1) + (-1,)
        mean, std = self.obs_mean.reshape(shape), self.obs_std.reshape(shape)
        return jnp.clip((obs - mean) / std, -OBS_CLIP, OBS_CLIP)

    def reward(self, reward):
        """Training reward: clipped below at -20,000 and divided by its `pi` std."""
        return jnp.maximum(reward, REWARD_FLOOR) / self.reward_std


class TrainingData(NamedTuple):
    """A data set as every algorithm sees it: normalised, on the device; N transitions."""

    obs: jax.Array  # (N, 9) standardised
    action: jax.Array  # (N, 2)
    reward: jax.Array  # (N,) clipped and divided by its `pi` std
    cost: jax.Array  # (N,)
    constraint: jax.Array  # (N,) K
    next_obs: jax.Array  # (N, 9) standardised
    terminated: jax.Array  # (N,) bool
    truncated: jax.Array  # (N,) bool
    tracking_cost: jax.Array  # (N,)
    normaliser: Normaliser

    def transitions(self, function) -> "TrainingData":
        """Apply `function` to every column, not to the normaliser."""
        columns = {name: getattr(self, name) for name in self._fields if name != "normaliser"}
        return self._replace(**{name: function(column) for name, column in columns.items()})


class Behaviour(NamedTuple):
    """All that is random in E episodes; NumPy float32 or int32, drawn from the seed alone."""

    kind: np.ndarray  # (E,) index into BEHAVIOURS
    start: np.ndarray  # (E, 5) reactor state, public units
    kp: np.ndarray  # (E, 2)
    ki: np.ndarray  # (E, 2)
    setpoint_offset: np.ndarray  # (E, T, 2)
    boost_start: np.ndarray  # (E,)
    boost_end: np.ndarray  # (E,)
    noise: np.ndarray  # (E, T, 2) Ornstein-Uhlenbeck
    random_action: np.ndarray  # (E, T, 2)


def _piecewise(rng, hold, scale, num_steps):
    """Piecewise-constant U(-scale, scale), redrawn every `hold` intervals; (T, 2)."""
    values = np.empty((num_steps, 2))
    step = 0
    while step < num_steps:
        length = rng.integers(hold[0], hold[1] + 1)
        values[step : step + length] = rng.uniform(-1.0, 1.0, 2) * scale
        step += length
    return values


def draw_behaviour(
    scenario: str, dataset: str, num_episodes: int, seed: int = DATA_SEED
) -> Behaviour:
    """The random inputs of the first `num_episodes` episodes of a data set, in NumPy.

    Episode e has a generator of its own, seeded by (seed, scenario, data set, e), so a longer
    draw begins with the shorter one. `mixed` deals its behaviours in the order of a fixed cycle
    of 20 episodes. Raises `ValueError` for an unknown scenario or data set.
    """
    scenario, dataset = scenario_name(scenario), dataset_name(dataset)
    params = scenario_params(scenario)
    scenario_index = list(env_module.SCENARIOS).index(scenario)
    cycle = np.repeat(
        np.arange(len(BEHAVIOURS)), np.round(20 * np.asarray(MIXED_SHARES[scenario])).astype(int)
    )
    log_spread = np.log(GAIN_SPREAD)
    steps = EPISODE_LENGTH
    episodes = []
    for index in range(num_episodes):
        rng = np.random.default_rng([seed, scenario_index, DATASETS.index(dataset), index])
        start = params.start_mean + params.start_width * rng.uniform(-1.0, 1.0, 5)
        kp, ki = rng.uniform(KP_LOW, KP_HIGH), rng.uniform(KI_LOW, KI_HIGH)
        offset, noise, random_action = np.zeros((3, steps, 2))
        boost_start, boost_end = steps, steps
        kind = PI
        if dataset == "mixed":
            kind = int(cycle[index % len(cycle)])
            kp = kp * np.exp(rng.uniform(*log_spread, 2))
            ki = ki * np.exp(rng.uniform(*log_spread, 2))
            if kind == DITHER:
                offset = _piecewise(rng, DITHER_HOLD, np.asarray(DITHER_SIZE), steps)
            elif kind == BOOST:
                boost_start = rng.integers(BOOST_START[0], BOOST_START[1] + 1)
                shortest, longest = BOOST_LENGTH[scenario]
                boost_end = boost_start + rng.integers(shortest, longest + 1)
            elif kind == NOISE:
                kicks = OU_SIGMA * rng.standard_normal((steps, 2))
                noise = np.zeros((steps, 2))
                for step in range(1, steps):
                    noise[step] = (1.0 - OU_THETA) * noise[step - 1] + kicks[step]
            elif kind == RANDOM:
                random_action = _piecewise(rng, RANDOM_HOLD, 1.0, steps)
        episodes.append((kind, start, kp, ki, offset, boost_start, boost_end, noise, random_action))
    columns = Behaviour(*(np.asarray(column) for column in zip(*episodes, strict=True)))
    return jax.tree.map(
        lambda x: x.astype(np.int32 if x.dtype.kind == "i" else np.float32), columns
    )


class BehaviourState(NamedTuple):
    """Controller state of one episode: its plan, its PI memory and the time."""

    plan: Behaviour
    pi: PIState
    step: jax.Array


def behaviour_state(plan: Behaviour, params: EnvParams) -> BehaviourState:
    """Controller state at the start of E episodes."""
    zeros = jnp.zeros(plan.kind.shape, jnp.int32)
    return BehaviourState(plan, pi_state(plan.kp, plan.ki, params.initial_control), zeros)


def make_behaviour(params: EnvParams):
    """The controller that carries out a `Behaviour`."""
    pi = make_pi(params)

    def behave(obs, state: BehaviourState):
        plan, step = state.plan, state.step
        action, pi_memory = pi(obs, state.pi, plan.setpoint_offset[step])
        boosted = (step >= plan.boost_start) & (step < plan.boost_end)
        action = jnp.where(boosted, jnp.ones_like(action), action)
        action = jnp.clip(action + plan.noise[step], -1.0, 1.0)
        action = jnp.where(plan.kind == RANDOM, plan.random_action[step], action)
        return action, BehaviourState(plan, pi_memory, step + 1)

    return behave


@functools.partial(jax.jit, static_argnums=0)
def _roll_out(env: PolyCSTR, params: EnvParams, plan: Behaviour) -> Trajectory:
    num_episodes, num_steps = plan.noise.shape[:2]
    return rollout(
        env,
        params,
        make_behaviour(params),
        behaviour_state(plan, params),
        jax.vmap(lambda start: initial_state(start, params.initial_control))(plan.start),
        jax.random.split(jax.random.key(0), num_episodes),  # unused: all hooks are off
        num_steps,
    )


def simulate_behaviour(scenario: str, plan: Behaviour) -> Trajectory:
    """Trajectories (T, E, ...) of planned episodes, float32 whatever JAX's precision setting, and
    made on a CPU if JAX has one: an accelerator's rounding would make other data."""
    with jax.enable_x64(False), jax.default_device(host_device()):
        # One environment for all scenarios, which are data: one compilation a batch size.
        return jax.device_get(_roll_out(PolyCSTR(), scenario_params(scenario), plan))


def host_device():
    """A CPU device of this process; where JAX has none, its first device."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def generate_trajectory(
    scenario: str, dataset: str, num_episodes: int | None = None, seed: int = DATA_SEED
) -> tuple[Trajectory, Behaviour]:
    """The kept episodes of a data set as trajectories (T, E, ...), and their plans.

    `num_episodes`: 100 for `pi`, 500 for `mixed` if None.
    """
    dataset = dataset_name(dataset)
    wanted = NUM_EPISODES[dataset] if num_episodes is None else num_episodes
    if wanted < 1:
        raise ValueError(f"num_episodes = {wanted}; allowed: 1 or more.")
    if dataset == "mixed":
        plan = draw_behaviour(scenario, dataset, wanted, seed)
        return simulate_behaviour(scenario, plan), plan
    runaway_temperature = scenario_params(scenario).runaway_temperature
    spare = wanted + wanted // 4 + 8  # runaways are drawn again: at most 9 % of the episodes
    while True:
        plan = draw_behaviour(scenario, dataset, spare, seed)
        trajectory = simulate_behaviour(scenario, plan)
        keep = np.flatnonzero(trajectory.peak_temperature.max(axis=0) <= runaway_temperature)
        if keep.size >= wanted:
            return select_episodes(trajectory, keep[:wanted], 1), select_episodes(
                plan, keep[:wanted], 0
            )
        spare *= 2


def select_episodes(tree, episodes, axis: int):
    """The chosen episodes of a `Trajectory` (axis 1) or a `Behaviour` (axis 0)."""
    return jax.tree.map(lambda x: np.take(x, episodes, axis), tree)


def to_dataset(trajectory: Trajectory) -> Dataset:
    """Flatten trajectories (T, E, ...) to transitions, episode after episode."""
    num_steps, num_episodes = trajectory.reward.shape

    def flat(x):
        return np.ascontiguousarray(np.swapaxes(np.asarray(x), 0, 1)).reshape(-1, *x.shape[2:])

    return Dataset(
        obs=flat(trajectory.obs),
        action=flat(trajectory.action),
        reward=flat(trajectory.reward),
        cost=flat(trajectory.cost),
        constraint=flat(trajectory.constraints[..., 0]),
        next_obs=flat(trajectory.next_obs),
        terminated=flat(trajectory.terminated),
        truncated=flat(trajectory.truncated),
        tracking_cost=flat(trajectory.tracking_cost),
        episode=np.repeat(np.arange(num_episodes, dtype=np.int32), num_steps),
    )


def generate(
    scenario: str, dataset: str, num_episodes: int | None = None, seed: int = DATA_SEED
) -> Dataset:
    """A data set, regenerated: `generate('startup', 'pi')`; seconds, most of them compilation.

    Raises `ValueError` for an unknown scenario or data set, or `num_episodes` below 1.
    """
    return to_dataset(generate_trajectory(scenario, dataset, num_episodes, seed)[0])


def normaliser(pi_data: Dataset) -> Normaliser:
    """Scales from a scenario's `pi` set (also for its `mixed` set)."""
    obs, action = pi_data.obs.astype(np.float64), pi_data.action.astype(np.float64)
    scales = Normaliser(
        obs_mean=obs.mean(axis=0),
        obs_std=np.maximum(obs.std(axis=0), 1e-6),
        action_mean=action.mean(axis=0),
        action_std=np.maximum(action.std(axis=0), 1e-6),
        action_low=action.min(axis=0),
        action_high=action.max(axis=0),
        reward_std=np.maximum(pi_data.reward.astype(np.float64), REWARD_FLOOR).std(),
    )
    return jax.tree.map(np.float32, scales)


def training_data(dataset: Dataset, scales: Normaliser) -> TrainingData:
    """Normalise a data set by the scenario's scales; the same for every algorithm."""
    return TrainingData(
        obs=scales.obs(jnp.asarray(dataset.obs)),
        action=jnp.asarray(dataset.action),
        reward=scales.reward(jnp.asarray(dataset.reward)),
        cost=jnp.asarray(dataset.cost),
        constraint=jnp.asarray(dataset.constraint),
        next_obs=scales.obs(jnp.asarray(dataset.next_obs)),
        terminated=jnp.asarray(dataset.terminated),
        truncated=jnp.asarray(dataset.truncated),
        tracking_cost=jnp.asarray(dataset.tracking_cost),
        normaliser=jax.tree.map(jnp.asarray, scales),
    )


def dataset_name(dataset: str) -> str:
    """Return `dataset` if it is 'pi' or 'mixed'; `ValueError` otherwise."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset = {dataset!r}; allowed: {', '.join(DATASETS)}.")
    return dataset


# --- Checksums and files ---


def sha256(arrays: tuple) -> str:
    """sha256 over the names, dtypes, shapes and bytes of a NamedTuple of arrays."""
    digest = hashlib.sha256()
    for name, array in arrays._asdict().items():
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def committed_checksums() -> dict:
    """The contents of `checksums.json`: `inputs`, and `arrays` by platform."""
    return json.loads(resources.files("polycstr_jax").joinpath("checksums.json").read_text())


def platform_key() -> str:
    """What float32 results may depend on: system, processor model and its flags, jaxlib."""
    import jaxlib

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    cpu = {name.strip(): value.strip() for name, value in fields.items()}
    model = [cpu.get(name, "") for name in ("vendor_id", "cpu family", "model")]
    flags = hashlib.sha256(cpu.get("flags", platform.processor()).encode()).hexdigest()[:8]
    parts = [platform.system(), platform.machine(), *model, flags, jax.default_backend()]
    return "-".join([*filter(None, parts), f"jaxlib{jaxlib.__version__}"]).lower()


def save(path: str | Path, dataset: Dataset, **provenance) -> Path:
    """Write a data set as .npz with its sha256; atomically. Returns the path."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path = {str(path)!r}; allowed: a name that ends in .npz.")
    metadata = json.dumps({"sha256": sha256(dataset), **provenance}, sort_keys=True)
    write_atomically(
        path, lambda file: np.savez_compressed(file, metadata=metadata, **dataset._asdict())
    )
    return path


def load(path: str | Path) -> Dataset:
    """Read a data set written by `save`.

    Raises `FileNotFoundError`, and `ValueError` for a file that is not one of ours, is damaged,
    or whose sha256 differs from the one written in it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path = {str(path)!r} does not exist.")
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(
            f"path = {str(path)!r} cannot be read as .npz ({error}); regenerate the data set."
        ) from error
    foreign = f"path = {str(path)!r} is no polycstr-jax data set"
    missing = sorted({"metadata", *Dataset._fields} - set(content))
    if missing:
        raise ValueError(f"{foreign}: it lacks {', '.join(missing)}.")
    dataset = Dataset(**{name: content[name] for name in Dataset._fields})
    num = dataset.reward.shape[0] if dataset.reward.ndim else 0
    for name, array in dataset._asdict().items():
        shape = (num, *COLUMN_SHAPES.get(name, ()))
        dtype = np.dtype(COLUMN_DTYPES.get(name, np.float32))
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{foreign}: {name} is {array.dtype} {array.shape}; allowed: {dtype} {shape}."
            )
    found = sha256(dataset)
    try:
        written = json.loads(str(content["metadata"]))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{foreign}: its metadata names no sha256 ({found} found).") from error
    if written != found:
        raise ValueError(
            f"path = {str(path)!r} has sha256 {found}, but {written} was written in it: the file "
            "was changed; regenerate the data set."
        )
    return dataset


def write_atomically(path: Path, write) -> None:
    """Call `write(binary file)` on a temporary file beside `path`, then rename it.

    Raises `OSError` naming the folder where it cannot be written to.
    """
    check_writable(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make the folder if need be; `OSError` naming it if a file cannot be made in it.

    Call it before the work whose result is to be written.
    """
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"folder {str(folder)!r} cannot be written to: {error}.") from error
