"""Performance profiles of the leaderboard: the share of seeds whose score exceeds a threshold."""

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import polycstr_jax
from benchmarks.figures import BLUE, RED, save
from polycstr_jax import stats

THRESHOLDS = np.linspace(-50.0, 140.0, 191)  # of the score
LINES = {"pi": "-", "mixed": "--"}  # by data set
COLOURS = {"bc": "#d97706", "bc+": "#92400e", "iql": BLUE, "iql+": "#0f766e", "fisor": RED}
OTHERS = ("#15803d", "#7c3aed", "#be185d", "0.4")
GOAL = "pi_tuned"  # a vertical line


def cells_of(results: pd.DataFrame, references) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Scores from nominal starts of what is trained, by (method, data set), then scenario."""
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    chosen = results[
        (results.starts == "nominal")
        & (results.variant == "default")
        & ~results.method.isin(references)
    ]
    for (method, dataset, scenario), cell in chosen.groupby(["method", "dataset", "scenario"]):
        found.setdefault((method, dataset), {})[scenario] = cell["score"].to_numpy()
    return found


def figure(results: pd.DataFrame, references, path) -> None:
    """A panel a scenario, and one of all of them together, which count alike."""
    cells = cells_of(results, references)
    scenarios = [s for s in polycstr_jax.SCENARIOS if s in set(results.scenario)]
    panels = {s: [s] for s in scenarios}
    if len(scenarios) > 1:
        panels["all scenarios"] = scenarios
    fig, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.4), sharey=True, squeeze=False
    )
    others = sorted({method for method, _ in cells} - set(COLOURS))
    colours = COLOURS | {m: OTHERS[i % len(OTHERS)] for i, m in enumerate(others)}
    for axis, (title, members) in zip(axes[0], panels.items(), strict=True):
        for (method, dataset), scores in cells.items():
            if not set(members) <= set(scores):
                continue
            profile = stats.performance_profile([scores[s] for s in members], THRESHOLDS)
            colour, line = colours[method], LINES.get(dataset, ":")
            label = f"{method}, {dataset}"
            axis.plot(THRESHOLDS, profile.value, color=colour, linestyle=line, label=label)
            axis.fill_between(
                THRESHOLDS, profile.low, profile.high, color=colour, alpha=0.12, linewidth=0.0
            )
        goal = results[
            (results.starts == "nominal") & (results.method == GOAL) & (results.scenario == title)
        ]
        if len(goal):
            axis.axvline(goal["score"].iloc[0], color="0.2", linewidth=0.8, label=GOAL)
        axis.set(title=title, xlabel="score", xlim=(THRESHOLDS[0], THRESHOLDS[-1]))
        axis.grid(alpha=0.25)
    axes[0, 0].set(ylabel="share of seeds with a higher score", ylim=(-0.02, 1.02))
    fig.subplots_adjust(left=0.06, right=0.99, top=0.92, bottom=0.25, wspace=0.06)
    labels = {}
    for axis in axes[0]:
        labels |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    if labels:
        fig.legend(labels.values(), labels.keys(), loc="lower center", ncols=8, fontsize=8)
    save(fig, path)
