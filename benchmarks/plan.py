"""What there is to run: suites, presets, and their cells, each with a hash of all that decides it.

Suites: `leaderboard` (every method at its default settings); `robustness` (the same, trained on
the nominal plant, under measurement noise and on changed plants: `benchmarks.conditions`);
`picnn` (the tables of arXiv 2507.22640: BC and IQL with and without the correction layer, tracks,
targets, models); `fisor` (those of arXiv 2401.10700: FISOR, its ablations, CPQ, COptiDICE, BCQ-Lag,
BC and IQL on the `mixed` data; BC and FISOR also on less of it, on parts of it, and on noisy
measurements); `marvel` (that of arXiv 2412.04426: fine-tuning in the environment, after CPQ on the
`mixed` data).

Presets: `smoke` (CI: far too short to learn anything), `quick` (full updates, 2 seeds; of the
leaderboard what learns from the `pi` data), `cpu` (full updates, 8 to 16 seeds: the committed
results; on the `mixed` data BC, IQL and FISOR only; of suite `fisor` all of it in start-up, less
elsewhere), `full` (1,000 seeds; for an accelerator).
"""

import ast
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import os
import tokenize
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import polycstr_jax
from algos import fisor, marvel
from benchmarks import conditions, training_sets
from benchmarks.conditions import Condition
from polycstr_jax import data

EVALUATION_KEY = 0
METHODS = {  # label -> file of algos/, and what its configuration differs in from the default
    "bc": ("bc", {}),
    "bc+": ("picnn", {"base": "bc"}),
    "iql": ("iql", {}),
    "iql+": ("picnn", {"base": "iql"}),
    "cpq": ("cpq", {}),
    "bearl": ("bearl", {}),
    "bcql": ("bcql", {}),
    "coptidice": ("coptidice", {}),
    "fisor": ("fisor", {}),
    "sac_lag": ("sac_lag", {}),
    "marvel": ("marvel", {}),
    "o2o": ("o2o_baselines", {}),
}
ONLINE = ("sac_lag", "marvel", "o2o")  # they train in the environment: suite marvel
OF_PI = ("bc", "bc+", "iql", "iql+")  # methods trained on the `pi` data, which know no cost
REFERENCES = (
    *("oracle", "unconstrained", "horizon10", "horizon2", "pi_tuned", "pi_tuned_all"),
    *("pi_best", "pi_safe", "pi_median", "step", "zero", "random"),
)
HORIZONS = {"horizon10": 10, "horizon2": 2}  # intervals
NUM_RANDOM_SEEDS = 8  # of the random controller
ON_AN_ACCELERATOR = ("paper", "first-commit")  # variants of FISOR too long for a CPU
LIMITS = ("limit0", "limit5")  # beside the default, 2
VARIANTS = {  # of the suites fisor and marvel
    "fisor": tuple(fisor.PRESETS),
    "cpq": ("limit0", "limit2", "limit5"),
    "bearl": ("limit0", "limit2", "limit5"),
    "bcql": ("limit0", "limit2", "limit5"),
    "coptidice": ("limit0", "limit2", "limit5"),
    "sac_lag": ("default", "apid", "more-steps", "dual", *LIMITS),
    "marvel": (
        *("default", "warm-start", "more-steps", "fqe", "random-critics"),
        *("reward-only", "cost-only", "pid", "dual", "apid-paper", "fixed", "pid-head-start"),
        *("warm-start-pid", "warm-start-dual", "warm-start-apid-paper", "warm-start-fixed"),
        *("measured-unit", "warm-start-measured-unit", "bearl", "bearl-warm-start"),
        *("masked-cpq", "masked-cpq-warm-start", "masked-cpq-more-steps", *LIMITS),
    ),
    "o2o_baselines": ("jsrl", "pex", "so2"),
}
CURVES = (  # of what is trained online, kept for every update
    *("episode_return", "episode_cost", "violated", "above_limit", "peak_temperature"),
    *("multiplier", "proportional", "integral", "derivative", "temperature"),
)
# Files that all numbers rest on; those of algos/ are what others import.
OF_PACKAGE = (
    *("reactor", "rosenbrock", "env", "rollout", "data", "controllers"),
    *("evaluate", "oracle", "viability"),
)
SHARED = ("common", "actor_critic", "multipliers")
OF_BENCHMARKS = ("worker", "conditions")
RESTS_ON = {"marvel": ("sac_lag",), "o2o_baselines": ("marvel", "sac_lag")}  # beside its base
DECIDING_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "gymnax")  # in the hash


