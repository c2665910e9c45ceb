"""Trained policies for use without this package: StableHLO for JAX alone, a file for NumPy alone.

    python algos/bc.py --scenario startup --dataset pi --num-seeds 2 --out runs/bc
    python -m algos.export runs/bc --seed 0 --out exported

CHECKPOINT is what `python algos/<name>.py` has saved, or a folder <cell>.params of
`python -m benchmarks.run --save-params`. The folder that is written, whole or not at all, holds

- `policy.stablehlo`: `jax.export` of act(obs (N, 9) float32[, key (N, 2) uint32]) -> (N, 2), for
  CPU, CUDA and TPU, with N open; the key is there if the policy draws random numbers. It needs jax
  and flatbuffers.
- `policy.py` and `policy.npz`: the same in NumPy, where `algos/numpy_policy.py` has the
  algorithm's form. What it has not (FISOR, Newton steps, the exact minimiser) is StableHLO only.
- `policy.json`: what it is of, units, versions, sha256 of the other files.

Each form is compared with the policy itself before anything is written. docs/export.md says which
algorithm has which form.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from jax import export

import polycstr_jax
from algos import checkpoints, numpy_policy
from algos.common import Algorithm, action_units
from polycstr_jax.data import Normaliser, TrainingData, check_writable
from polycstr_jax.env import ACTION_SIZE, OBS_NAMES, OBS_SIZE, OBS_UNITS
from polycstr_jax.pipes import end_with_the_reader
from polycstr_jax.reactor import control_bounds

PLATFORMS = ("cpu", "cuda", "tpu")
KEY = "threefry2x32"  # of the key data that a policy with random numbers takes
TOLERANCE = 1e-4  # of an action, whose range is 2, between a form and the policy
LOOSE = 1e-3, 0.95  # where rounding decides when a search ends or which sample wins; of this share
NUM_CHECKED = 256  # observations on which they are compared
SQUASHED = ("cpq", "bearl", "coptidice", "sac_lag", "marvel", "o2o_baselines")
FILE = Path(numpy_policy.__file__)


@dataclasses.dataclass
class Args:
    """Write a trained policy as StableHLO and as NumPy, for use without this package.

    What it wrote is described for machines in OUT/policy.json. Exit codes: 0, written, and each
    form acts as the policy does; 1 or 2, nothing was written, and stderr says why.
    """

    checkpoint: tyro.conf.Positional[Path]  # of algos/<name>.py, or <cell>.params
    out: Path = dataclasses.field(kw_only=True)  # a folder that is not there yet
    seed: int = 0  # which of the checkpoint's


# --- What was trained ---


def read(checkpoint: Path, seed: int) -> tuple[Algorithm, Any, dict[str, Any]]:
    """The `Algorithm`, the state of one seed, and how it was made.

    `ValueError` if `checkpoint` is not whole or of another version, or has not that seed.
    """
    firsts = sorted(int(path.name) for path in checkpoint.glob("*") if path.name.isdigit())
    part = checkpoint
    if firsts:  # <cell>.params
        part = checkpoint / str(max((x for x in firsts if x <= seed), default=firsts[0]))
    try:
        made = checkpoints.described(part)
    except ValueError as error:
        raise ValueError(
            f"checkpoint = {checkpoint}: {error}; allowed: a folder that python algos/<name>.py "
            "or python -m benchmarks.run --save-params of this version has saved."
        ) from error
    found = range(made["seed"], made["seed"] + made["num_seeds"])
    if seed not in found:
        more = f" (of the parts {', '.join(map(str, firsts))})" if firsts else ""
        raise ValueError(
            f"seed = {seed}; allowed: {found[0]} to {found[-1]}, those of {part}{more}."
        )
    algorithm = checkpoints.made_again(part, made)
    acting = not jax.tree.leaves(made["tree"]["opt_state"])
    states = checkpoints.restored(part, made, algorithm, any_data(), acting)
    return algorithm, jax.tree.map(lambda x: x[seed - found[0]], states), made


def any_data() -> TrainingData:
    """Shapes of a training set, from which those of a state follow; 200 transitions."""

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    scales = {name: floats(ACTION_SIZE) for name in Normaliser._fields}
    scales |= {"obs_mean": floats(OBS_SIZE), "obs_std": floats(OBS_SIZE), "reward_std": floats()}
    columns = {name: floats(200) for name in TrainingData._fields}
    columns |= {name: floats(200, OBS_SIZE) for name in ("obs", "next_obs")}
    columns |= {name: jax.ShapeDtypeStruct((200,), bool) for name in ("terminated", "truncated")}
    columns |= {"action": floats(200, ACTION_SIZE), "normaliser": Normaliser(**scales)}
    return TrainingData(**columns)


# --- StableHLO ---


def batched(algorithm: Algorithm, state):
    """act(obs (N, 9), key (N, 2) uint32) -> (N, 2): a key of its own for each observation."""
    act = algorithm.policy(state)

    def one(obs, key):
        return act(obs, jax.random.wrap_key_data(key, impl=KEY)).astype(jnp.float32)

    return jax.vmap(one)


def to_stablehlo(algorithm: Algorithm, state) -> tuple[export.Exported, bool]:
    """act(obs[, key]) with N open, and whether it has the key: whether the policy asks for it.

    Products of matrices are in float32 on every platform.
    """
    with_key = batched(algorithm, state)

    def without_key(obs):
        return with_key(obs, jnp.zeros((obs.shape[0], 2), jnp.uint32))  # of no influence

    def lower(act, num):
        shapes = [jax.ShapeDtypeStruct((num, OBS_SIZE), jnp.float32)]
        if act is with_key:
            shapes.append(jax.ShapeDtypeStruct((num, 2), jnp.uint32))
        return export.export(jax.jit(act), platforms=PLATFORMS)(*shapes)

    frames = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine in it
    try:
        with jax.enable_x64(False), jax.default_matmul_precision("float32"):
            random = 1 in lower(with_key, 1).module_kept_var_idx
            (num,) = export.symbolic_shape("N")
            return lower(with_key if random else without_key, num), random
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)


# --- NumPy ---


def to_numpy(name: str, algorithm: Algorithm, state) -> dict[str, np.ndarray]:
    """The numbers of `algos/numpy_policy.py` for a policy. `ValueError` saying why, if it has
    none."""
    config = algorithm.config
    if name == "picnn":
        base = config.base
        numbers = to_numpy(base, algorithm.base, state.base)
        return numbers | correction(config, state) if config.num_steps > 0 else numbers
    scales = jax.device_get(state.normaliser)
    track = getattr(config, "track", "default")
    numbers = {
        "obs_mean": scales.obs_mean,
        "obs_std": scales.obs_std,
        "first_obs": first_obs(track),
    }
    if name in ("bc", "iql"):
        shift, scale = action_units(track, scales)
        if name == "bc" and track == "default" and not config.standardise_actions:
            shift, scale = np.zeros(ACTION_SIZE), np.ones(ACTION_SIZE)
        network = state.params if name == "bc" else state.params.policy
        numbers |= {"form": "linear", "shift": shift, "scale": scale}
        numbers |= {"tanh": track == "published", **dense("actor", network["params"])}
    elif name in SQUASHED:
        network = state.params.actor["params"]
        mean = {k: x for k, x in network.items() if k != f"Dense_{len(network) - 1}"}  # no log std
        numbers |= {"form": "squashed", **dense("actor", mean)}
    elif name == "bcql":
        numbers |= {"form": "perturbed", "phi": config.perturbation}
        numbers |= dense("actor", state.params.actor["params"])
        numbers |= dense("decoder", state.params.vae["params"]["decoder"])
    else:
        why = "it draws its actions at random" if name == "fisor" else "its form is not known there"
        raise ValueError(f"{name} has no NumPy form: {why}.")
    if getattr(config, "action_unit", "box") == "asinh":
        numbers["action_std"] = scales.action_std
    return {k: as_array(x) for k, x in numbers.items()}


def as_array(x) -> np.ndarray:
    """Numbers with a fraction in float32; counts, flags and names as they are."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def first_obs(track: str) -> int:
    """The first entry of an observation that a track sees; see `common.track_obs`."""
    return 3 if track == "published" else 0


