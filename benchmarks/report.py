"""Write a results folder as one HTML page that needs nothing else.

    python -m benchmarks.report [--results results] [--preset NAME] [--out report.html]

Leaderboard, the tables of the papers, learning curves, trajectories, slices of the feasible set,
the worst seeds, and where all of it comes from. Same results, same bytes; no network.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pandas as pd
import tyro

from benchmarks import fisor_tables, marvel_tables, plan, report_data, report_figures, tables
from benchmarks.comparisons import correction
from benchmarks.report_data import SUITES, UNREADABLE
from benchmarks.report_html import escape, figure, figures, note, picker, prose, section, table
from benchmarks.results import PRESETS, check_known, presets_there
from polycstr_jax.data import check_writable, write_atomically
from polycstr_jax.env import scenario_params
from polycstr_jax.pipes import end_with_the_reader

TEMPLATE = Path(__file__).with_name("report.html")
NUM_WORST = 3  # seeds of a method

FIRST_COLUMNS = (  # of the leaderboard; the others can be asked for
    *("method", "data", "seeds", "gap closed", "P(violation)", "P(runaway)", "score IQM"),
    *("worst seed", "violation steps", "peak K"),
)
PATTERNS = {  # column of the leaderboard -> how it is written, if not with two decimals
    **dict.fromkeys(("method", "data"), "{}"),
    **dict.fromkeys(("seeds", "of starts", "scenarios"), "{:d}"),
    **dict.fromkeys(("gap closed", "gap closed, median", "score IQM", "score mean"), "{:.1f}"),
    **dict.fromkeys(("score median", "score CVaR 5 %", "worst seed", "worst start"), "{:.1f}"),
    **dict.fromkeys(("settling h", "first doomed h", "lead h", "peak K"), "{:.1f}"),
    **dict.fromkeys(("P(violation)", "P(runaway)"), "{:.3f}"),
    **dict.fromkeys(("doomed while live", "solver failures"), "{:.4f}"),
    **dict.fromkeys(("excess over oracle", "excess over unconstrained"), "{:.5f}"),
    "return mean": "{:.0f}",
    "offset P kg/m3": "{:+.2f}",
    "offset T K": "{:+.2f}",
}
NOT_METRICS = ("scenario", "start group", "variant", "starts", "95 % interval")
MEANINGS = {
    "gap closed": "per cent of the way from the open-loop step (0) to the oracle (100), from the "
    "same start; mean over starts and seeds",
    "gap closed, median": "median over seeds of the median over starts",
    "of starts": "starts from which an optimum is known, behind the gap closed",
    "score": "linear in the return; 0 and 100 are the 10th and 99th percentile of random-gain PI "
    "control: IQM (mean of the middle half of the seeds), mean, median",
    "score CVaR 5 %": "mean of the worst 5 % of the seeds, at least one",
    "worst seed, worst start": "least score of a seed (mean over its starts), of an episode",
    "P(violation), P(runaway)": "share of the episodes that exceed the limit, that run away",
    "P(seed has a violation)": "share of the seeds with a violation from any of their starts",
    "violation steps": "intervals of an episode whose peak temperature exceeds the limit",
    "normalised cost L": "(C + e) / (L + e) for C violating intervals an episode; safe at most 1; "
    "e is 1 for L = 0, else 0",
    "peak K": "highest temperature within any interval of any episode",
    "offset P, offset T": "mean deviation from the set-point over the last 10 % of an episode",
    "settling h": "until within 2 kg/m3 and 0.5 K for good; the whole episode if never",
    "IAE": "integral of the absolute set-point error over an episode",
    "input movement": "sum of the moves of both inputs, in units of the largest allowed",
    "doomed while live, first doomed h, lead h": "share of the intervals before the first "
    "violation that nobody could have saved; when the first began; from there to the violation",
    "excess over oracle, unconstrained": "largest relative saving against these optima; above "
    f"{tables.TOLERANCES['excess_over_oracle']:g} and "
    f"{tables.TOLERANCES['excess_over_unconstrained']:g} the optimum was not one",
    "P(improvement over BC)": "probability that a seed has a better score than one of BC's",
}


@dataclasses.dataclass
class Args:
    """Write the report of a results folder: one HTML page that needs nothing else, no network.

    It has the leaderboard, the tables of the papers, learning curves, trajectories, slices of the
    feasible set, the worst seeds, and where all of it comes from. Suites that are not there are
    named, damaged cells too. Same results, same bytes. Exit codes: 0, written; 1 or 2, not, and
    stderr says why.
    """

    results: Path = Path("results")  # folder with <preset>/<suite>
    preset: str | None = None  # that with the most cells if not given
    out: Path = Path("report.html")  # the page
    force: bool = False  # show results of mixed versions; the page says so


# --- Sections ---


def not_there(suite: str, preset: str) -> str:
    command = f"python -m benchmarks.run --preset {preset} --suite {suite}"
    return prose(f"Not run: nothing of suite {suite} is there; `{command}`.")


def board_section(results: pd.DataFrame | None, preset: str) -> str:
    """The leaderboard: a table a scenario and group of starts."""
    if results is None:
        return section("leaderboard", "Leaderboard", not_there("leaderboard", preset))
    board, together = tables.leaderboard(results), tables.aggregate(results)
    choices = []
    for (scenario, group), rows in board.groupby(["scenario", "start group"], sort=False):
        name = f"{scenario}, {group} starts"
        choices.append((name, board_table(rows, f"{name} ({rows['starts'].iloc[0]} a seed)")))
    for group, rows in together.groupby("start group", sort=False) if len(together) else ():
        name = f"all scenarios, {group} starts"
        choices.append((name, board_table(rows, name)))
    datasets = "".join(f"<option>{escape(x)}</option>" for x in sorted(set(board.data) - {"-"}))
    controls = (
        '<p class="controls"><label>method <input type="search" name="method" size="12"></label>'
        f'<label>data <select name="data"><option value="">all</option>{datasets}</select></label>'
        '<label><input type="checkbox" name="references" checked>controllers without training'
        '</label><label><input type="checkbox" name="columns">all columns</label>'
        '<output aria-live="polite"></output></p>'
    )
    told = note(
        "Shaded and in italics: controllers without training. In brackets: 95 % intervals over "
        "seeds. A column's head sorts by its value; what is not known comes last."
    )
    content = f"<div data-board>{controls}{picker('table', choices)}</div>"
    return section("leaderboard", "Leaderboard", prose(tables.rules()), told, content)


def board_table(rows: pd.DataFrame, caption: str) -> str:
    """The rows of a scenario and group of starts; of most columns it is asked for first."""
    names = [name for name in rows.columns if not name.endswith((" low", " high"))]
    others = [name for name in names if name not in (*FIRST_COLUMNS, *NOT_METRICS)]
    columns = [name for name in (*FIRST_COLUMNS, *others) if name in names]
    patterns = {name: PATTERNS.get(name, "{:.2f}") for name in columns}
    return table(rows.to_dict("records"), patterns, caption, extra=others, keys=True)


def papers_section(suites: dict[str, pd.DataFrame], curves, preset: str) -> str:
    """The tables of the three papers, with their numbers where they have any that compare."""
    papers = {
        "picnn": ("PICNN, arXiv 2507.22640", picnn_paper),
        "fisor": ("FISOR, arXiv 2401.10700", fisor_paper),
        "marvel": ("Marvel, arXiv 2412.04426", lambda results: marvel_paper(results, curves)),
    }
    parts = []
    for suite, (title, write) in papers.items():
        there = suite in suites
        parts.append(f"<h3>{title}</h3>")
        parts.append(write(suites[suite]) if there else not_there(suite, preset))
    return section("papers", "Tables of the papers", *parts)


def picnn_paper(results: pd.DataFrame) -> str:
    results = results[results.starts.isin(tables.PICNN_GROUPS)]
    claims = tables.orderings(results)
    columns = {n: "{:.1f}" if n.endswith("of the difference") else "{}" for n in claims.columns}
    return (
        prose(tables.PICNN_HEADER)
        + by_group(tables.picnn_tables(results), "start group", tables.PICNN_COLUMNS)
        + compared(claims, {"claim": "{}"} | columns, "Orderings", tables.orderings.__doc__)
    )


def fisor_paper(results: pd.DataFrame) -> str:
    claims, paper = fisor_tables.claims(results), fisor_tables.paper_table()
    signed = dict.fromkeys(("P(violation)", "mean reward"), "{:+.3f}")
    columns = {"against": "{}"} | dict.fromkeys(claims.columns, "{}") | signed
    in_paper = {"task": "{}", "suite": "{}"} | dict.fromkeys(paper.columns[2:], "{:.2f}")
    return (
        prose(fisor_tables.HEADER)
        + not_run(fisor_tables.missing(results))
        + by_group(fisor_tables.table(results, plan.REFERENCES), "condition", fisor_tables.COLUMNS)
        + compared(claims, columns, "FISOR minus the others", fisor_tables.claims.__doc__)
        + prose("The paper's own numbers are of other tasks: none can be compared with ours.")
        + table(
            paper.to_dict("records"),
            in_paper,
            "The paper's Table 1: normalised reward and cost (at most 1 is safe) of DSRL's tasks",
        )
    )


def marvel_paper(results: pd.DataFrame, curves) -> str:
    claims = marvel_tables.claims(results, curves)
    columns = {"question": "{}"} | dict.fromkeys(claims.columns, "{}")
    return (
        prose(marvel_tables.HEADER)
        + not_run(marvel_tables.missing(results))
        + prose(
            "The paper shows curves of other tasks, and no table of what came of them: there is no "
            "number of its to put beside these."
        )
        + by_group(marvel_tables.table(results, curves), None, marvel_tables.COLUMNS)
        + compared(claims, columns, "What helps", marvel_tables.claims.__doc__)
    )


def by_group(found: pd.DataFrame, group: str | None, columns: dict[str, str]) -> str:
    """A table a scenario and group, one of which is shown."""
    if not len(found):
        return "<p>Not run.</p>"
    contents = []
    for names, rows in found.groupby(["scenario", *([group] if group else [])], sort=False):
        name = ", ".join(names) + (" starts" if group == "start group" else "")
        contents.append((name, table(rows.to_dict("records"), columns, name, keys=True)))
    return picker("table", contents)


def compared(claims: pd.DataFrame, columns: dict[str, str], caption: str, text: str) -> str:
    if not len(claims):
        return ""
    told = [" ".join(text.split()), correction(claims.attrs["comparisons"])]
    return table(claims.to_dict("records"), columns, caption) + prose("\n\n".join(told))


def not_run(absent: list[str]) -> str:
    return prose(f"Not run: {'; '.join(absent)}.") if absent else ""


def curves_section(curves, preset: str) -> str:
    """What happened while training in the environment."""
    title = "Learning curves"
    if not curves:
        return section("curves", title, not_there("marvel", preset))
    parts = [note("Ten updates together: median over seeds, and their middle half as a band.")]
    for scenario in dict.fromkeys(key[0] for key in curves):
        arms = [(key[1:], found) for key, found in curves.items() if key[0] == scenario]
        arms.sort(key=lambda arm: arm[0] not in marvel_tables.DRAWN)
        (limit, *_) = arms[0][1].attrs["cost_limits"]
        drawn = []
        for name, label, at, text in (
            ("episode_return", "minus return, thousands", None, "lower is better"),
            ("episode_cost", "violating intervals", limit, f"cost limit {limit:g}"),
        ):
            told = f"{scenario}, training: {label} against interactions"
            svg = report_figures.learning(arms, name, label, at, told)
            drawn.append(figure(svg, told, f"<b>{escape(label)}</b>, an episode; {escape(text)}"))
        content = legend([arm for arm, _ in arms]) + figures(drawn, "wide")
        parts.append(f"<div data-curves><h3>{escape(scenario)}</h3>{content}</div>")
    return section("curves", title, *parts)


def legend(arms: list[tuple[str, str]]) -> str:
    """Boxes that show and hide the curves of arms; most of them behind a fold."""

    def box(number: int, arm: tuple[str, str]) -> str:
        checked = " checked" if arm in marvel_tables.DRAWN else ""
        line = report_figures.key(*report_figures.line_of(*arm))
        return (
            f'<li><label><input type="checkbox" data-toggle="{number}"{checked}>{line}'
            f"{escape('@'.join(arm))}</label></li>"
        )

    boxes = [box(number, arm) for number, arm in enumerate(arms)]
    count = sum(arm in marvel_tables.DRAWN for arm in arms)
    shown, more = "".join(boxes[:count]), "".join(boxes[count:])
    folded = f'<details><summary>{len(boxes) - count} more arms</summary><ul class="legend">{more}'
    folded = f"{folded}</ul></details>" if more else ""
    return f'<ul class="legend">{shown}</ul>{folded}'


def trajectories_section(cells: list[dict], preset: str) -> str:
    """Bands over nominal starts and seeds."""
    title = "Trajectories"
    if not cells:
        command = f"python -m benchmarks.run --preset {preset} --suite leaderboard --trajectories"
        text = f"None are beside these results; `{command}` writes them."
        return section("trajectories", title, prose(text))
    drawn: dict[str, list[str]] = {}
    for cell in cells:
        name, colour, params = drawn_as(cell)
        label = f"{cell['scenario']}: trajectories of {name}, data {cell['dataset']}"
        svg = report_figures.bands(cell["quantiles"], params, colour, label)
        data = "" if cell["method"] in plan.REFERENCES else f", data {escape(cell['dataset'])}"
        caption = f"<b>{escape(name)}</b>{data}"
        drawn.setdefault(cell["scenario"], []).append(figure(svg, label, caption))
    told = note(
        "Over all nominal starts and at most 64 seeds: median, middle half, and 5 to 95 % at each "
        "time. Inputs are held over an interval; the peak is the highest temperature within it."
    )
    choices = [(scenario, figures(parts)) for scenario, parts in drawn.items()]
    return section("trajectories", title, told, picker("scenario", choices))


def drawn_as(cell: dict):
    """Name, colour and environment's parameters of a cell."""
    name = label_of(cell["method"], cell["variant"])
    colour, _ = report_figures.line_of(cell["method"], cell["variant"])
    return name, colour, scenario_params(cell["scenario"])


