"""The tables of arXiv 2412.04426 on this benchmark; `benchmarks.tables marvel` calls it."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import polycstr_jax
from benchmarks.comparisons import correction, difference, interval_text
from benchmarks.figures import save
from benchmarks.plan import METHODS, ONLINE, SUITES, VARIANTS, plan_cells
from polycstr_jax import stats
from polycstr_jax.data import EPISODE_LENGTH
from polycstr_jax.env import EnvParams

COLUMNS = {
    "method": "{}",
    "variant": "{}",
    "seeds": "{:d}",
    "interactions": "{:d}",
    "gradient steps": "{:d}",
    "offline steps": "{:d}",
    "violating intervals": "{:.1f}",
    "their interval": "{}",
    "in the first 10 updates": "{:.1f}",
    "above the limit": "{:.3f}",
    "runaways": "{:.2f}",
    "mean return": "{:.0f}",
    "gap closed": "{:.1f}",
    "its interval": "{}",
    "P(violation) nominal": "{:.3f}",
    "P(violation) hot": "{:.3f}",
}
CLAIMS = (  # a question, and what is compared with what
    ("does the alignment help", ("marvel", "default"), ("marvel", "warm-start")),
    ("and with a PID", ("marvel", "pid"), ("marvel", "warm-start-pid")),
    ("more than its gradient steps do online", ("marvel", "default"), ("marvel", "more-steps")),
    ("more than fitted Q evaluation", ("marvel", "default"), ("marvel", "fqe")),
    ("with offline critics more than random", ("marvel", "default"), ("marvel", "random-critics")),
    (
        "with the measured unit of lambda",
        ("marvel", "measured-unit"),
        ("marvel", "warm-start-measured-unit"),
    ),
    ("after BEAR-Lag", ("marvel", "bearl"), ("marvel", "bearl-warm-start")),
    ("after CPQ with masked targets", *(("marvel", f"masked-cpq{x}") for x in ("", "-warm-start"))),
    (
        "and more than its gradient steps do",
        *(("marvel", f"masked-cpq{x}") for x in ("", "-more-steps")),
    ),
    ("is that CPQ better to begin with", ("marvel", "masked-cpq"), ("marvel", "default")),
    ("and than without alignment", ("marvel", "masked-cpq"), ("marvel", "more-steps")),
    ("does the symmetric aPID help, beyond a PID", ("marvel", "default"), ("marvel", "pid")),
    ("does the paper's aPID", ("marvel", "apid-paper"), ("marvel", "pid")),
    ("does the PID, beyond dual ascent", ("marvel", "pid"), ("marvel", "dual")),
    ("the symmetric aPID beyond a constant", ("marvel", "default"), ("marvel", "fixed")),
    ("a PID that begins at that constant", ("marvel", "pid-head-start"), ("marvel", "pid")),
    ("than that constant", ("marvel", "pid-head-start"), ("marvel", "fixed")),
    ("beyond a PID, without the alignment", ("marvel", "warm-start"), ("marvel", "warm-start-pid")),
    ("beyond a PID from scratch", ("sac_lag", "apid"), ("sac_lag", "default")),
    ("is Marvel better than from scratch", ("marvel", "default"), ("sac_lag", "more-steps")),
    ("and without the alignment", ("marvel", "more-steps"), ("sac_lag", "more-steps")),
    ("than JSRL", ("marvel", "default"), ("o2o", "jsrl")),
    ("than PEX", ("marvel", "default"), ("o2o", "pex")),
    ("than SO2", ("marvel", "default"), ("o2o", "so2")),
)
HEADER = (
    "Training in the environment after CPQ on the `mixed` data, or from scratch (`sac_lag`). In "
    "training: the violating intervals of all episodes, the share of episodes above the cost "
    "limit, episodes that ran away, and the mean return of an episode, means over seeds. After "
    "it, of the policy's mean action on the evaluation starts: gap closed (nominal starts, IQM), "
    "and P(violation), of hot starts those that can be saved. Intervals: bootstrap over seeds, "
    "95 %. Gradient steps are the alignment's and those online; offline steps those of CPQ or "
    "BEAR-Lag before, on 100,000 transitions. Settings: every rule's gains were chosen among four "
    "sizes on the tune starts, with the alignment (a PID's from scratch, too); the arms without "
    "the alignment and the baselines have these, untuned for themselves. The rows of CPQ and "
    "BEAR-Lag are the policies that are handed over; `pi_tuned` is a PI controller, tuned with the "
    "simulator."
)


def read_curves(folder: Path, whole=None) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Curves of the finished cells of a folder by (scenario, method, variant), of those in `whole`
    if it is given."""
    found = {}
    for path in sorted(folder.glob("*/*.curves.csv")):
        arm = arm_of(path)
        if description_of(path).exists() and (whole is None or arm in whole):
            found[arm] = read_curve(path)
    return found


def arm_of(path: Path) -> tuple[str, ...]:
    """Scenario, method and variant of a file `<cell>.curves.csv`."""
    return path.parent.name.split("-")[0], *description_of(path).stem.split("@")


