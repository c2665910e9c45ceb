"""What every algorithm file shares: the shape it returns, sampling, the update loop, the CLI."""

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import polycstr_jax
from algos import checkpoints
from polycstr_jax import data as data_module
from polycstr_jax import evaluate
from polycstr_jax.data import TrainingData


class Algorithm(NamedTuple):
    """Pure functions of one algorithm with its configuration.

    A layer around another algorithm names it as `base`; its `init` takes the base's trained state
    as a third argument, and its `train` trains the base first.
    """

    init: Callable  # (rng, data) -> state
    run: Callable  # (state, data, rng, num_updates) -> state, metrics; chunks equal the whole
    policy: Callable  # (state) -> act(obs (9,) raw, rng) -> action (2,)
    train: Callable  # (rng, data) -> state, metrics
    config: Any  # frozen dataclass with num_updates
    base: "Algorithm | None" = None
    check_data: Callable | None = None  # (data): raises or warns before anything is compiled


class MLP(nn.Module):
    """ReLU layers and a linear head."""

    hidden: tuple[int, ...]
    out: int

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.out)(x)


KEEP_EVERY = float(os.environ.get("POLYCSTR_KEEP_EVERY", "120"))  # s, of a training that is kept
LAYER_KEY = 1  # folded into a seed's key for a layer: the key itself trains its base
Track = Literal["default", "published"]
ActionUnit = Literal["asinh", "box"]
Timeouts = Literal["bootstrap", "terminal"]


def check_choice(name: str, value, choices) -> None:
    """`ValueError` naming the argument, its value and what the `Literal` allows."""
    if value not in get_args(choices):
        raise ValueError(f"{name} = {value!r}; allowed: {', '.join(get_args(choices))}.")


def check_counts(config) -> None:
    """`ValueError` naming a number of updates or a batch size below 1."""
    check_range(config, ("num_updates", "batch_size"), "1 or more", lambda x: x >= 1)


