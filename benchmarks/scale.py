"""Chunks of seeds over devices and hosts. Numbers depend on neither.

A program trains a fixed number of seeds, `Cell.config["seed_width"]`, on one device; more devices
run more of these programs side by side, each compiled for its device. (`shard_map` would compile
once for all, but a program for several devices is optimised in other ways than one for a single
device, and rounds otherwise: docs/scale.md.) Hosts share no arrays while they work: each takes
every n-th chunk, and what they found is gathered when a cell is done. Processes on one machine
share its folders, hosts need not.
"""

import argparse
import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

IN_FLIGHT = 2  # programs a device, so that it need not wait for the host; more were not tried
MEMORY_SHARE = 0.8  # of what a device has free, for the programs in flight


class Hosts(NamedTuple):
    """How the processes of a run find each other."""

    coordinator: str | None = None  # HOST:PORT of the first; None: as the cluster says
    num_processes: int | None = None
    process_id: int | None = None


def prepare(arguments: list[str]) -> None:
    """Find the other processes of a run, as the arguments of its command line say, if there are
    any. It has to come before JAX starts, so before gymnax is imported, and before
    `algos.common`, which reads one of the environment variables that are checked here."""
    seconds = os.environ.get("POLYCSTR_KEEP_EVERY", "0")
    try:
        allowed = float(seconds) >= 0.0
    except ValueError:
        allowed = False
    if not allowed:
        raise SystemExit(
            f"POLYCSTR_KEEP_EVERY = {seconds}; allowed: seconds, 0 or more, or inf for never."
        )
    if not re.fullmatch(r"[1-9]\d*", os.environ["NPROC"]):
        raise SystemExit(f"NPROC = {os.environ['NPROC']}; allowed: 1 or more, threads of XLA.")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", "--num_processes", type=int)
    parser.add_argument("--process-id", "--process_id", type=int)
    given, _ = parser.parse_known_args(arguments)
    connect(given.distributed, Hosts(given.coordinator, given.num_processes, given.process_id))
    try:
        jax.local_devices(backend="cpu")
    except (RuntimeError, AssertionError) as error:  # the latter where no backend of it is there
        raise SystemExit(
            f"JAX_PLATFORMS = {jax.config.jax_platforms}; allowed: what JAX finds here, with cpu, "
            "as cuda,cpu: data and what is not trained are made on it."
        ) from error


def connect(distributed: bool, hosts: Hosts) -> None:
    """Find the other processes, by what Slurm, Kubernetes or MPI say, or by `hosts`. `SystemExit`
    for processes that cannot work together."""
    given = [name for name, value in hosts._asdict().items() if value is not None]
    if 0 < len(given) < len(hosts):
        missing = ", ".join(name.replace("_", "-") for name in hosts._fields if name not in given)
        raise SystemExit(f"{missing}: needed too, with {', '.join(given).replace('_', '-')}.")
    if given:
        if not re.fullmatch(r".+:\d+", hosts.coordinator):
            raise SystemExit(f"coordinator = {hosts.coordinator}; allowed: HOST:PORT.")
        if hosts.num_processes < 1:
            raise SystemExit(f"num-processes = {hosts.num_processes}; allowed: 1 or more.")
        if not 0 <= hosts.process_id < hosts.num_processes:
            raise SystemExit(
                f"process-id = {hosts.process_id}; allowed: 0 to {hosts.num_processes - 1}."
            )
    if not distributed and not given:
        return
    try:
        jax.distributed.initialize(*hosts)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(
            f"distributed: {error} Allowed: a cluster that JAX knows (Slurm, Kubernetes, MPI), or "
            "--coordinator HOST:PORT --num-processes N --process-id I."
        ) from error


def devices(at_most: int | None = None) -> list:
    """The devices of this process; `SystemExit` if `at_most` is not among what there is."""
    there = jax.local_devices()
    if at_most is not None and not 1 <= at_most <= len(there):
        raise SystemExit(f"devices = {at_most}; allowed: 1 to {len(there)}, what JAX has here.")
    return there[:at_most]


def own(chunks: list[int]) -> list[int]:
    """Of a cell's chunks, those of this process."""
    return chunks[jax.process_index() :: jax.process_count()]


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait() -> None:
    """Until all processes are here."""
    agreed([True])


@contextlib.contextmanager
def all_there():
    """Around what all processes do together: `SystemExit` if one of them has gone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter from CPUs
        said = str(error).partition("\n")[0]
        raise SystemExit(f"another process has ended or does not answer: {said}") from error


@all_there()
def agreed(flags: list[bool]) -> list[bool]:
    """What the first process says."""
    if jax.process_count() == 1:
        return flags
    return [bool(x) for x in multihost_utils.broadcast_one_to_all(np.asarray(flags))]


@all_there()
def all_agree(flag: bool) -> bool:
    """Whether it is so in all processes."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


@all_there()
def gathered(parts: dict[int, bytes]) -> dict[int, bytes]:
    """The parts of all processes, by the first seed of a chunk."""
    if jax.process_count() == 1:
        return parts
    index = np.array([[first, len(part)] for first, part in parts.items()], np.int64).reshape(-1, 2)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(parts), index[:, 1].sum()])))
    rows, length = sizes.max(axis=0)
    padded = np.full((rows, 2), -1, np.int64)
    padded[: len(index)] = index
    content = np.zeros(length, np.uint8)
    joined = b"".join(parts.values())
    content[: len(joined)] = np.frombuffer(joined, np.uint8)
    # Of 64-bit numbers only halves are kept without x64.
    indices = np.asarray(multihost_utils.process_allgather(padded.astype(np.int32)))
    contents = np.asarray(multihost_utils.process_allgather(content))
    found = {}
    for rows, bytes_ in zip(indices, contents, strict=True):
        at = 0
        for first, size in rows[rows[:, 0] >= 0]:
            found[int(first)] = bytes_[at : at + size].tobytes()
            at += int(size)
    return dict(sorted(found.items()))


def in_flight(program_bytes: int, device) -> int:
    """How many programs of that size fit into what a device has free, at least 1, at most
    `IN_FLIGHT`."""
    return max(1, min(IN_FLIGHT, int(MEMORY_SHARE * free_bytes(device) // max(1, program_bytes))))


def free_bytes(device) -> int:
    """Memory that a device has free; of a CPU, its share of what the machine has."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    lines = (
        Path("/proc/meminfo").read_text().splitlines() if os.path.exists("/proc/meminfo") else []
    )
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return (free[0] if free else 4 << 30) // jax.local_device_count()
