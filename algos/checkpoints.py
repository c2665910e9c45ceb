"""Trained states on disc, with how they were made."""

import contextlib
import dataclasses
import errno
import importlib
import os
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import jax
import numpy as np
import orbax.checkpoint as orbax

import polycstr_jax
from polycstr_jax.data import TrainingData

TOLERANCE = 1e-3  # of scales, in their standard deviations


def checkpointer() -> orbax.StandardCheckpointer:
    """Of this process alone: several processes save each its own, and wait for nobody."""
    own = jax.process_index()
    alone = orbax.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process {own}"
    )
    return orbax.StandardCheckpointer(multiprocessing_options=alone)


def save(path: Path, algorithm, states, /, **made_by) -> None:
    """States (S, ...) of an `Algorithm`, whole or not at all, with its settings, those of what it
    wraps, and `made_by`, what `load` compares. `OSError` where it cannot be written."""
    made_by["config"] = dataclasses.asdict(algorithm.config)
    if algorithm.base is not None:
        made_by["base_config"] = dataclasses.asdict(algorithm.base.config)
    with checkpointer() as disc, named_if_full(path):
        disc.save(path.absolute(), states._asdict(), custom_metadata=made_by)
        disc.wait_until_finished()


def commit(repository: Path) -> str:
    """Of the code in a clone, -dirty if it was changed; unknown outside one. POLYCSTR_COMMIT names
    it where the files were copied onto a machine without the clone that they are from."""

    def git(*words):
        place = {"cwd": repository, "capture_output": True, "text": True}
        return subprocess.run(["git", *words], check=False, **place).stdout.strip()

    try:
        found = git("describe", "--always")
        # What a run itself overwrites does not make the code another one.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    except OSError:  # no git
        found = changed = ""
    return os.environ.get("POLYCSTR_COMMIT") or found + "-dirty" * bool(changed) or "unknown"


def is_finished(path: Path) -> bool:
    """Whether all of a checkpoint was written; whether it still is all there, says `restored`."""
    return (path / "_CHECKPOINT_METADATA").is_file()


def described(path: Path) -> dict[str, Any]:
    """How what is saved in `path` was made, with `tree`, its form. `ValueError` if it is not
    whole."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not is_finished(path):  # orbax would warn as well
        raise ValueError(f"{path} is no whole checkpoint")
    with checkpointer() as disc:
        try:
            there = disc.metadata(path.absolute())
            found = {"tree": there.item_metadata.tree, **there.custom_metadata}
            missing = {"algorithm", "config", "num_seeds", "seed"} - found.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no whole checkpoint") from error
    if missing:
        raise ValueError(f"{path} is no whole checkpoint: it lacks {', '.join(sorted(missing))}")
    return found


def load(path: Path, data: TrainingData, /, acting: bool = False, **made_by) -> tuple[Any, Any]:
    """The `Algorithm` with the settings saved in `path`, and its states (S, ...).

    `acting`: it was saved `without_what_ends`. `made_by`: what it has to have been made by, with at
    least `algorithm`, the name of its file, and `num_seeds`. `ValueError` if `path` is not whole or
    was made otherwise, if its settings or leaves are of another form than this version's, or its
    scales not those of `data`; what differs is named.
    """
    try:
        found = described(path)
    except ValueError as error:
        name = made_by["algorithm"]
        allowed = f"a folder that python algos/{name}.py of this version has saved"
        raise ValueError(f"{error}; allowed: {allowed}.") from error
    refuse(
        [f"{k} is {found.get(k)!r}, not {v!r}" for k, v in made_by.items() if found.get(k) != v],
        path,
        "one that was made as it is asked for",
    )
    algorithm = made_again(path, found)
    states = restored(path, found, algorithm, data, acting)
    given, own = (jax.device_get(x.normaliser)._asdict() for x in (states, data))
    other = []
    for field in own:
        unit = own[f"{field.partition('_')[0]}_std"]
        if np.any(np.abs(given[field] - own[field]) > TOLERANCE * unit):
            other.append(f"normaliser.{field} is of other data")
    refuse(other, path, "scales of the data that are trained on")
    return algorithm, states


def restored(path: Path, made: dict[str, Any], algorithm, data: TrainingData, acting: bool):
    """The states (S, ...) in `path`, of which `made` is `described`. `data` may be shapes only.
    `ValueError` if they are of another form than this version's, or not whole."""
    expected = form_of(algorithm, data, made["num_seeds"], acting)
    if acting:
        expected = without_what_ends(expected)
    check_form(made["tree"], expected._asdict(), path)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    form = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), expected._asdict()
    )
    try:
        with checkpointer() as disc:
            return type(expected)(**disc.restore(path.absolute(), form))
    except Exception as error:
        if not says_damaged(error):
            raise
        said = textwrap.shorten(str(error), 200)
        raise ValueError(f"{path} is not whole: {said}") from error


def says_damaged(error: Exception) -> bool:
    """Whether orbax raises this where files are not what they should be: a bare `Exception` where
    the file system says so, too."""
    kinds = (OSError, ValueError, KeyError, TypeError, AttributeError)
    return type(error) is Exception or isinstance(error, kinds)


