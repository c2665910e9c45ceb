"""Speed of SAC-Lag's whole online loop, for several numbers of seeds, and of FSRL's for one.

    python -m benchmarks.online_speed [--out FOLDER] [--seeds 1 8 64] [--smoke]
        [--peer-python .venv-fsrl/bin/python]

Writes online_speed.json and the tables of it, online_speed.md. What is measured, and what is equal
in FSRL: docs/online_speed.md. `make fsrl` makes FSRL's virtual environment and runs everything.
All programs take turns, so that other work on the machine slows all of them.
"""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich
import tyro

from algos import sac_lag
from algos.common import Algorithm, from_unit, jitted_over_seeds, load_training_data
from benchmarks import training_speed
from benchmarks.peers import peer_versions, ratios
from benchmarks.plan import REPOSITORY
from benchmarks.run import software
from benchmarks.training_speed import rate, resolve, table, take_turns, training, untrained, write
from benchmarks.worker import ENV
from polycstr_jax.data import TrainingData
from polycstr_jax.env import ACTION_SIZE, OBS_SIZE, EnvParams, scenario_params

PARTS = ("loop", "roll-out", "gradient steps")
PEER_SCRIPT = Path(__file__).with_name("online_fsrl.py")
PEER_PACKAGES = ("fast-safe-rl", "tianshou", "torch", "gymnasium", "numpy")
PEER_SETTINGS = {  # of the peer's process: it reports to nobody
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
}


class Sizes(NamedTuple):
    """How much is measured."""

    seconds: float = 2.5  # at least, of each program in each turn
    updates: int = 2  # of each seed in one program
    intervals: int = 200  # of an episode
    settings: tuple[tuple[str, Any], ...] = ()  # of SAC-Lag, in place of the defaults


SMOKE_SETTINGS = (("hidden", (16,)), ("batch_size", 32), ("gradient_steps", 5), ("capacity", 40))
SMOKE = Sizes(0.0, 1, 10, SMOKE_SETTINGS)


@dataclasses.dataclass(frozen=True)
class Args(training_speed.Args):
    """Measure the speed of SAC-Lag's online loop; minutes on 2 cores."""

    out: Path = Path("results/online_speed")  # folder
    peer_python: Path | None = None  # that has FSRL, made by `make fsrl`; without the peer if None


def check(args: Args) -> Args:
    """Defaults filled in; `SystemExit` naming the argument that makes no sense."""
    if args.peer_python is not None and not args.peer_python.exists():
        raise SystemExit(
            f"peer-python = {args.peer_python} does not exist; `make fsrl` makes it, or name a "
            "Python that has FSRL."
        )
    return resolve(args)


# --- Ours ---


def parts_of(config: sac_lag.Config, env_params: EnvParams) -> dict[str, Algorithm]:
    """SAC-Lag, and halves of it: `run` plays, stores and moves the multiplier alone, or takes
    gradient steps alone, on what one episode has stored."""
    whole = sac_lag.make_train(config, ENV, env_params)
    _, control, improve = sac_lag.parts(config)
    play = sac_lag.make_update(config, ENV, env_params, control, lambda state, _: (state, {}))

    def learn(state, rng):
        state, metrics = improve(state, rng)
        return state._replace(step=state.step + 1), metrics

    def only(update):
        return lambda state, data, rng, num: sac_lag.scan_online(update, state, rng, num)

    def played(rng, data):
        return play(whole.init(rng, data), rng)[0]

    halves = whole._replace(run=only(play)), whole._replace(init=played, run=only(learn))
    return dict(zip(PARTS, (whole, *halves), strict=True))


def compiled(algorithm: Algorithm, data: TrainingData, num_seeds: int, num_updates: int):
    """`run` over seeds, compiled for that many updates, and the seconds that took."""
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    state = jax.eval_shape(lambda keys: untrained(algorithm, data, keys), keys)
    started = time.perf_counter()
    program = jitted_over_seeds(algorithm)[1].lower(state, data, keys, num_updates).compile()
    seconds = time.perf_counter() - started
    return lambda state, data, keys, _: program(state, data, keys), seconds


# --- The peer ---


