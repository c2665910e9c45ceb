"""Trained states on disc, with the settings that they were trained with."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as orbax

from polycstr_jax.data import TrainingData


def save(path: Path, name: str, config, states) -> None:
    """States (S, ...) of S seeds, of `algos/<name>.py` with `config`; whole or not at all."""
    made_by = {"algorithm": name, "config": dataclasses.asdict(config)}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), states._asdict(), custom_metadata=made_by)


def load(path: Path, name: str, data: TrainingData, num_seeds: int) -> tuple[Any, Any]:
    """The `Algorithm` of `algos/<name>.py` with the settings saved in `path`; its states (S, ...).

    `ValueError` if that is no checkpoint of `name`, or naming every leaf that is of another form,
    of another number of seeds, or scaled by other data than these.
    """
    with orbax.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(path.absolute())
        made_by = found.custom_metadata or {}
        if made_by.get("algorithm") != name:
            what = made_by.get("algorithm", "no checkpoint of an algorithm")
            raise ValueError(f"{path} is {what}; allowed: what algos/{name}.py saved.")
        algorithm = made_again(name, made_by["config"])
        keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
        expected = jax.eval_shape(jax.vmap(algorithm.init, in_axes=(0, None)), keys, data)
        check_form(found.item_metadata.tree, expected._asdict(), str(path))
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        form = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), expected._asdict()
        )
        states = type(expected)(**checkpointer.restore(path.absolute(), form))
    scales = zip(*map(jax.device_get, (states.normaliser, data.normaliser)), strict=True)
    other = [
        f"normaliser.{field} is of other data"
        for field, (given, own) in zip(data.normaliser._fields, scales, strict=True)
        if not np.allclose(given, own[None], rtol=1e-5, atol=0.0)
    ]
    refuse(other, str(path))
    return algorithm, states


def made_again(name: str, settings: dict[str, Any]):
    """The algorithm with settings as they were saved; `ValueError` naming those that it has not,
    or that were not saved: they are of another version of it."""
    module = importlib.import_module(f"algos.{name}")
    other = settings.keys() ^ {field.name for field in dataclasses.fields(module.Config)}
    if other:
        raise ValueError(f"{', '.join(sorted(other))}: settings of another algos/{name}.py.")
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return module.make_train(module.Config(**plain))


def mismatches(given, expected) -> list[str]:
    """Every leaf of `given` that is not as in `expected`: missing, too many, of another shape."""

    def leaves(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}

    have, want = leaves(given), leaves(expected)
    found = [f"{name} is missing" for name in want if name not in have]
    found += [f"{name} is not known here" for name in have if name not in want]
    for name in want:
        if name in have and np.shape(have[name]) != np.shape(want[name]):
            found.append(f"{name} is {np.shape(have[name])}, not {np.shape(want[name])}")
    return found


def check_form(given, expected, what: str) -> None:
    """`ValueError` of `what` that names every leaf which differs."""
    refuse(mismatches(given, expected), what)


def refuse(found: list[str], what: str) -> None:
    """`ValueError` of `what` that lists what was found, if anything was."""
    if found:
        raise ValueError(
            f"{what} does not fit: {'; '.join(found)}. Allowed: networks of the same form, as many "
            "seeds, and the same scales."
        )
