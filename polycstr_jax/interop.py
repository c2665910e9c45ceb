"""The data sets in the formats of others: Minari, and HDF5 as DSRL and OSRL read it.

Both hold every column of `data.Dataset` and come back bit-equal. Needs minari and h5py, which
`pip install "polycstr-jax[interop]"`, in a clone `pip install -e ".[interop]"`, adds; nothing else
of the package does. docs/data.md says what the columns mean and how other libraries load them.
"""

import difflib
import importlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

import polycstr_jax
from polycstr_jax import data
from polycstr_jax.data import COLUMN_DTYPES, COLUMN_SHAPES, DATA_SEED, DATASETS, Dataset
from polycstr_jax.env import OBS_NAMES, SCENARIOS, scenario_name, scenario_params
from polycstr_jax.gymnasium_env import PolyCSTRGymnasium

NAMESPACE = "polycstr"
METADATA_KEY = "polycstr_jax"  # of what we add to Minari's metadata
TEMPERATURE = OBS_NAMES.index("temperature")
ERRORS = slice(OBS_NAMES.index("polymer_error"), OBS_NAMES.index("temperature_error") + 1)
ALGORITHM_NAMES = {
    "pi": "PI control with random gains",
    "mixed": "PI control with random gains; dithered, boosted, noisy and random episodes",
}

# The seven columns that DSRL's loaders ask for, under their names; the rest under ours.
HDF5_NAMES = {
    "obs": "observations",
    "next_obs": "next_observations",
    "action": "actions",
    "reward": "rewards",
    "cost": "costs",
    "terminated": "terminals",
    "truncated": "timeouts",
    "constraint": "constraint",
    "tracking_cost": "tracking_cost",
    "episode": "episode",
}


# --- Minari ---


def minari_ids() -> dict[str, tuple[str, str]]:
    """Minari ids of our data sets, and their scenario and data set.

    `polycstr/startup-pi-v0`, `polycstr/grade-down-mixed-v0`, ...
    """
    return {
        f"{NAMESPACE}/{_dashed(scenario)}-{dataset}-v0": (scenario, dataset)
        for scenario in SCENARIOS
        for dataset in DATASETS
    }


def part_suffix(dataset: str, num_episodes: int, seed: int) -> str:
    """What is added to the name of a data set that has another number of episodes, or seed, than
    the one of that name; nothing to the data set's own."""
    own = (num_episodes, seed) == (data.NUM_EPISODES[dataset], DATA_SEED)
    return "" if own else f"-{num_episodes}-episodes-seed-{seed}"