def without_what_ends(states):
    """States without what only training needs: the optimisers' states, and the replay."""
    states = states._replace(opt_state=())
    return states._replace(replay=()) if hasattr(states, "replay") else states


def keep_training(folder: Path, done: int, state, curves: list, seconds: float) -> None:
    """Keep what is needed to go on after `done` chunks of a training: its state, and of each chunk
    the curves {name: (S,)}. What was kept before is removed once this is whole. `OSError` where it
    cannot be written."""
    tree = {
        "state": {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))},
        "curves": {name: np.stack([chunk[name] for chunk in curves]) for name in curves[0]},
        "seconds": np.float64(seconds),
    }
    with checkpointer() as disc, named_if_full(folder):
        disc.save(folder.absolute() / str(done), tree, force=True)
        disc.wait_until_finished()
    for other in folder.iterdir():
        if other.name != str(done):
            shutil.rmtree(other, ignore_errors=True)


def kept_training(folder: Path, form, device) -> tuple[int, Any, list, float] | None:
    """Chunks done, state, curves and seconds that were kept of a training whose state has this
    `form`, on a device; None if there is nothing whole."""
    leaves, structure = jax.tree.flatten(form)
    place = jax.sharding.SingleDeviceSharding(device)
    names = sorted((p.name for p in folder.glob("*") if p.name.isdigit()), key=int, reverse=True)
    for path in (folder.absolute() / name for name in names):
        try:
            with checkpointer() as disc:
                curves = disc.metadata(path).item_metadata.tree["curves"]
                wanted = {
                    "state": {
                        str(i): jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
                        for i, x in enumerate(leaves)
                    },
                    "curves": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), curves),
                    "seconds": np.float64(0.0),
                }
                found = disc.restore(path, wanted)
        except Exception as error:
            if not says_damaged(error):
                raise
            continue  # not whole, or of another version
        state = jax.tree.unflatten(structure, [found["state"][str(i)] for i in range(len(leaves))])
        done = int(path.name)
        curves = [{k: np.asarray(x[i]) for k, x in found["curves"].items()} for i in range(done)]
        return done, state, curves, float(found["seconds"])
    return None


@contextlib.contextmanager
def named_if_full(path: Path):
    """What orbax says as `ValueError` when it cannot write, as `OSError` that names the folder."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EIO, f"cannot be written to: {error}", str(path)) from error


def form_of(algorithm, data: TrainingData, num_seeds: int, acting: bool):
    """Shapes and types of an algorithm's states (S, ...), around a base that was trained before,
    of which only what acts may be left."""
    keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
    if algorithm.base is None:
        return jax.eval_shape(jax.vmap(algorithm.init, in_axes=(0, None)), keys, data)
    base = form_of(algorithm.base, data, num_seeds, acting)
    base = without_what_ends(base) if acting else base
    return jax.eval_shape(jax.vmap(algorithm.init, in_axes=(0, None, 0)), keys, data, base)


def made_again(path: Path, made: dict[str, Any]):
    """The algorithm with its settings as they were saved (`described`), in its scenario's
    environment, around its base if it is a layer; `ValueError` naming the settings that it has not,
    or that were not saved: they are of another version of it."""
    env, params = polycstr_jax.make(made.get("scenario", "startup"))

    def again(name: str, settings: dict[str, Any], **layer):
        try:
            module = importlib.import_module(f"algos.{name}")
        except ModuleNotFoundError as error:
            raise ValueError(f"{path} is of {name}; there is no algos/{name}.py.") from error
        other = settings.keys() ^ {field.name for field in dataclasses.fields(module.Config)}
        refuse(sorted(other), path, f"settings of this version of algos/{name}.py")
        try:
            return module.make_train(rebuilt(module.Config, settings), env, params, **layer)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    layer = {}
    if "base_config" in made:
        layer["base"] = again(made["config"]["base"], made["base_config"])
    return again(made["algorithm"], made["config"], **layer)


def rebuilt(kind: type, settings: dict[str, Any]):
    """A configuration from what JSON kept of it."""
    kinds, plain = get_type_hints(kind), {}
    for name, value in settings.items():
        if isinstance(value, dict):
            plain[name] = rebuilt(kinds[name], value)
        else:
            plain[name] = tuple(value) if isinstance(value, list) else value
    return kind(**plain)


def check_form(given, expected, what) -> None:
    """`ValueError` of `what` that names every leaf which is missing, too many, or of another
    shape."""

    def leaves(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}

    have, want = leaves(given), leaves(expected)
    found = [f"{name} is missing" for name in want if name not in have]
    found += [f"{name} is not known here" for name in have if name not in want]
    for name in want:
        if name in have and np.shape(have[name]) != np.shape(want[name]):
            found.append(f"{name} is {np.shape(have[name])}, not {np.shape(want[name])}")
    refuse(found, what, "networks of the same form")


def refuse(found: list[str], what, allowed: str) -> None:
    """`ValueError` of `what` that lists what was found, if anything was."""
    if found:
        raise ValueError(f"{what} does not fit: {'; '.join(found)}. Allowed: {allowed}.")