def label_of(method: str, variant: str) -> str:
    return method if variant == "default" else f"{method}@{variant}"


def feasible_section(path: Path, warn) -> str:
    """Slices of the feasible set."""
    title = "Feasible region"
    if not path.exists():
        text = "Not there; `python -m benchmarks.ground_truth --only slices` computes it."
        return section("feasible", title, prose(text))
    try:
        arrays = report_data.read_arrays(path)
        controls = [x.removeprefix("controls_") for x in arrays if x.startswith("controls_")]
        planes = dict.fromkeys(x.split("_")[1] for x in arrays if x.startswith("peak_"))
        inputs = "".join(
            f"<li>{report_figures.key(*report_figures.control_line(number))}{escape(name)}: "
            "{:.3g} kg/h, {:.4g} K</li>".format(*arrays[f"controls_{name}"])
            for number, name in enumerate(controls)
        )
        drawn = []
        for plane in planes:
            label = f"feasible set over {plane} concentration and temperature"
            svg = report_figures.feasible(arrays, plane, controls, label)
            drawn.append(figure(svg, label, f"<b>{escape(plane)}</b> and temperature"))
    except (*UNREADABLE, IndexError, TypeError) as error:
        text = report_data.one_line(error, path.parent)
        warn(f"{path.parent.name}/{path.name} is left out: {text}")
        return section("feasible", title, "<p>Its file cannot be read.</p>")
    told = note(
        "At or below its line a state is feasible: lowering feed and coolant as fast as allowed "
        "keeps the limit. Above it nothing known does. A line for each of the inputs in force; "
        "green: feasible with all of them. All else at the steady state of 100 kg/m³, radicals in "
        "balance."
    )
    content = f'<ul class="legend">{inputs}</ul>{figures(drawn)}'
    return section("feasible", title, told, content)