class Reactor:
    """One reactor for a peer, observations, actions and rewards as SAC-Lag's networks see them."""

    def __init__(self, config: sac_lag.Config, env_params: EnvParams, data: TrainingData):
        normaliser, self._episode, self._state = data.normaliser, 0, None

        @jax.jit
        def start(seed):
            obs, state = ENV.reset_env(jax.random.key(seed), env_params)
            return state, normaliser.obs(obs)

        @jax.jit
        def move(state, inner):
            action = from_unit(config.action_unit, inner[None], normaliser.action_std)[0]
            key = jax.random.key(0)  # of measurement noise: there is none
            obs, state, reward, terminated, info = ENV.step_env(key, state, action, env_params)
            ended = terminated, ENV.is_truncated(state, env_params)
            seen = normaliser.obs(obs), normaliser.reward(reward), info["cost"]
            return state, (*seen, *ended)

        self._start, self._move = start, move

    def reset(self) -> list[float]:
        """Start the next episode; what is seen (9,)."""
        self._state, obs = self._start(self._episode)
        self._episode += 1
        return np.asarray(obs).tolist()

    def step(self, action: list[float]) -> list:
        """One interval: what is seen (9,), reward, cost, terminated, truncated."""
        self._state, seen = self._move(self._state, np.asarray(action, np.float32))
        return [np.asarray(x).tolist() for x in jax.device_get(seen)]