REPOSITORY = Path(__file__).parent.parent
PACKAGE = Path(polycstr_jax.__file__).parent
CACHE = Path(os.environ.get("POLYCSTR_CACHE", REPOSITORY / ".cache")).absolute()


class Preset(NamedTuple):
    """How much of everything."""

    num_seeds: int
    seed_width: int | None  # seeds in one compiled program; 8 on CPU, 64 elsewhere if None
    scenarios: tuple[str, ...]
    datasets: tuple[str, ...]
    num_updates: int | None  # None: what the algorithm's configuration says
    methods: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (by data set; all if not named)
    # Of suite `fisor`: its variants outside start-up, where changed data are left out; None: all.
    elsewhere: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None  # of what is trained; None: all of the suite's
    without: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 (variants, by method)


SCENARIOS = tuple(polycstr_jax.SCENARIOS)
PRESETS = {
    "smoke": Preset(2, 2, ("startup",), ("pi",), 20, {"pi": (*OF_PI, "cpq", "fisor")}),
    "quick": Preset(2, 2, SCENARIOS, ("pi",), None, {"pi": OF_PI}),
    "cpu": Preset(
        8, None, SCENARIOS, data.DATASETS, None, {"pi": OF_PI, "mixed": ("bc", "iql", "fisor")}
    ),
    "full": Preset(1_000, None, SCENARIOS, data.DATASETS, None),
}


class Suite(NamedTuple):
    """What is run, and under which conditions it is evaluated."""

    presets: dict[str, Preset]
    references: tuple[str, ...]
    conditions: tuple[Condition, ...]
    find_doomed: bool  # whether states that are lost already are looked for


def presets_of(num_seeds: int, methods, smoke: str) -> dict[str, Preset]:
    """Presets that train the methods of each data set, {data set: methods}; `cpu` with so many
    seeds, `smoke` on one data set."""
    sets = tuple(methods)
    return {
        "smoke": Preset(2, 2, ("startup",), (smoke,), 20, methods),
        "quick": Preset(2, 2, SCENARIOS, sets, None, methods),
        "cpu": Preset(num_seeds, None, SCENARIOS, sets, None, methods),
        "full": Preset(1_000, None, SCENARIOS, sets, None, methods),
    }


ELSEWHERE = (
    *("default", "no-hj-2", "no-diffusion", "no-infeasible", "indicator", "safest", "n-1"),
    "limit2",  # CPQ, COptiDICE, BCQ-Lag
)
OF_MIXED = {name: ("bc", "fisor") for name in training_sets.NAMES if name != "pi"}
OF_MIXED["mixed"] = ("bc", "iql", "cpq", "coptidice", "bcql", "fisor")
FISOR_PRESETS = presets_of(8, OF_MIXED, "mixed10")
for name in ("quick", "cpu"):
    FISOR_PRESETS[name] = FISOR_PRESETS[name]._replace(elsewhere=ELSEWHERE)
MARVEL_PRESETS = presets_of(12, {"mixed": ("cpq", "bearl", *ONLINE)}, "mixed")
NOT_ON_CPU = {  # by method
    "sac_lag": ("dual", *LIMITS),
    "marvel": ("warm-start-dual", "warm-start-apid-paper", "warm-start-fixed", *LIMITS),
}
for name in ("quick", "cpu"):
    MARVEL_PRESETS[name] = MARVEL_PRESETS[name]._replace(
        scenarios=("startup",),
        seed_width=MARVEL_PRESETS[name].num_seeds,
        without=NOT_ON_CPU,
    )
MARVEL_PRESETS["smoke"] = MARVEL_PRESETS["smoke"]._replace(num_updates=2, variants=("default",))
SUITES = {
    "leaderboard": Suite(PRESETS, REFERENCES, conditions.LEADERBOARD, True),
    # The unconstrained optimum of changed plants is not known.
    "robustness": Suite(
        presets_of(8, {"pi": OF_PI, "mixed": ("fisor",)}, "pi"),
        tuple(r for r in REFERENCES if r != "unconstrained"),
        conditions.SUITE,
        False,
    ),
    "picnn": Suite(
        presets_of(16, {"pi": OF_PI}, "pi"),
        REFERENCES,
        conditions.of_starts("nominal", "wide"),
        False,
    ),
    "fisor": Suite(FISOR_PRESETS, REFERENCES, conditions.FISOR, True),
    "marvel": Suite(
        MARVEL_PRESETS,
        ("oracle", "pi_tuned"),
        conditions.of_starts("nominal", "wide", "hot"),
        False,
    ),
}