WORST = {  # column of the table -> of the results, and how it is written
    "trained method": ("label", "{}"),
    "data": ("dataset", "{}"),
    "seed": ("seed", "{:d}"),
    "score": ("score", "{:.1f}"),
    "worst episode": ("worst_score", "{:.1f}"),
    "P(violation)": ("violated", "{:.3f}"),
    "P(runaway)": ("runaway", "{:.3f}"),
    "hottest peak K": ("max_peak_temperature", "{:.1f}"),
}


def worst_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """The seeds of least score of each trained cell and group of starts, the worst first."""
    trained = results[~results.method.isin(plan.REFERENCES)]
    cell = ["scenario", "starts", "method", "variant", "dataset"]
    ordered = trained.sort_values([*cell, "score", "seed"])
    found = ordered.groupby(cell, sort=False).head(NUM_WORST)
    labels = [label_of(*arm) for arm in zip(found.method, found.variant, strict=True)]
    found = found.assign(label=labels)
    return found.rename(columns={old: new for new, (old, _) in WORST.items()})


def failures_section(suites: dict[str, pd.DataFrame], cells: list[dict]) -> str:
    """The worst seeds, and what their worst episodes looked like."""
    shown = [worst_seeds(suites[name]) for name in ("leaderboard", "marvel") if name in suites]
    worst = pd.concat(shown, ignore_index=True) if shown else pd.DataFrame()
    choices, patterns = [], {name: pattern for name, (_, pattern) in WORST.items()}
    for scenario in plan.SCENARIOS if len(worst) else ():
        for group in tables.GROUPS:
            rows = worst[(worst.scenario == scenario) & (worst.starts == group)]
            if len(rows):
                name = f"{scenario}, {group} starts"
                content = table(rows.to_dict("records"), patterns, name, keys=True)
                choices.append((name, content))
    drawn: dict[str, list[str]] = {}
    for cell in cells:
        if cell["method"] not in plan.REFERENCES and len(cell["worst"]):
            content = worst_episodes(cell)
            drawn.setdefault(cell["scenario"], []).append(content)
    episodes = picker("scenario", [(name, figures(parts)) for name, parts in drawn.items()])
    return section(
        "failures",
        "Failures",
        note(f"Of each trained method the {NUM_WORST} seeds of least score."),
        picker("table", choices) if choices else "<p>No trained method has results.</p>",
        f"<h3>Worst episodes, from nominal starts</h3>{episodes}" if drawn else "",
    )