def description_of(path: Path) -> Path:
    """Of a file `<cell>.curves.csv`, the .json that declares the cell finished."""
    return path.with_name(path.name.replace(".curves.csv", ".json"))


def read_curve(path: Path) -> pd.DataFrame:
    """A row a seed and update; the algorithm's settings as `attrs`."""
    curves = pd.read_csv(path)
    cell = json.loads(description_of(path).read_text())["config"]
    offline = cell.get("base_config", {}).get("num_updates", 0)
    curves.attrs = cell["config"] | {"offline_steps": offline}
    return curves


def training_of(curves: pd.DataFrame) -> pd.DataFrame:
    """Of each seed: violating intervals, also in the first ten updates, share of episodes above the
    limit, updates whose episodes ran away, return."""
    episodes = curves.attrs["num_episodes"]
    by_seed = curves.groupby("seed")
    early = curves[curves["update"] < 10]
    hot = curves["peak_temperature"] > EnvParams().runaway_temperature
    return pd.DataFrame(
        {
            "violating intervals": episodes * by_seed["episode_cost"].sum(),
            "in the first 10 updates": episodes * early.groupby("seed")["episode_cost"].sum(),
            "above the limit": by_seed["above_limit"].mean(),
            "runaways": hot.groupby(curves["seed"]).sum(),
            "mean return": by_seed["episode_return"].mean(),
        }
    )


def table(results: pd.DataFrame, curves) -> pd.DataFrame:
    """One row a scenario, method and variant, in the order in which they are planned."""
    rows = []
    before = ("oracle", "pi_tuned", "cpq", "bearl")
    order = [(method, "default") for method in before]
    order += [(method, variant) for method in ONLINE for variant in VARIANTS[METHODS[method][0]]]
    for scenario in polycstr_jax.SCENARIOS:
        for method, variant in order:
            cell = results[
                (results.scenario == scenario)
                & (results.method == method)
                & (results.variant == variant)
            ]
            if not len(cell):
                continue
            nominal, hot = (cell[cell.starts == kind] for kind in ("nominal", "hot"))
            gap = stats.seed_bootstrap(nominal["gap_closed"].to_numpy())
            row = {
                "scenario": scenario,
                "method": method,
                "variant": variant,
                "seeds": len(nominal),
                "interactions": 0,
                "gradient steps": 0,
                "offline steps": 0,
                "gap closed": gap.value,
                "its interval": interval_text(gap),
                "P(violation) nominal": nominal["violated"].mean(),
                "P(violation) hot": hot["violated"].mean(),
            }
            found = curves.get((scenario, method, variant))
            if found is not None:
                of_seeds, config = training_of(found), found.attrs
                total = stats.seed_bootstrap(of_seeds["violating intervals"].to_numpy(), np.mean)
                updates = config["num_updates"]
                aligned = config.get("align", "none") != "none"
                row |= of_seeds.mean().to_dict()
                row |= {
                    "their interval": interval_text(total),
                    "interactions": updates * config["num_episodes"] * EPISODE_LENGTH,
                    "offline steps": config["offline_steps"],
                    "gradient steps": updates * config["gradient_steps"]
                    + (config["vpa_updates"] if aligned else 0),
                }
            rows.append(row)
    found = pd.DataFrame(rows)
    return found.reindex(columns=["scenario", *COLUMNS])


COMPARED = ("violating intervals", "mean return", "gap closed")


def handed_over(settings: dict) -> tuple:
    """Which offline policy an arm begins with; results from before it could be chosen have its
    file's default."""
    return settings.get("base"), settings.get("base_preset", "default")


def claims(results: pd.DataFrame, curves) -> pd.DataFrame:
    """Differences of means over seeds, the first arm less the second, with 95 % intervals: of
    violating intervals in training (below 0 is better), of the mean return in training and of the
    gap closed afterwards (above 0 is better). Arms around the same offline policy share it, and the
    starts of their episodes, seed by seed, so that seeds are resampled in pairs; else each for
    itself. `apart`: which of the intervals leave out 0; `apart, corrected`: which still do where
    all of the table are to hold together."""
    pairs = list(compared_arms(results, curves))
    judged = len(COMPARED) * sum(
        min(len(first), len(second)) >= stats.MIN_SEEDS for *_, first, second in pairs
    )
    rows = []
    for scenario, question, arms, paired, first, second in pairs:
        plain, corrected = (
            {name: difference(first[name], second[name], paired, m) for name in COMPARED}
            for m in (1, judged)
        )
        rows.append(
            {
                "scenario": scenario,
                "question": question,
                "arms": arms,
                **{name: f"{x.value:+.1f} {interval_text(x)}" for name, x in plain.items()},
                "apart": apart(plain),
                "apart, corrected": apart(corrected),
            }
        )
    found = pd.DataFrame(rows)
    found.attrs["comparisons"] = judged
    return found