class Cell(NamedTuple):
    """One method on one scenario and data set."""

    scenario: str
    dataset: str
    method: str
    variant: str
    config: dict[str, Any]  # everything that decides the numbers; hashed
    conditions: tuple[Condition, ...] = conditions.LEADERBOARD  # under which it is evaluated
    find_doomed: bool = True  # whether states that are lost already are looked for
    algorithm_config: Any = None  # the algorithm's frozen dataclass; None for a controller
    base_config: Any = None  # of the policy that a layer wraps

    @property
    def name(self) -> str:
        return f"{self.scenario}-{self.dataset}/{self.method}@{self.variant}"

    @property
    def described(self) -> str:
        return json.dumps(self.config, sort_keys=True)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.described.encode()).hexdigest()[:16]


def plan_cells(preset: Preset, suite: str = "leaderboard") -> list[Cell]:
    """All cells of a preset, in the order in which they run."""
    width = preset.seed_width or (8 if jax.default_backend() == "cpu" else 64)
    _, references, under, find_doomed = SUITES[suite]
    common = {
        "constants": constants_hash(suite),
        "source": source_hash(),
        "versions": {name: version(name) for name in DECIDING_PACKAGES},
        "backend": backend(),
        "threads": cpu_threads(),
        "evaluation": [under, find_doomed, EVALUATION_KEY],
        "precision": precision(),
    }
    # Of a controller without training: it is run on a CPU everywhere (`worker.run_reference`).
    on_host = {"backend": "cpu", "threads": cpu_threads("cpu"), "precision": number_format()}
    cells = []
    for scenario in preset.scenarios:
        for method in references:
            seeds = NUM_RANDOM_SEEDS if method == "random" else 1
            config = {"method": method, "scenario": scenario, "seeds": seeds, **common, **on_host}
            config["data"] = data_hash("pi")
            if method.startswith("pi_tuned"):
                config["tuned"] = file_hash([PACKAGE / "tuned_pi.json"])
            cells.append(Cell(scenario, "pi", method, "default", config, under, find_doomed))
    for dataset in preset.datasets:
        offline = tuple(method for method in METHODS if method not in ONLINE)
        methods = preset.methods.get(dataset, offline)
        for scenario in preset.scenarios:
            only = preset.elsewhere if scenario != "startup" else None
            if only and dataset not in data.DATASETS:
                continue
            for method, variant, module, settings, base in plan_methods(suite, methods, dataset):
                if only and variant not in only:
                    continue
                if preset.variants and variant not in preset.variants:
                    continue
                if variant in preset.without.get(method, ()):
                    continue
                if preset.num_updates:
                    settings, base = (
                        config and dataclasses.replace(config, num_updates=preset.num_updates)
                        for config in (settings, base)
                    )
                files = [module] if base is None else [module, METHODS[settings.base][0]]
                config = {
                    "method": method,
                    "algorithm_source": algorithm_hash(files),
                    "config": dataclasses.asdict(settings),
                    "scenario": scenario,
                    "dataset": dataset,
                    "data": data_hash(dataset),
                    "seeds": preset.num_seeds,
                    "seed_width": width,
                    **common,
                }
                if base is not None:
                    config["base_config"] = dataclasses.asdict(base)
                evaluation = (under, find_doomed)
                cells.append(
                    Cell(scenario, dataset, method, variant, config, *evaluation, settings, base)
                )
    return cells


def cpu_threads(of: str | None = None) -> int | None:
    """Threads of XLA's pool, on which the order of sums depends; None on an accelerator."""
    if (of or jax.default_backend()) != "cpu":
        return None
    return max(int(os.environ["NPROC"]), jax.local_device_count(backend="cpu"))


def backend() -> str:
    """cpu, or the kind of accelerator: others round otherwise."""
    kind = jax.default_backend()
    return kind if kind == "cpu" else f"{kind} {jax.local_devices()[0].device_kind}"