def worst_episodes(cell: dict) -> str:
    """The figure of a cell's worst episodes, one a seed."""
    name, colour, params = drawn_as(cell)
    label = f"{cell['scenario']}: worst episodes of {name}, data {cell['dataset']}"
    svg = report_figures.episodes(cell["worst"], params, colour, label)
    columns = (cell[f"worst_{name}"] for name in ("seed", "start", "score"))
    told = [
        f"{line}: seed {int(seed)}, start {int(start)}, score {score:,.0f}"
        for line, seed, start, score in zip(report_figures.WORST_LINES, *columns, strict=False)
    ]
    data = escape(cell["dataset"])
    return figure(svg, label, f"<b>{escape(name)}</b>, data {data}; {'; '.join(told)}")


def provenance_section(folder: Path, suites: dict[str, pd.DataFrame], preset: str) -> str:
    """Where the numbers come from, and what they mean."""
    made = {suite: provenance_of(folder / suite, found) for suite, found in suites.items()}
    facts = next(iter(made.values()))
    rows = [{"suite": fact} | {suite: of[fact] for suite, of in made.items()} for fact in facts]
    others = sorted(x.name for x in folder.iterdir() if x.is_dir() and x.name not in SUITES)
    notes = (
        f"There, too, and not on this page: suite {name}; `python -m benchmarks.tables {name}`."
        for name in others
    )
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in MEANINGS.items())
    text = ""
    if "leaderboard" in suites:
        text = tables.header(suites["leaderboard"], preset).removeprefix(tables.rules())
    columns = dict.fromkeys(("suite", *made), "{}")
    return section(
        "provenance",
        "Provenance",
        table(rows, columns, f"Preset {preset}", sortable=False),
        *(prose(text) for text in notes),
        f'<h3>What the columns mean</h3><dl class="metrics">{terms}</dl>{prose(text)}',
    )