def compared_arms(results: pd.DataFrame, curves):
    """(scenario, question, both arms' names, whether paired, a table a seed of either)."""
    nominal = results[results.starts == "nominal"]
    for scenario in polycstr_jax.SCENARIOS:
        gaps = {
            key: cell.set_index("seed")["gap_closed"]
            for key, cell in nominal[nominal.scenario == scenario].groupby(["method", "variant"])
        }
        for question, *arms in CLAIMS:
            both = [curves.get((scenario, *arm)) for arm in arms]
            if any(found is None for found in both) or not {*arms} <= set(gaps):
                continue
            paired = handed_over(both[0].attrs) == handed_over(both[1].attrs)
            of_seeds = [
                training_of(found).assign(**{"gap closed": gaps[arm]})
                for found, arm in zip(both, arms, strict=True)
            ]
            yield scenario, question, " - ".join("@".join(arm) for arm in arms), paired, *of_seeds


def apart(differences: dict[str, stats.Interval]) -> str:
    """Names of the differences whose intervals leave out 0."""
    return ", ".join(n for n, x in differences.items() if x.low > 0.0 or x.high < 0.0) or "-"


def missing(results: pd.DataFrame) -> list[str]:
    """Arms of the full size that the results lack, a scenario each, `method@variant, ...`."""
    keys = ["scenario", "method", "variant"]
    there = set(results[keys].itertuples(index=False, name=None))
    absent: dict[str, list[str]] = {}
    planned: dict[str, int] = {}
    for cell in plan_cells(SUITES["marvel"].presets["full"], "marvel"):
        if cell.algorithm_config is None:
            continue
        planned[cell.scenario] = planned.get(cell.scenario, 0) + 1
        if (cell.scenario, cell.method, cell.variant) not in there:
            absent.setdefault(cell.scenario, []).append(f"{cell.method}@{cell.variant}")
    return [
        f"{scenario}: {'all' if len(arms) == planned[scenario] else ', '.join(arms)}"
        for scenario, arms in absent.items()
    ]


def markdown(found: pd.DataFrame, compared: pd.DataFrame, text: str, to_table) -> str:
    """The tables as Markdown; `to_table(rows, columns)` writes one."""
    parts = ["# Tables of arXiv 2412.04426", text]
    for scenario, rows in found.groupby("scenario", sort=False):
        parts += [f"## {scenario}", to_table(rows, COLUMNS)]
    if len(compared):
        parts += ["## What helps", " ".join(claims.__doc__.split())]
        parts += filter(None, [correction(compared.attrs["comparisons"])])
        parts.append(to_table(compared, {name: "{}" for name in compared.columns}))
    return "\n\n".join(parts) + "\n"


DRAWN = {  # arm -> colour, line
    ("sac_lag", "default"): ("0.4", ":"),
    ("marvel", "warm-start"): ("#d97706", "-"),
    ("marvel", "default"): ("#1f5fa8", "-"),
    ("marvel", "fixed"): ("#b3261e", "-"),
    ("o2o", "jsrl"): ("#15803d", "-"),
    ("o2o", "pex"): ("#15803d", "--"),
    ("o2o", "so2"): ("#15803d", ":"),
}


def smoothed(curves: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Interactions (N,), and of a column, ten updates together, the quartiles over seeds (3, N)."""
    # Single episodes begin anywhere.
    groups = curves.assign(update=curves["update"] // 10).groupby(["seed", "update"])[name]
    of_seeds = groups.mean().unstack()
    per_update = curves.attrs["num_episodes"] * EPISODE_LENGTH
    at = (of_seeds.columns.to_numpy() * 10 + 5) * per_update
    return at, np.quantile(of_seeds.to_numpy(), (0.25, 0.5, 0.75), axis=0)


def figure(curves, scenario: str, path: Path) -> None:
    """Return and cost of the training episodes, ten together, against interactions: median over
    seeds, and their middle half."""
    fig, axes = plt.subplots(2, 1, figsize=(9.0, 8.0), sharex=True, layout="constrained")
    for (method, variant), (colour, line) in DRAWN.items():
        found = curves.get((scenario, method, variant))
        if found is None:
            continue
        for axis, name in zip(axes, ("episode_return", "episode_cost"), strict=True):
            at, (low, middle, high) = smoothed(found, name)
            if name == "episode_return":  # a logarithm wants it positive
                low, middle, high = -high, -middle, -low
            axis.plot(
                at, middle, color=colour, linestyle=line, marker=".", label=f"{method}@{variant}"
            )
            axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0.0)
    axes[0].set(yscale="log", ylabel="-return of an episode", title=f"{scenario}: in training")
    axes[1].set(
        yscale="symlog", ylabel="violating intervals", xlabel="interactions", ylim=(0, None)
    )
    limit = next(iter(curves.values())).attrs["cost_limits"][0]
    axes[1].axhline(limit, color="0.2", linewidth=0.8)
    axes[0].legend(fontsize=7)
    save(fig, path)