def dense(name: str, params) -> dict[str, Any]:
    """Kernels and biases of layers Dense_0, Dense_1, ... by the names of `numpy_policy.mlp`."""
    numbers: dict[str, Any] = {f"{name}_layers": len(params)}
    for layer in range(len(params)):
        for part in ("kernel", "bias"):
            numbers[f"{name}_{part}_{layer}"] = params[f"Dense_{layer}"][part]
    return numbers


def correction(config, state) -> dict[str, np.ndarray]:
    """The numbers of `numpy_policy.corrected`: of `algos/picnn.py`'s gradient steps."""
    if config.correction != "gradient":
        raise ValueError(
            f"picnn has no NumPy form with correction = {config.correction!r}, only with "
            "'gradient'."
        )
    from algos import picnn

    scales, published = state.normaliser, config.track == "published"
    shift, scale = action_units(config.track, scales)
    low = -jnp.ones(ACTION_SIZE) if published else (-1.0 - shift) / scale
    high = jnp.ones(ACTION_SIZE) if published else (1.0 - shift) / scale
    if config.precondition:
        metric = (scales.action_std / scale) ** 2
    else:
        metric = state.target_std * (1.0 if published else scale**-2)
    numbers = {
        "first_obs": first_obs(config.track),
        "shift": shift,
        "scale": scale,
        "low": low,
        "high": high,
        "eta": state.eta * metric,
        "gate": state.gate,
        "steps": config.num_steps,
        "members": config.num_models,
        "uncertainty": config.uncertainty,
        "activation": config.activation,
        "layers": len(config.hidden) + 1,
    }
    params = jax.device_get(state.params["params"])
    num_states = OBS_SIZE - first_obs(config.track)
    at = iter(range(len(params)))  # flax numbers its layers in the order of the calls
    for layer in range(len(config.hidden) + 1):
        if config.model == "picnn":
            of_state, of_action = params[f"Dense_{next(at)}"], params[f"Dense_{next(at)}"]
            kernel, bias = of_state["kernel"], of_state["bias"]
            action = of_action["kernel"]
            if layer > 0:
                inner = picnn.nonnegative(params[f"raw_{layer}"])
            if layer < len(config.hidden) and config.state_path == "mlp":
                path = params[f"Dense_{next(at)}"]
                numbers |= {f"path_{x}_{layer}": path[x] for x in ("kernel", "bias")}
        else:  # the action enters the first layer only, and so does the state
            whole, bias = params[f"Dense_{layer}"]["kernel"], params[f"Dense_{layer}"]["bias"]
            inner, size = whole, (config.num_models, num_states, whole.shape[-1])
            kernel = whole[:, :num_states] if layer == 0 else np.zeros(size)
            size = (config.num_models, ACTION_SIZE, whole.shape[-1])
            action = whole[:, num_states:] if layer == 0 else np.zeros(size)
        numbers |= {f"state_kernel_{layer}": kernel, f"state_bias_{layer}": bias}
        numbers[f"action_kernel_{layer}"] = action
        if layer > 0:
            numbers[f"inner_kernel_{layer}"] = inner
    return {f"cost_{name}": as_array(x) for name, x in numbers.items()}