def number_format() -> str:
    """float32, or float64 if JAX is told so."""
    return jnp.dtype(jnp.result_type(float)).name


def precision() -> str:
    """Of numbers and, on an accelerator that is told so, of products of matrices."""
    products = jax.config.jax_default_matmul_precision or "default"
    if jax.default_backend() == "cpu" or products in ("float32", "highest"):
        return number_format()
    return f"{number_format()} with {products} products"


def plan_methods(suite: str, methods, dataset: str):
    """(label, variant, file of algos/, configuration, the base's configuration or None).

    A layer comes right after the policy that it wraps, which is then still there.
    """
    for track in ("default", "published") if suite == "picnn" else ("default",):
        for method in methods:
            file, changes = METHODS[method]
            presets = importlib.import_module(f"algos.{file}").PRESETS
            if suite == "marvel" and method not in ONLINE:  # the policy that is handed over
                handed_over = dataclasses.replace(marvel.DEFAULT, base=method)
                yield method, "default", file, marvel.make_base(handed_over).config, None
                continue
            if file in VARIANTS:
                # On the changed data only as it is by default.
                whole = suite in ("fisor", "marvel") and dataset == "mixed"
                for variant in VARIANTS[file] if whole else ("default",):
                    too_long = variant in ON_AN_ACCELERATOR and jax.default_backend() == "cpu"
                    if not too_long:
                        settings = presets[variant]
                        around = hasattr(settings, "base")
                        base = marvel.make_base(settings).config if around else None
                        yield method, variant, file, settings, base
                continue
            settings = dataclasses.replace(presets["default"], track=track, **changes)
            if file != "picnn":
                yield method, track, file, settings, None
                continue
            base_presets = importlib.import_module(f"algos.{METHODS[settings.base][0]}").PRESETS
            base = dataclasses.replace(base_presets["default"], track=track)
            yield method, track, file, settings, base
            if suite == "picnn" and track == "default":
                for variant in presets:
                    if variant != "default":
                        other = dataclasses.replace(presets[variant], **changes)
                        yield method, variant, file, other, base


def file_hash(paths) -> str:
    """Hash of the contents of files; of Python's, of what is executed: neither comments nor
    docstrings."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        content = path.read_bytes()
        digest.update(executed(content) if path.suffix == ".py" else content)
    return digest.hexdigest()[:16]


@functools.cache
def executed(source: bytes) -> bytes:
    """A Python file without comments, docstrings and empty lines; the same in every Python."""
    lines = source.decode().splitlines()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        first = (
            node.body[0] if isinstance(getattr(node, "body", None), list) and node.body else node
        )
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines[first.lineno - 1 : first.end_lineno] = [""] * (
                first.end_lineno - first.lineno + 1
            )
    return "\n".join(line.rstrip() for line in lines if line.strip()).encode()


def algorithm_hash(files) -> str:
    """Hash of files of algos/, by name, and of those that they rest on."""
    names = [name for file in files for name in (file, *RESTS_ON.get(file, ()))]
    return file_hash(REPOSITORY / f"algos/{name}.py" for name in names)


def source_hash() -> str:
    """Hash of the code that all cells rest on: the plant, what algorithms share, how they are
    trained and evaluated. What else there is (reports, adapters, statistics) decides no cell."""
    package = (PACKAGE / f"{name}.py" for name in OF_PACKAGE)
    shared = (REPOSITORY / f"algos/{name}.py" for name in SHARED)
    ours = (REPOSITORY / f"benchmarks/{name}.py" for name in OF_BENCHMARKS)
    return file_hash([*package, *shared, *ours])


def constants_hash(suite: str) -> str:
    """Hash of the starts, score limits and optima that a suite rests on."""
    names = ("starts.npz", "score_limits.json", "oracle.npz")
    of_suite = [conditions.ROBUSTNESS, conditions.__file__] if suite == "robustness" else []
    return file_hash([*(PACKAGE / name for name in names), *of_suite])


@functools.cache
def data_hash(dataset: str) -> str:
    """Hash of the data sets' inputs and, of a changed version, of what changes them."""
    inputs = json.dumps(data.committed_checksums()["inputs"], sort_keys=True)
    if dataset not in data.DATASETS:
        inputs += file_hash([training_sets.__file__, conditions.__file__])
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]