def to_minari(
    scenario: str,
    dataset: str = "pi",
    num_episodes: int | None = None,
    seed: int = DATA_SEED,
    dataset_id: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Generate a data set and keep it as a Minari one; returns the `minari.MinariDataset`.

    It lies in the folder `MINARI_DATASETS_PATH`, `~/.minari/datasets` if that is not set, and is
    complete or not there. Arguments: `scenario`, `dataset`, `num_episodes`, `seed` as for
    `data.generate`; `dataset_id`: `polycstr/startup-pi-v0` and so on for the data set itself, and
    a name that says so for another seed or number of episodes, if None; `overwrite`: whether one
    of that id is replaced.

    An episode of T intervals has observations (T + 1, 9), actions (T, 2), rewards, terminations
    and truncations (T,), and infos (T + 1,): `cost`, `constraint` [K], `tracking_cost`,
    `peak_temperature` [K]. As everywhere in Minari, `infos[name][t + 1]` belongs to
    `rewards[t]`; row 0 is the start, with cost 0 and the start's own temperature.

    Raises `ImportError` without minari or h5py; `ValueError` for an unknown scenario or data set,
    `num_episodes` below 1, `seed` below 0, either no integer, and an id that Minari does not allow
    or that is of another of our data sets; `FileExistsError` if it is there already; `OSError`
    naming a folder that cannot be written to. All of it before anything is simulated.
    """
    minari, _ = require()
    scenario, dataset = scenario_name(scenario), data.dataset_name(dataset)
    wanted = data.NUM_EPISODES[dataset] if num_episodes is None else num_episodes
    for name, number, least in (("num_episodes", wanted, 1), ("seed", seed, 0)):
        if not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} = {number!r}; allowed: an integer, {least} or more.")
    suffix = part_suffix(dataset, wanted, seed)
    if dataset_id is None:
        dataset_id = f"{NAMESPACE}/{_dashed(scenario)}-{dataset}{suffix}-v0"
    namespace = _namespace(dataset_id)
    ours = minari_ids().get(dataset_id)
    if ours and (suffix or ours != (scenario, dataset)):
        raise ValueError(
            f"dataset_id = {dataset_id!r} with scenario = {scenario!r}, dataset = {dataset!r}, "
            f"num_episodes = {wanted}, seed = {seed}; that id is of {ours[0]!r}, {ours[1]!r}, all "
            "episodes, seed 0: leave dataset_id out or choose another."
        )
    root = _minari_root()
    final = root / dataset_id
    if final.exists() and not overwrite:
        raise FileExistsError(
            f"dataset_id = {dataset_id!r} is in {str(root)!r} already: load it with "
            "minari.load_dataset, replace it with overwrite=True, or choose another dataset_id."
        )
    data.check_writable(root)

    generated = data.generate(scenario, dataset, wanted, seed)
    limit = float(scenario_params(scenario).temperature_limit)
    buffers = [_episode_buffer(part, limit) for part in split_episodes(generated)]
    plan = data.draw_behaviour(scenario, dataset, wanted, seed)
    metadata = {
        "dataset_id": dataset_id,
        "algorithm_name": ALGORITHM_NAMES[dataset],
        "author": {"The polycstr-jax maintainers"},
        "description": _description(scenario, dataset, limit),
        "requirements": [f"polycstr-jax=={polycstr_jax.__version__}"],
        "minari_version": minari.__version__,
        METADATA_KEY: {
            "version": polycstr_jax.__version__,
            "scenario": scenario,
            "dataset": dataset,
            "num_episodes": wanted,
            "seed": seed,
            "recipe": _recipe(scenario, dataset),
            "temperature_limit": limit,
            "sha256": data.sha256(generated),
            "sha256_inputs": data.sha256(plan),
            "platform": data.platform_key(),
        },
    }
    # Minari lists no folder that begins with a dot: what is unfinished is not seen.
    unfinished = root / f".{final.name}.{os.getpid()}.tmp"
    try:
        (unfinished / "new").mkdir(parents=True)
        env = PolyCSTRGymnasium(scenario)
        storage = _extra("minari.dataset.minari_storage").MinariStorage.new(
            unfinished / "new" / "data",
            env.observation_space,
            env.action_space,
            gymnasium.spec(SCENARIOS[scenario]),
        )
        storage.update_metadata(metadata)
        storage.update_episodes(buffers)
        _make_namespace(namespace)
        final.parent.mkdir(parents=True, exist_ok=True)
        replaced = unfinished / "replaced"
        if final.exists():
            final.rename(replaced)
        try:
            (unfinished / "new").rename(final)
        except BaseException:
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return minari.load_dataset(dataset_id)


def from_minari(dataset_id: str) -> Dataset:
    """The data set that `to_minari` kept under this id, bit-equal to what was generated.

    Raises `ImportError` without minari or h5py; `ValueError` for an id that Minari does not
    allow, a data set that is not ours, is damaged, or whose sha256 differs from the one written
    in it; `FileNotFoundError`, with ids that are near, if there is none of this id.
    """
    minari, _ = require()
    _namespace(dataset_id)
    root = _minari_root()
    if not (root / dataset_id / "data").exists():
        ours, local = minari_ids(), list(minari.list_local_datasets())
        there = ", ".join(local) or "none"
        if dataset_id in ours:
            scenario, kind = ours[dataset_id]
            raise FileNotFoundError(
                f"dataset_id = {dataset_id!r} is not in {str(root)!r} yet (there: {there}). "
                f"to_minari({scenario!r}, {kind!r}) makes it, or python -m polycstr_jax dataset "
                f"--scenario {scenario} --dataset {kind} --format minari"
            )
        near = difflib.get_close_matches(dataset_id, [*ours, *local], n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise FileNotFoundError(
            f"dataset_id = {dataset_id!r} is not in {str(root)!r}; {hint}There: {there}. "
            f"to_minari makes: {', '.join(ours)}."
        )
    again = "make it anew with to_minari(..., overwrite=True)"
    try:
        found = minari.load_dataset(dataset_id)
        metadata = found.storage.metadata
        if METADATA_KEY not in metadata:
            raise ValueError(
                f"it is none of to_minari's; to_minari makes {', '.join(minari_ids())}"
            )
        dataset = _from_episodes(list(found.iterate_episodes()))
        _check_columns(dataset._asdict())
        written, computed = metadata[METADATA_KEY].get("sha256"), data.sha256(dataset)
    except (ValueError, TypeError, KeyError, OSError, AssertionError) as error:
        raise ValueError(
            f"dataset_id = {dataset_id!r} in {str(root)!r} cannot be read as one of ours "
            f"({_one_line(error)}); {again}."
        ) from error
    if written != computed:
        raise ValueError(
            f"dataset_id = {dataset_id!r} has sha256 {computed}, but {written} was written in it: "
            f"it was changed; {again}."
        )
    return dataset


def split_episodes(dataset: Dataset) -> list[Dataset]:
    """The episodes of a data set, cut where `episode` changes."""
    cuts = np.flatnonzero(np.diff(dataset.episode)) + 1
    columns = zip(*(np.split(column, cuts) for column in dataset), strict=True)
    return [Dataset(*column) for column in columns]


def _episode_buffer(part: Dataset, limit: float):
    """One episode as Minari keeps it. Rows 0 of the infos are the start: no interval has passed."""
    if not np.array_equal(part.obs[1:], part.next_obs[:-1]):
        raise ValueError(
            f"episode {part.episode[0]}: obs is not next_obs of the interval before, so Minari, "
            "which keeps one row of observations for both, cannot hold it."
        )
    start = part.obs[0]
    temperature = start[TEMPERATURE]
    first = {
        "cost": 0.0,
        "constraint": temperature - limit,
        "tracking_cost": np.abs(start[ERRORS]).sum(),
        "peak_temperature": temperature,
    }
    columns = {
        "cost": part.cost,
        "constraint": part.constraint,
        "tracking_cost": part.tracking_cost,
        # Exact: where T < 712 K, T - 356 is, and so is the way back.
        "peak_temperature": part.constraint + np.float32(limit),
    }
    return _extra("minari.data_collector").EpisodeBuffer(
        observations=np.concatenate([part.obs, part.next_obs[-1:]]),
        actions=part.action,
        rewards=part.reward,
        terminations=part.terminated,
        truncations=part.truncated,
        infos={
            name: np.concatenate([[first[name]], column]).astype(np.float32)
            for name, column in columns.items()
        },
    )


def _from_episodes(episodes) -> Dataset:
    """The columns of Minari's episodes."""

    def joined(column):
        return np.concatenate([column(episode) for episode in episodes])

    for name in ("cost", "constraint", "tracking_cost"):
        if any(name not in episode.infos for episode in episodes):
            raise ValueError(f"infos/{name} is missing")
    return Dataset(
        obs=joined(lambda e: e.observations[:-1]),
        action=joined(lambda e: e.actions),
        reward=joined(lambda e: e.rewards),
        cost=joined(lambda e: e.infos["cost"][1:]),
        constraint=joined(lambda e: e.infos["constraint"][1:]),
        next_obs=joined(lambda e: e.observations[1:]),
        terminated=joined(lambda e: e.terminations),
        truncated=joined(lambda e: e.truncations),
        tracking_cost=joined(lambda e: e.infos["tracking_cost"][1:]),
        episode=np.repeat(np.arange(len(episodes), dtype=np.int32), [len(e) for e in episodes]),
    )


def _recipe(scenario: str, dataset: str) -> str:
    """How the episodes were made, in a sentence."""
    if dataset == "pi":
        return (
            "PI controllers in absolute positional form with gains drawn uniformly; episodes whose "
            "temperature passes 380 K are drawn again (the data of arXiv 2507.22640)."
        )
    shares = zip(data.BEHAVIOURS, data.MIXED_SHARES[scenario], strict=True)
    return (
        "PI controllers with gains drawn more widely, disturbed on purpose: "
        + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares)
        + " of the episodes; runaways are kept."
    )