# --- Files ---


def write(out: Path, algorithm: Algorithm, state, /, **made_by) -> dict[str, Any]:
    """Export the policy of one seed's `state` into the new folder `out`; returns policy.json.

    `made_by`: at least `algorithm`, the name of its file, and what else policy.json should say
    (`scenario`, `dataset`, `seed`, ...). `scenario` decides the set-points, limits and increments
    that it names, or `params`, an `EnvParams`, for a plant of one's own. `ValueError` if `out`
    exists, `ImportError` without flatbuffers, `OSError` where it cannot be written,
    `RuntimeError` if a form does not act as the policy does.
    """
    check_out(out)
    check_flatbuffers()
    check_writable(out.absolute().parent)
    params = made_by.pop("params", None)
    if params is None:
        params = polycstr_jax.make(made_by.get("scenario", "startup"))[1]
    state = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, state)
    lowered, random = to_stablehlo(algorithm, state)
    files = {"policy.stablehlo": bytes(lowered.serialize())}
    made_by = {"config": dataclasses.asdict(algorithm.config), **made_by}
    try:
        numbers, why_not = to_numpy(made_by["algorithm"], algorithm, state), None
    except ValueError as error:
        numbers, why_not = None, str(error)
    temporary = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        if numbers is not None:
            np.savez(temporary / "policy.npz", **numbers)
            for path in (temporary / "policy.npz", FILE):
                files[f"policy{path.suffix}"] = path.read_bytes()
        differences = compare(algorithm, state, random, lowered, numbers, temporary)
        described = {
            **description(made_by, params, random),
            "numpy": why_not or "policy.py",
            "largest_difference": differences,
            "sha256": {name: hashlib.sha256(x).hexdigest() for name, x in files.items()},
            "bytes": {name: len(x) for name, x in files.items()},
        }
        files["policy.json"] = (json.dumps(described, indent=2) + "\n").encode()
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        os.rename(temporary, out.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return described


def check_out(out: Path) -> None:
    """`ValueError` if the folder exists."""
    if out.exists():
        raise ValueError(f"out = {out} exists; remove it or name another folder.")


def check_flatbuffers() -> None:
    """`ImportError` without the package in which `jax.export` writes."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            'jax.export needs flatbuffers to write: pip install "polycstr-jax[interop]", or in a '
            'clone pip install -e ".[interop]".'
        )


def compare(algorithm, state, random: bool, lowered, numbers, folder: Path) -> dict[str, float]:
    """The largest difference of an action between each form and the policy, over observations
    around the data's and far from them. `RuntimeError` above `TOLERANCE` or `LOOSE`."""
    rng = np.random.default_rng(0)
    scales = jax.device_get(state.normaliser)
    spread = (
        rng.standard_normal((NUM_CHECKED, OBS_SIZE))
        * rng.choice([0.5, 2.0, 8.0], NUM_CHECKED)[:, None]
    )
    obs = (scales.obs_mean + spread * scales.obs_std).astype(np.float32)
    key = rng.integers(2**32, size=(NUM_CHECKED, 2), dtype=np.uint32)
    with jax.enable_x64(False), jax.default_matmul_precision("float32"):
        expected = np.asarray(jax.jit(batched(algorithm, state))(obs, key))
        found = {"stablehlo": np.asarray(lowered.call(obs, *([key] if random else [])))}
    if numbers is not None:
        found["numpy"] = numpy_policy.act(obs, folder / "policy.npz")
    searches = random or getattr(algorithm.config, "correction", None) == "exact"
    allowed, share = LOOSE if searches else (TOLERANCE, 1.0)
    differences = {}
    for form, actions in found.items():
        of_rows = np.abs(actions - expected).max(axis=1)
        if not np.quantile(of_rows, share) <= allowed:
            raise RuntimeError(
                f"the {form} form differs from the policy by {of_rows.max():.2g}; allowed: "
                f"{allowed}. Nothing was written. This is an error of algos/export.py: please "
                "report it."
            )
        differences[form] = float(of_rows.max())
    return differences


def description(made_by: dict[str, Any], params, random: bool) -> dict[str, Any]:
    """What policy.json says of a policy, its plant and how it was made."""
    low, high = (np.asarray(x).tolist() for x in control_bounds(params.reactor, np))
    most = np.asarray(params.max_increment).tolist()
    names = zip(("initiator feed", "coolant temperature"), ("kg/h", "K"), strict=True)
    known = {k: made_by[k] for k in sorted(made_by) if k not in ("tree", "num_seeds")}
    packages = ("jax", "jaxlib", "numpy", "flax", "polycstr-jax")
    call = "obs, key" if random else "obs"
    return {
        "made_by": known,
        "signature": f"act({call}) -> action (N, 2) float32",
        "obs": [{"name": n, "unit": u} for n, u in zip(OBS_NAMES, OBS_UNITS, strict=True)],
        "action": [
            {
                "name": name,
                "unit": unit,
                "increment_per_interval_at_1": most[i],
                "lowest": low[i],
                "highest": high[i],
            }
            for i, (name, unit) in enumerate(names)
        ],
        "interval_s": float(params.reactor.interval),
        "plant": {
            name: float(getattr(params, name))
            for name in ("polymer_setpoint", "temperature_setpoint", "temperature_limit")
        },
        "needs_key": random,
        "key": "(N, 2) uint32, uniform bits, anew for every decision" if random else None,
        "platforms": list(PLATFORMS),
        "batch": "any N",
        "use": {
            "jax": "jax.export.deserialize(bytearray(open('policy.stablehlo', 'rb').read()))"
            f".call({call})",
            "numpy": "import policy; policy.act(obs)",
        },
        "versions": {name: version(name) for name in packages if installed(name)}
        | {"python": sys.version.split()[0]},
        "commit": checkpoints.commit(Path(__file__).parent.parent),
        "date": datetime.now(UTC).date().isoformat(),
    }


def installed(name: str) -> bool:
    """Whether a package has metadata; a copy of this one that is only on the path has none."""
    try:
        return bool(version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def main(args: Args) -> None:
    """The command line; `SystemExit` for what the user can repair."""
    try:
        check_out(args.out)
        check_flatbuffers()
        check_writable(args.out.absolute().parent)
        algorithm, state, made = read(args.checkpoint, args.seed)
        made_by = {k: x for k, x in made.items() if k not in ("tree", "num_seeds")}
        described = write(args.out, algorithm, state, **{**made_by, "seed": args.seed})
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    for name, size in described["bytes"].items():
        rich.print(f"{args.out / name}: {size / 1000:.0f} kB")
    for form, difference in described["largest_difference"].items():
        rich.print(f"{form}: actions within {difference:.1e} of the policy's")
    if described["numpy"] != "policy.py":
        rich.print(described["numpy"])


if __name__ == "__main__":
    end_with_the_reader()
    main(tyro.cli(Args))