def provenance_of(folder: Path, results: pd.DataFrame) -> dict[str, str]:
    """Of one suite what its cells' descriptions say, each thing once."""
    cells = results.groupby(["scenario", "dataset", "method", "variant"])["seed"].nunique()
    made = [
        json.loads((folder / f"{scenario}-{dataset}" / f"{method}@{variant}.json").read_text())
        for scenario, dataset, method, variant in cells.index
    ]
    seconds = sum(sum(info.get("wall_time_s", {}).values()) for info in made)

    def each(values) -> str:
        return ", ".join(sorted({str(x) for x in values if x is not None}))

    return {
        "cells": f"{len(made):,}",
        "rows": f"{len(results):,}",
        "seeds a cell": " to ".join(map(str, sorted({cells.min(), cells.max()}))),
        "starts": each(results.starts),
        "dates": " to ".join(sorted({results.date.min(), results.date.max()})),
        "wall time": f"{seconds / 3600.0:.2f} h",
        "hardware": "; ".join(sorted(results.hardware.unique())),
        "backend": each(info["config"].get("backend") for info in made),
        "precision": each(info["config"].get("precision") for info in made),
        "commits": each(results.commit),
        "code (hash)": each(info["config"].get("source") for info in made),
        "versions": each(f"{name} {x}" for info in made for name, x in info["versions"].items()),
    }


# --- The page ---