def _description(scenario: str, dataset: str, limit: float) -> str:
    """What a reader of `minari show` needs to know."""
    params = scenario_params(scenario)
    return (
        f"A polymerisation reactor that can run away, scenario {scenario}: set-points "
        f"{float(params.polymer_setpoint):g} kg/m3 polymer and "
        f"{float(params.temperature_setpoint):g} K, intervals of 1800 s, episodes of "
        f"{data.EPISODE_LENGTH} intervals (100 h), truncated. {_recipe(scenario, dataset)} "
        "infos[name][t + 1] belongs to rewards[t]: cost is 1 if the peak temperature of the "
        f"interval exceeds {limit:g} K, constraint is that peak minus the limit [K], tracking_cost "
        "is |e_P| + |e_T|."
    )


def _minari_root() -> Path:
    """Minari's folder; `OSError` naming it where it cannot be made."""
    try:
        return _extra("minari.storage").get_dataset_path()
    except OSError as error:
        folder = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        raise OSError(
            f"Minari's folder {folder!r} cannot be used ({error}); name another in the "
            "environment variable MINARI_DATASETS_PATH."
        ) from error


def _namespace(dataset_id: str) -> str | None:
    """The namespace of a Minari id; `ValueError` for an id that Minari does not allow."""
    try:
        return _extra("minari.dataset.minari_dataset").parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # TypeError: it has no version
        raise ValueError(
            f"dataset_id = {dataset_id!r}; allowed: NAMESPACE/NAME-vNUMBER of letters, digits, "
            f"- and _, such as {', '.join(minari_ids())}."
        ) from error