class Peer:
    """FSRL in a process of its own; the reactor that it plays with is stepped here, on the CPU."""

    def __init__(self, process, log, reactor: Reactor):
        self._process, self._log, self._reactor = process, log, reactor

    def send(self, message) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` says why
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """What it says when it is done; until then it gets its intervals."""
        while line := self._process.stdout.readline():
            (kind, content), *_ = json.loads(line).items()
            if kind == "done":
                return content
            with jax.default_device(jax.devices("cpu")[0]):
                reactor = self._reactor
                self.send(reactor.reset() if kind == "reset" else reactor.step(content))
        self._log.seek(0)
        raise SystemExit(f"{PEER_SCRIPT.name} failed:\n{self._log.read()[-2_000:]}")

    def do(self, part: str, threads: int) -> dict[str, Any]:
        """One update, or one of its halves; how many intervals and gradient steps it was."""
        self.send({"part": part, "threads": threads})
        return self.receive()


@contextlib.contextmanager
def peer(peer_python: Path, config: sac_lag.Config, env_params: EnvParams, data: TrainingData):
    """A `Peer` at SAC-Lag's sizes, and the number of threads that PyTorch takes by itself."""
    gains = config.controller
    job = dataclasses.asdict(config) | {
        "obs_size": OBS_SIZE,
        "action_size": ACTION_SIZE,
        "intervals": int(env_params.max_steps_in_episode) * config.num_episodes,
        "cost_limit": config.cost_limits[0],
        "gains": [gains.proportional, gains.integral, gains.derivative],
    }
    command = [peer_python.absolute(), "-I", PEER_SCRIPT]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | PEER_SETTINGS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process:
            try:
                found = Peer(process, log, Reactor(config, env_params, data))
                found.send(job)
                yield found, found.receive()["threads"]
            finally:
                process.kill()


# --- What is compared ---


def measure(args: Args, sizes: Sizes) -> tuple[list[dict], list[dict]]:
    """A row for each number of seeds and for the peer; and ratios to the peer, turn by turn."""
    config = dataclasses.replace(sac_lag.DEFAULT, **dict(sizes.settings))
    env_params = scenario_params("startup", max_steps_in_episode=sizes.intervals)
    data, algorithms = load_training_data("startup", "pi"), parts_of(config, env_params)
    calls, updates, compilation = {}, {}, {}
    for num in args.seeds:
        rich.print(f"compiling for {num} seed{'s' if num > 1 else ''}")
        for part, algorithm in algorithms.items():
            run, seconds = compiled(algorithm, data, num, sizes.updates)
            by = ("ours", num)
            calls[by, part] = training(algorithm, run, data, num, sizes.updates)
            updates[by] = num * sizes.updates
            compilation[by] = compilation.get(by, seconds)  # of the loop, which comes first
    with contextlib.ExitStack() as stack:
        if args.peer_python is not None:
            found, threads = stack.enter_context(peer(args.peer_python, config, env_params, data))
            for num in dict.fromkeys((threads, 1)):
                by = (f"FSRL, {num} thread{'s' if num > 1 else ''}", 1)
                updates[by] = 1
                for part in PARTS:
                    calls[by, part] = functools.partial(exactly, found, config, sizes, part, num)
        for call in calls.values():  # memory is touched, and what the peer compiles is compiled
            rate(call, 0.0)
        rich.print(f"measuring, {args.repeats} turns")
        rates, _ = take_turns(calls, args.repeats, sizes.seconds)
    speeds = {
        by: {part: updates[by] * np.asarray(rates[by, part]) for part in PARTS} for by in updates
    }
    rows = [row(by, speed, config, sizes, compilation) for by, speed in speeds.items()]
    return rows, compare(speeds)


def exactly(found: Peer, config: sac_lag.Config, sizes: Sizes, part: str, threads: int) -> None:
    """The peer does an update's part; `RuntimeError` if it was more or less than one."""
    expected = {
        "intervals": config.num_episodes * sizes.intervals,
        "gradient_steps": 0 if part == "roll-out" else config.gradient_steps,
    }
    done = found.do(part, threads)
    if done != expected:
        raise RuntimeError(f"the peer's update had {done}; allowed: {expected}.")


def row(by: tuple[str, int], speed, config, sizes: Sizes, compilation) -> dict[str, Any]:
    """The best turn of each part; `speed` is in updates/s, summed over the seeds."""
    intervals, steps = config.num_episodes * sizes.intervals, config.gradient_steps
    loop, play, learn = (float(speed[part].max()) for part in PARTS)
    return {
        "by": by[0],
        "seeds": by[1],
        "seeds x intervals/s": intervals * loop,
        "seeds x gradient steps/s": steps * loop,
        "roll-out alone, intervals/s": intervals * play,
        "gradient steps alone, /s": steps * learn,
        "roll-out's share": learn / (play + learn),
        "compilation [s]": compilation.get(by),
    }


def compare(speeds) -> list[dict[str, Any]]:
    """For each number of seeds and part our speed over the peer's in the same turn, the faster
    of its numbers of threads."""
    peers = [speed for (by, _), speed in speeds.items() if by != "ours"]
    if not peers:
        return []
    best = {part: np.max([speed[part] for speed in peers], axis=0) for part in PARTS}
    return [
        {"seeds": num} | {part: (speed[part] / best[part]).tolist() for part in PARTS}
        for (by, num), speed in speeds.items()
        if by == "ours"
    ]


# --- Everything, and the tables ---

FORMATS = {
    "seeds x intervals/s": "{:,.0f}",
    "seeds x gradient steps/s": "{:,.0f}",
    "roll-out alone, intervals/s": "{:,.0f}",
    "gradient steps alone, /s": "{:,.0f}",
    "roll-out's share": "{:.0%}",
    "compilation [s]": "{:.1f}",
}


def measure_all(args: Args) -> dict[str, Any]:
    """Everything, as it is written to the JSON."""
    versions = {}
    if args.peer_python is not None:
        versions = peer_versions(args.peer_python, PEER_PACKAGES, "fsrl")
    sizes = SMOKE if args.smoke else Sizes()
    rows, against = measure(args, sizes)
    return {
        **software(),
        "peer_versions": versions,
        "args": {"seeds": args.seeds, "repeats": args.repeats, "smoke": args.smoke},
        "sizes": sizes._asdict() | {"settings": dict(sizes.settings)},
        "speed": rows,
        "times FSRL": against,
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables of what was measured."""
    versions, peers, repeats = found["versions"], found["peer_versions"], found["args"]["repeats"]
    torch = f", FSRL {peers['fast-safe-rl']}, torch {peers['torch']}" if peers else ""
    parts = [
        "# Speed of SAC-Lag's online loop" + (" (SMOKE TEST)" if found["args"]["smoke"] else ""),
        f"Commit {found['commit']}; jax {versions['jax']}{torch}; {found['hardware']}; "
        f"{found['date']}; best of {repeats}.",
        table(found["speed"], FORMATS),
        f"Sums over the seeds of a program, {found['sizes']['updates']} updates of each at a time, "
        "without compilation. *roll-out*: one episode, stored, and the multiplier's step. *share* "
        "of the time, from the halves alone. *compilation* of the loop, without a cache.",
    ]
    if found["times FSRL"]:
        rows = [
            {name: ratios(x) if isinstance(x, list) else x for name, x in row.items()}
            for row in found["times FSRL"]
        ]
        parts += [
            "## Times FSRL's speed",
            table(rows),
            f"Our sum over the seeds against FSRL's one seed in the same turn: the median of "
            f"{repeats} (least to largest). FSRL with PyTorch's own number of threads or with "
            "one, whichever was faster.",
        ]
    return "\n\n".join(parts) + "\n"


def main(args: Args) -> None:
    args = check(args)
    # Only where no compile time is reported.
    jax.config.update("jax_enable_compilation_cache", args.smoke)
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / "jax"))
    found = measure_all(args)
    write(args.out, "online_speed", found, markdown(found))


if __name__ == "__main__":
    main(tyro.cli(Args))