def build(results: Path, preset: str, force: bool = False) -> tuple[bytes, list[str]]:
    """The page, and what was wrong with the results.

    Raises `ValueError` if nothing can be read and, unless `force`, for mixed versions.
    """
    folder, warnings = results / preset, []
    suites = report_data.read_suites(folder, warnings.append)
    if not suites:
        raise ValueError("\n".join(warnings))
    mixed = {suite: found.attrs["mixed"] for suite, found in suites.items() if found.attrs["mixed"]}
    for suite, lines in mixed.items():
        warnings.append(f"Suite {suite} mixes versions: {' | '.join(lines)}.")
    if mixed and not force:
        raise ValueError("\n".join([*warnings, "--force shows them as they are."]))
    for suite, found in suites.items():
        if tables.beats_an_optimum(found):
            warnings.append(f"Suite {suite}: {tables.BEATEN}; see its columns excess over.")
        if found.solver_failed.any():
            warnings.append(f"Suite {suite}: the solver failed; see its column solver failures.")
    if preset == "smoke":
        warnings.append("Smoke test: trained for a few updates only; the numbers mean nothing.")
    curves = {}
    if "marvel" in suites:
        curves = report_data.read_curves(folder / "marvel", suites["marvel"], warnings.append)
    cells = report_data.read_trajectories(folder, suites, warnings.append)
    with report_figures.drawing():
        sections = [
            board_section(suites.get("leaderboard"), preset),
            papers_section(suites, curves, preset),
            curves_section(curves, preset),
            trajectories_section(cells, preset),
            feasible_section(results / "ground_truth" / "feasible_set.npz", warnings.append),
            failures_section(suites, cells),
            provenance_section(folder, suites, preset),
        ]
    body = (
        top(suites, preset, warnings) + navigation(sections) + f"<main>{''.join(sections)}</main>"
    )
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("<!-- body -->", body).encode(), warnings


def top(suites: dict[str, pd.DataFrame], preset: str, warnings: list[str]) -> str:
    """Title, what this is of, and what is wrong with it."""
    every = pd.concat(suites.values(), ignore_index=True)
    dates = " to ".join(sorted({every.date.min(), every.date.max()}))
    hardware = "; ".join(sorted(every.hardware.unique()))
    lead = (
        f"polycstr-jax, preset {preset}: {len(every):,} rows of results from the suites "
        f"{', '.join(suites)}; {dates}; {hardware}; jax {', '.join(sorted(every.jax.unique()))}."
    )
    notes = "".join(f"<li>{folded(text)}</li>" for text in warnings)
    box = (
        f'<div class="warnings" role="note"><b>Warnings</b><ul>{notes}</ul></div>' if notes else ""
    )
    title = "Safe reinforcement learning of a polymerisation reactor"
    return f'<header><h1>{title}</h1><p class="lead">{escape(lead)}</p>{box}</header>'


def folded(text: str) -> str:
    """A warning; of a long one the beginning, and the rest on request."""
    if len(text) < 200:
        return escape(text)
    head, _, rest = text.partition(": ")
    return f"<details><summary>{escape(head)}</summary>{escape(rest)}</details>"


def navigation(sections: list[str]) -> str:
    heads = (re.search(r'id="(\w+)"><h2>([^<]*)', text).groups() for text in sections)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in heads)
    button = '<button type="button" id="theme" hidden></button>'
    return f'<nav aria-label="sections"><div>{links}{button}</div></nav>'


def choose_preset(args: Args) -> str:
    """The preset to show; `SystemExit` where it is unknown or has no results."""
    if args.preset is not None:
        check_known("preset", args.preset, PRESETS)
    there = presets_there(args.results, tuple(SUITES))
    if not there or (args.preset and args.preset not in there):
        of = f" of preset {args.preset}" if args.preset else ""
        wanted = f" --preset {args.preset}" if args.preset else ""
        raise SystemExit(
            f"results = {args.results} holds no results{of}; run python -m benchmarks.run{wanted} "
            f"--out {args.results} first."
        )
    return args.preset or there[0]


def main(args: Args) -> None:
    preset = choose_preset(args)
    if args.out.is_dir():
        raise SystemExit(f"out = {args.out} is a folder; allowed: a file, such as report.html.")
    try:
        check_writable(args.out.parent)
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error
    try:
        page, warnings = build(args.results, preset, args.force)
    except (OSError, ValueError) as error:
        raise SystemExit(f"results = {args.results}: {error}") from error
    try:
        write_atomically(args.out, lambda file: file.write(page))
    except OSError as error:
        raise SystemExit(f"out = {args.out}: {error}") from error
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(f"written: {args.out} ({len(page) / 1e6:.1f} MB)")


if __name__ == "__main__":
    end_with_the_reader()
    main(tyro.cli(Args))