def _make_namespace(namespace: str | None) -> None:
    spaces = _extra("minari.namespace")
    if namespace and namespace not in spaces.list_local_namespaces():
        spaces.create_namespace(namespace, "Safe control of a polymerisation reactor")


def _dashed(scenario: str) -> str:
    return scenario.replace("_", "-")


# --- HDF5 ---


def to_hdf5(path: str | Path, dataset: Dataset, **provenance: str | int | float) -> Path:
    """Write a data set as HDF5 for DSRL's and OSRL's loaders; atomically. Returns the path.

    Keys: `observations` (N, 9), `next_observations` (N, 9), `actions` (N, 2), `rewards`, `costs`
    (N,) float32, `terminals` and `timeouts` (N,) bool, and our `constraint` [K], `tracking_cost`
    and `episode` (N,). Every array has N rows, since these loaders cut all of them alike; sha256,
    version and `provenance` are attributes of the file.

    Raises `ImportError` without h5py; `ValueError` for a name that does not end in .hdf5 or .h5,
    and for columns of a wrong dtype, shape or length; `OSError` naming a folder that cannot be
    written to.
    """
    h5py, path = _extra("h5py"), Path(path)
    if path.suffix not in (".hdf5", ".h5"):
        raise ValueError(f"path = {str(path)!r}; allowed: a name that ends in .hdf5 or .h5.")
    _check_columns(dataset._asdict())
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["sha256"] = data.sha256(dataset)
        file.attrs["polycstr_jax_version"] = polycstr_jax.__version__
        file.attrs.update(provenance)
        for name, column in dataset._asdict().items():
            file.create_dataset(HDF5_NAMES[name], data=column, compression="gzip")
    data.write_atomically(path, lambda file: file.write(content.getbuffer()))
    return path


def from_hdf5(path: str | Path) -> Dataset:
    """Read a data set written by `to_hdf5`, bit-equal.

    Raises `ImportError` without h5py; `FileNotFoundError`; `ValueError` for a file that is not
    HDF5 or is damaged, lacks a column, has one of a wrong dtype, shape or length, or whose sha256
    differs from the one written in it.
    """
    h5py, path = _extra("h5py"), Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path = {str(path)!r} does not exist; to_hdf5 writes such a file.")
    if path.is_dir():
        raise ValueError(f"path = {str(path)!r} is a folder; allowed: a file that to_hdf5 wrote.")
    again = "write it anew with to_hdf5"
    try:
        with h5py.File(path, "r") as file:
            columns = {
                name: file[key][()]
                for name, key in HDF5_NAMES.items()
                if isinstance(file.get(key), h5py.Dataset)
            }
            written = file.attrs.get("sha256")
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"path = {str(path)!r} cannot be read as HDF5 ({_one_line(error)}); {again}."
        ) from error
    try:
        _check_columns(columns, HDF5_NAMES)
    except ValueError as error:
        raise ValueError(f"path = {str(path)!r}: {error} To mend it, {again}.") from error
    dataset = Dataset(**columns)
    found = data.sha256(dataset)
    if written != found:
        raise ValueError(
            f"path = {str(path)!r} has sha256 {found}, but {written} was written in it: the file "
            f"was changed, or is none of to_hdf5's; {again}."
        )
    return dataset


def _check_columns(columns: dict[str, Any], names: dict[str, str] | None = None) -> None:
    """`ValueError` naming a column that is missing or of a wrong dtype, shape or length.

    `names`: what the columns are called in the message.
    """
    names = names or {name: name for name in Dataset._fields}
    missing = [names[name] for name in Dataset._fields if name not in columns]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing; needed: {', '.join(names.values())}, one row an "
            "interval."
        )
    lengths = {}
    for name in Dataset._fields:
        column, shape = np.asarray(columns[name]), COLUMN_SHAPES.get(name, ())
        dtype = np.dtype(COLUMN_DTYPES.get(name, np.float32))
        if column.dtype != dtype or column.ndim != 1 + len(shape) or column.shape[1:] != shape:
            allowed = f"{dtype} ({', '.join(['N', *map(str, shape)])}{'' if shape else ','})"
            raise ValueError(f"{names[name]} is {column.dtype} {column.shape}; allowed: {allowed}.")
        lengths[names[name]] = column.shape[0]
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lengths differ: {found}; allowed: the same number of rows in all.")
    if not lengths[names["reward"]]:
        raise ValueError("the columns have no rows; allowed: 1 or more.")


# --- What both need ---


def require() -> tuple[Any, Any]:
    """minari and h5py; `ImportError` that says how to install them."""
    return _extra("minari"), _extra("h5py")


def _extra(module: str):
    """A module of the extra `interop`, imported when it is needed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({_one_line(error)}); polycstr_jax.interop needs it: "
            'pip install "polycstr-jax[interop]", or in a clone pip install -e ".[interop]"'
        ) from error


def _one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