def check_choices(config) -> None:
    """`ValueError` for a field with a `Literal` as type that has another value."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            check_choice(name, getattr(config, name), kind)


def check_range(config, names, allowed: str, holds) -> None:
    """`ValueError` naming a setting for which `holds` does not, its value and what is allowed."""
    for name in names:
        if not holds(getattr(config, name)):
            raise ValueError(f"{name} = {getattr(config, name)}; allowed: {allowed}.")


def track_obs(track: Track, obs):
    """The entries of observations (..., 9) that a track sees: (..., 9), or (..., 6).

    `published`, the set-up of the data code published with arXiv 2507.22640, goes without A, I
    and R.
    """
    return obs[..., 3:] if track == "published" else obs


def action_units(track: Track, normaliser):
    """Shift and scale (2,) of a track: a network deals in (action - shift) / scale.

    `default`: mean and standard deviation of the `pi` set's actions; `published`: the middle and
    half the width of their range.
    """
    if track == "published":
        low, high = normaliser.action_low, normaliser.action_high
        return (low + high) / 2.0, (high - low) / 2.0
    return normaliser.action_mean, normaliser.action_std


def to_unit(unit: ActionUnit, action, std):
    """Actions (N, A) as networks see them, in [-1, 1] as before; `std` (A,) of the data's.

    `asinh`: asinh(a / std), rescaled, for most actions are a few hundredths and a boost is 1.
    """
    if unit == "box":
        return action
    return jnp.arcsinh(action / std[None]) / jnp.arcsinh(1.0 / std)[None]


def from_unit(unit: ActionUnit, inner, std):
    """The inverse of `to_unit`; the clip is for rounding."""
    if unit == "box":
        return inner
    return jnp.clip(std[None] * jnp.sinh(inner * jnp.arcsinh(1.0 / std)[None]), -1.0, 1.0)


def policy_head(track: Track, output):
    """A policy's mean in the track's units: linear, or (`published`) through tanh."""
    return jnp.tanh(output) if track == "published" else output


def discounted_limit(limit: float, discount: float, horizon: int) -> float:
    """Discounted cost from any step on, if `limit` is spread evenly over the horizon."""
    return limit * (1.0 - discount**horizon) / ((1.0 - discount) * horizon)


def sample_batch(rng, data: TrainingData, batch_size: int) -> TrainingData:
    """Transitions drawn uniformly with replacement; the normaliser is passed through."""
    index = jax.random.randint(rng, (batch_size,), 0, data.obs.shape[0])
    return data.transitions(lambda column: column[index])


def scan_updates(update, state, data, rng, num_updates: int, batch_size: int):
    """`num_updates` times `update(state, batch, rng) -> state, metrics`; metrics are averaged.

    The keys depend on `state.step`, the number of updates done before, so that running in chunks
    equals running in one go. `num_updates` is static.
    """

    def one(carry, _):
        state, total = carry
        key_batch, key_update = jax.random.split(jax.random.fold_in(rng, state.step))
        state, metrics = update(state, sample_batch(key_batch, data, batch_size), key_update)
        return (state, jax.tree.map(jnp.add, total, metrics)), None

    batch = jax.eval_shape(lambda: sample_batch(rng, data, batch_size))
    _, shapes = jax.eval_shape(update, state, batch, rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (state, total), _ = jax.lax.scan(one, (state, zeros), None, num_updates)
    return state, jax.tree.map(lambda x: x / num_updates, total)


class Batch(NamedTuple):
    """Seeds that one program trains, on the device on which these arrays lie."""

    rngs: Any  # (S,) keys
    data: TrainingData
    base_states: Any = None  # of a layer, (S, ...)


def train_seeds(
    algorithm: Algorithm, data: TrainingData, rngs, num_updates, num_chunks=20, base_states=None
):
    """Train one seed a key, vmapped, in chunks under a progress bar.

    `base_states`: of a layer, the trained states of what it wraps, one a key; trained here if
    None. Returns the states, the learning curves {name: (seeds, chunks)}, and the seconds spent
    on compilation and on training, a base trained here not included. The states are those of
    `vmap(algorithm.train)`. Raises `ValueError` if `num_updates` is below 1.
    """
    base = algorithm.base
    if base is not None and base_states is None:
        base_states, _, _ = train_seeds(base, data, rngs, base.config.num_updates, num_chunks)
    batch = Batch(rngs, data, base_states)
    found, seconds = train_batches(algorithm, [batch], num_updates, num_chunks)
    return *found[0], seconds


def train_batches(
    algorithm: Algorithm,
    batches: list[Batch],
    num_updates,
    num_chunks=20,
    keep: list[Path | None] | None = None,
):
    """Train several batches side by side: the next chunk of all of them is dispatched before any is
    waited for. Each has a program of its own, so that its numbers do not depend on the others.

    `keep`: a folder for each batch, in which its training is kept every two minutes, and goes on
    from what is there; the caller removes it. Returns (states, curves) of each batch, and the
    seconds, as `train_seeds` does, with those of before. Raises `ValueError` if `num_updates` is
    below 1.
    """
    if num_updates < 1:
        raise ValueError(f"num_updates = {num_updates}; allowed: 1 or more.")
    if algorithm.check_data is not None:
        algorithm.check_data(batches[0].data)
    init, run = jitted_over_seeds(algorithm)
    sizes = np.diff(np.linspace(0, num_updates, min(num_chunks, num_updates) + 1).astype(int))
    started = time.perf_counter()
    seconds, programs, trainings = {"compile": 0.0, "run": 0.0}, {}, []
    for (rngs, data, base_states), folder in zip(
        batches, keep or [None] * len(batches), strict=True
    ):
        if algorithm.base is not None:
            rngs = jax.vmap(lambda rng: jax.random.fold_in(rng, LAYER_KEY))(rngs)
        init_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(rngs), 1, 0)
        layer = () if algorithm.base is None else (base_states,)
        kept = None
        if folder is not None:
            form = jax.eval_shape(init, init_keys, data, *layer)
            kept = checkpoints.kept_training(folder, form, device_of(keys))
        done, state, curves, spent = kept or (0, init(init_keys, data, *layer), [], 0.0)
        seconds["run"] += spent
        trainings.append(Training(done, state, curves, data, keys, folder))
        for size in {*sizes[done:].tolist()}:
            if (device_of(keys), size) not in programs:
                programs[device_of(keys), size] = run.lower(state, data, keys, size).compile()
    before = seconds["run"]
    seconds["compile"] = time.perf_counter() - started
    started = kept_at = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        total = len(sizes) * len(trainings)
        task = progress.add_task("chunks", total=total, completed=sum(t.done for t in trainings))
        while going := [i for i, training in enumerate(trainings) if training.done < len(sizes)]:
            found = {}
            for i in going:
                t = trainings[i]
                program = programs[device_of(t.keys), int(sizes[t.done])]
                found[i] = program(t.state, t.data, t.keys)
            for i, (state, metrics) in found.items():
                t = trainings[i]
                curves = [*t.curves, jax.device_get(metrics)]
                trainings[i] = t._replace(done=t.done + 1, state=state, curves=curves)
            progress.update(task, advance=len(going))
            seconds["run"] = before + time.perf_counter() - started
            if time.perf_counter() - kept_at > KEEP_EVERY:
                for t in (trainings[i] for i in going):
                    if t.folder is not None:
                        spent = seconds["run"] / len(trainings)
                        checkpoints.keep_training(t.folder, t.done, t.state, t.curves, spent)
                kept_at = time.perf_counter()
    return [
        (t.state, jax.tree.map(lambda *chunks: np.stack(chunks, axis=-1), *t.curves))
        for t in trainings
    ], seconds


class Training(NamedTuple):
    """A batch that is being trained."""

    done: int  # chunks
    state: Any
    curves: list  # metrics of a chunk
    data: TrainingData
    keys: Any
    folder: Path | None  # where it is kept


def device_of(array):
    """The one device on which an array lies."""
    return next(iter(array.devices()))


@functools.cache
def jitted_over_seeds(algorithm: Algorithm):
    """`init` and `run` of an algorithm, vmapped over seeds and jitted; made once."""
    run = jax.vmap(algorithm.run, in_axes=(0, None, 0, None))
    init_axes = (0, None) if algorithm.base is None else (0, None, 0)
    return (
        jax.jit(jax.vmap(algorithm.init, in_axes=init_axes)),
        jax.jit(run, static_argnums=3, donate_argnums=0),
    )


def command_line(name: str, presets: dict[str, Any], make_train: Callable) -> None:
    """`python algos/<name>.py`: train seeds on a data set, evaluate them, print, save.

    `--preset` picks the defaults; every field of the configuration is a flag. A layer around
    another algorithm takes what that one saved (`--offline`), or trains it first.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--preset", choices=list(presets), default="default")
    chosen, rest = parser.parse_known_args()

    @dataclasses.dataclass
    class Run:
        """Train seeds on a data set and evaluate them on a set of starts."""

        scenario: Literal["startup", "grade_down", "grade_up"] = "startup"
        dataset: Literal["pi", "mixed"] = "pi"
        num_seeds: int = 8  # trained together, vmapped
        seed: int = 0  # of the first of them
        starts: Literal["nominal", "wide", "hot", "tune"] = "nominal"  # choose things on tune
        out: Path | None = None  # folder for the trained parameters; runs/... if not given
        offline: Path | None = None  # of a layer: what its base saved, of these seeds and data
        config: tyro.conf.OmitArgPrefixes[type(presets[chosen.preset])] = presets[chosen.preset]

    args = tyro.cli(Run, args=rest, prog=f"{name}.py [--preset {{{','.join(presets)}}}]")
    if args.num_seeds < 1:
        raise SystemExit(f"num-seeds = {args.num_seeds}; allowed: 1 or more.")
    out = args.out or Path("runs") / f"{name}-{args.scenario}-{args.dataset}"
    out = out.absolute()
    if out.exists():
        raise SystemExit(f"out = {out} exists; remove it or name another folder with --out.")
    if args.config.num_updates < 1:
        raise SystemExit(f"num-updates = {args.config.num_updates}; allowed: 1 or more.")
    try:
        data_module.check_writable(out.parent)
    except OSError as error:
        raise SystemExit(str(error)) from error

    env, params = polycstr_jax.make(args.scenario)
    made_by = {name: getattr(args, name) for name in ("scenario", "dataset", "seed", "num_seeds")}
    try:
        algorithm, base_states = make_train(args.config, env, params), None
        if args.offline is not None and algorithm.base is None:
            raise ValueError(f"offline = {args.offline}; allowed: none, {name} wraps no other.")
        data = load_training_data(args.scenario, args.dataset)
        if args.offline is not None:
            base, base_states = checkpoints.load(
                args.offline, data, algorithm=args.config.base, **made_by
            )
            algorithm = make_train(args.config, env, params, base)
            # Whether the layer takes networks of this form.
            one = jax.tree.map(lambda x: x[0], base_states)
            jax.eval_shape(algorithm.init, jax.random.key(0), data, one)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    rngs = jax.vmap(jax.random.key)(args.seed + np.arange(args.num_seeds))
    states, curves, _ = train_seeds(
        algorithm, data, rngs, args.config.num_updates, base_states=base_states
    )
    metrics = evaluate.evaluate_policies(
        env,
        params,
        algorithm.policy,
        states,
        evaluate.start_states(evaluate.starts(args.scenario, args.starts)),
        evaluate.score_limits(args.scenario),
        jax.random.key(0),
    )
    table = Table(title=f"{name} on {args.scenario} ({args.dataset}), 64 {args.starts} starts")
    for column in ("seed", "score", "median", "P(violation)", "P(runaway)", "peak K"):
        table.add_column(column, justify="right")
    for seed in range(args.num_seeds):
        table.add_row(
            str(args.seed + seed),
            f"{metrics.score[seed].mean():.1f}",
            f"{np.median(metrics.score[seed]):.1f}",
            f"{metrics.violated[seed].mean():.3f}",
            f"{metrics.runaway[seed].mean():.3f}",
            f"{metrics.peak_temperature[seed].max():.1f}",
        )
    rich.print(table)
    last = (f"{name} {curve[:, -1].mean():.3g}" for name, curve in curves.items())
    rich.print(f"at the end, mean over seeds: {', '.join(last)}")
    checkpoints.save(out, algorithm, states, algorithm=name, **made_by)
    rich.print(f"trained states: {out}")


def load_training_data(scenario: str, dataset: str) -> TrainingData:
    """A data set, regenerated and normalised by the scenario's `pi` set."""
    pi = data_module.generate(scenario, "pi")
    chosen = pi if dataset == "pi" else data_module.generate(scenario, dataset)
    return data_module.training_data(chosen, data_module.normaliser(pi))
