"""Train or time BC and IQL of d3rlpy; a script for the peers' own virtual environment.

    .venv-peers/bin/python -I benchmarks/peers_d3rlpy.py FOLDER

`benchmarks/peers.py` starts it. It reads FOLDER/job.json and FOLDER/data.npz and writes
FOLDER/report.json and, unless it only takes times, FOLDER/networks.npz: the layers of every
seed's networks as plain arrays in PyTorch's layout (out, in), and what the policy answers to the
data's `probe` observations. It knows d3rlpy and NumPy, and nothing of ours.
"""

import argparse
import concurrent.futures
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import d3rlpy
import numpy as np
import structlog
import torch
from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer, TransitionMiniBatch

WARM_UP = 20  # updates before a time is taken


def replay_buffer(data) -> ReplayBuffer:
    """The episodes, each with one row more: the observation that a time-out ends on.

    d3rlpy takes an observation's successor from the next row, so it leaves out the last
    transition of an episode that timed out. With the extra row it sees all of them, as we do.
    """
    ends = np.flatnonzero(data["terminals"] | data["timeouts"]) + 1
    episodes = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        terminated = bool(data["terminals"][end - 1])
        columns = [data[name][start:end] for name in ("observations", "actions", "rewards")]
        if not terminated:
            closing = (data["next_observations"][end - 1], columns[1][-1], columns[2][-1])
            columns = [np.concatenate([x, y[None]]) for x, y in zip(columns, closing, strict=True)]
        episodes.append(Episode(*columns, terminated))
    return ReplayBuffer(InfiniteBuffer(), episodes=episodes)


def make_algorithm(job):
    """BC or IQL as the job says, on the CPU."""

    def optimiser():
        schedule = d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=job["num_updates"])
        return d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=schedule)

    def encoder():
        return d3rlpy.models.VectorEncoderFactory(hidden_units=job["hidden"], activation="relu")

    if job["method"] == "bc":
        return d3rlpy.algos.BCConfig(
            batch_size=job["batch_size"],
            learning_rate=job["learning_rate"],
            policy_type="deterministic",
            optim_factory=optimiser(),
            encoder_factory=encoder(),
        ).create(device=False)
    return d3rlpy.algos.IQLConfig(
        batch_size=job["batch_size"],
        actor_learning_rate=job["learning_rate"],
        critic_learning_rate=job["learning_rate"],
        actor_optim_factory=optimiser(),
        critic_optim_factory=optimiser(),
        actor_encoder_factory=encoder(),
        critic_encoder_factory=encoder(),
        value_encoder_factory=encoder(),
        gamma=job["discount"],
        tau=job["target_rate"],
        expectile=job["expectile"],
        weight_temp=job["temperature"],
        max_weight=job["max_weight"],
    ).create(device=False)


def fit(algorithm, buffer, num_updates):
    """Train without writing anything to disk."""
    # `fit` averages all losses of an epoch ever and again: long epochs are slow. It ends on a
    # whole epoch.
    epoch = next(n for n in range(min(500, num_updates), 0, -1) if num_updates % n == 0)
    algorithm.fit(
        buffer,
        n_steps=num_updates,
        n_steps_per_epoch=epoch,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )


def networks(algorithm):
    """Layers from the input to the head: {policy_weight_0: (out, in), policy_bias_0: (out,), ...}.

    Of IQL `value`, `critic0` and `critic1` too.
    """
    modules = algorithm.impl.modules
    if hasattr(modules, "imitator"):
        found = {"policy": (modules.imitator._encoder, modules.imitator._fc)}
    else:
        found = {
            "policy": (modules.policy._encoder, modules.policy._mu),
            "value": (modules.value_func._encoder, modules.value_func._fc),
        }
        for index, critic in enumerate(modules.q_funcs):
            found[f"critic{index}"] = (critic._encoder, critic._fc)
    arrays = {}
    for name, (encoder, head) in found.items():
        linear = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Linear)]
        for index, layer in enumerate([*linear, head]):
            arrays[f"{name}_weight_{index}"] = layer.weight.detach().numpy().copy()
            arrays[f"{name}_bias_{index}"] = layer.bias.detach().numpy().copy()
    return arrays


def train(folder, seed):
    """Arrays of one trained seed."""
    job, data = read(folder)
    torch.set_num_threads(1)
    d3rlpy.seed(seed)
    buffer, algorithm = replay_buffer(data), make_algorithm(job)
    fit(algorithm, buffer, job["num_updates"])
    return networks(algorithm) | {"probe": algorithm.predict(data["probe"])}


def steps(folder, job):
    """One update for each of the job's `rows`, a batch of that transition alone.

    Writes the networks before as a first seed and those after as a second.
    """
    data = read(folder)[1]
    d3rlpy.seed(0)
    buffer, algorithm = replay_buffer(data), make_algorithm(job)
    algorithm.create_impl(data["observations"].shape[1:], data["actions"].shape[1])

    def state():
        return networks(algorithm) | {"probe": algorithm.predict(data["probe"])}

    states = [state()]
    for row in job["rows"]:
        transition = buffer.transition_picker(*buffer.buffer[row])
        algorithm.update(TransitionMiniBatch.from_transitions([transition]))
    states.append(state())
    save(folder, states)
    return {}


def train_all(folder, job):
    """All seeds, one process with one thread a core; writes networks.npz."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        min(num_cores(), len(job["seeds"])), spawn, initializer=quiet
    ) as pool:
        found = list(pool.map(train, [folder] * len(job["seeds"]), job["seeds"]))
    save(folder, found)
    return {}


def speed(folder, job):
    """Updates a second with PyTorch's own choice of threads, and with one.

    `fit`: d3rlpy's training loop. `update`: its update alone, on one batch drawn before.
    """
    data, rows = read(folder)[1], []
    for threads in dict.fromkeys([torch.get_num_threads(), 1]):
        torch.set_num_threads(threads)
        d3rlpy.seed(0)
        buffer, algorithm = replay_buffer(data), make_algorithm(job)
        fit(algorithm, buffer, WARM_UP)
        batch = buffer.sample_transition_batch(job["batch_size"])

        def updates(algorithm=algorithm, batch=batch):
            for _ in range(job["speed_updates"]):
                algorithm.update(batch)

        def fitting(algorithm=algorithm, buffer=buffer):
            fit(algorithm, buffer, job["speed_updates"])

        rows.append(
            {
                "threads": threads,
                "fit": job["speed_updates"] / seconds_of(fitting),
                "update": job["speed_updates"] / seconds_of(updates),
            }
        )
    return {"speed": rows}


def seconds_of(function):
    """Seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def num_cores():
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def quiet():
    """Warnings only: d3rlpy reports every data set and epoch."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def save(folder, seeds):
    """Arrays of several seeds, the seed first."""
    arrays = {name: np.stack([seed[name] for seed in seeds]) for name in seeds[0]}
    np.savez(folder / "networks.npz", **arrays)


def read(folder):
    """The job and the data."""
    with np.load(folder / "data.npz") as file:
        return json.loads((folder / "job.json").read_text()), {x: file[x] for x in file.files}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    quiet()
    job, _ = read(folder)
    report = {"train": train_all, "steps": steps, "speed": speed}[job["task"]](folder, job)
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
