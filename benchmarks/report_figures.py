"""Figures of benchmarks.report: SVG whose text stays text and whose colours are the page's.

Colours are names of CSS variables of report.html, `--ink` for what the figure says beside the
data, `--s0` to `--s7` for methods, so that a figure follows the page from light to dark.
"""

import hashlib
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks import marvel_tables
from benchmarks.plan import METHODS, ONLINE, VARIANTS
from benchmarks.worker import CHANNELS
from polycstr_jax.env import EnvParams

NUM_HUES = 8
NAMES = ("ink", "grid", "limit", "safe", *(f"s{hue}" for hue in range(NUM_HUES)))
COLOURS = {name: f"#0a{at:02x}0a" for at, name in enumerate(NAMES)}  # stand in while drawing
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polycstr-jax",
    "font.size": 9.0,
    "text.parse_math": False,  # names come from files
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "lines.linewidth": 1.5,
    "path.simplify_threshold": 0.05,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), COLOURS["ink"]),
    **dict.fromkeys(("xtick.color", "ytick.color"), COLOURS["ink"]),
}
WIDTH = 4.3  # inches; about that of a telephone

PANELS = {  # drawn channels -> axis
    "polymer": "polymer, kg/m³",
    "peak_temperature": "peak temperature, K",
    "initiator_feed": "initiator feed, kg/h",
    "coolant_temperature": "coolant, K",
}
WORST_LINES = {"solid": "-", "dashed": "--", "dotted": ":"}  # of single episodes
INPUTS = ("initiator_feed", "coolant_temperature")  # held over an interval

HUES = {  # hue of a method, and its line
    "iql": (0, "-"),
    "iql+": (0, "--"),
    "bc": (1, "-"),
    "bc+": (1, "--"),
    "fisor": (2, "-"),
    "coptidice": (3, "-"),
    "cpq": (4, "-"),
    "bearl": (5, "-"),
    "bcql": (6, "-"),
}
HUE_ORDER = (3, 0, 2, 4, 5, 6, 7, 1)  # of the arms of what trains online
ONLINE_LINES = {  # where its arms begin in that order, and their lines, eight arms each
    "sac_lag": (6, (":",)),
    "marvel": (0, ("-", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (2, 1)))),
    "o2o": (2, ("--",)),
}
DASHES = {"-": "", "--": "6 3", ":": "1.5 2.5", "-.": "7 2 1.5 2"}  # as SVG writes them


def line_of(method: str, variant: str) -> tuple[str, object]:
    """The colour and the line of a method, the same wherever it is drawn."""
    if method in ONLINE:
        arms = VARIANTS[METHODS[method][0]]
        at = arms.index(variant) if variant in arms else 0
        first, lines = ONLINE_LINES[method]
        return f"s{HUE_ORDER[(first + at) % NUM_HUES]}", lines[at // NUM_HUES % len(lines)]
    if method not in HUES:
        return "ink", "-"
    hue, line = HUES[method]
    return f"s{hue}", line


def key_of(row) -> str:
    """The line of a row's method and variant, for legends and tables."""
    return key(*line_of(row["method"], row["variant"]))


def key(colour: str, line) -> str:
    """A short line as a drawing of its own."""
    dashes = DASHES[line] if isinstance(line, str) else " ".join(map(str, line[1]))
    return (
        '<svg class="key" viewBox="0 0 26 6" aria-hidden="true"><path d="M0 3h26" '
        f'style="stroke:var(--{colour});stroke-dasharray:{dashes or "none"}"/></svg>'
    )


NOT_NEEDED = "|".join(  # in the tags that matplotlib writes
    (
        r' transform="rotate\(-0 [^"]*"',
        r' (?:xmlns(?::xlink)?|version)="[^"]*"',
        r' (?:width|height)="[\d.]+pt"',
        r" font-family: [^;\"]*;",
    )
)


def to_svg(fig: Figure, label: str) -> str:
    """An element <svg> for the page, smaller than matplotlib's: one decimal, relative paths."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    # Identifiers of one figure must not meet those of another; most are not needed.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    unique = hashlib.sha256((label + text).encode()).hexdigest()[:8]
    text = re.sub(r"<[^>]*>", lambda tag: short_tag(tag[0], used, unique), text)
    return re.sub(r">\s+<", "><", text).strip()


def short_tag(tag: str, used: set[str], unique: str) -> str:
    """A tag with the page's colours, fewer digits, and identifiers of its own."""
    tag = re.sub(NOT_NEEDED, "", tag).replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{name})")
    tag = re.sub(r' d="([^"]*)"', lambda found: f' d="{short_path(found[1])}"', tag)
    tag = re.sub(r"-?\d+\.\d{2,}", lambda found: short(float(found[0]), 1), tag)

    def identifier(found) -> str:
        return f' id="{unique}{found[1]}"' if found[1] in used else series(found[1])

    tag = re.sub(r' id="([^"]*)"', identifier, tag)
    return re.sub(r'(url\(|href=")#', rf"\g<1>#{unique}", tag)


def series(name: str) -> str:
    """What the page's script shows and hides: groups whose `gid` is series-<number>."""
    number = re.fullmatch(r"series-(\d+).*", name)
    return f' data-series="{number[1]}"' if number else ""


def short(value: float, digits: int) -> str:
    """A number without what does not matter; no -0."""
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return "0" if text in ("-0", "") else text


def short_path(path: str) -> str:
    """The same polygons with relative commands, in tenths of a point; other paths as they are.

    Of points along a horizontal or vertical line only the ends are kept.
    """
    if re.search(r"[^MLz\d\s.e+-]", path):
        return " ".join(path.split())
    moves: list[tuple[str, int, int]] = []
    x = y = 0
    for command, *point in re.findall(r"([MLz]) ?(\S+)? ?(\S+)?", path):
        if command == "z":
            moves.append(("z", 0, 0))
            continue
        new_x, new_y = (round(10.0 * float(value)) for value in point)
        step = (new_x - x, new_y - y)
        x, y = new_x, new_y
        last, *before = moves[-1] if moves else ("", 0, 0)
        if command == "M":
            moves.append(("M", x, y))
        elif last == "l" and any(
            a == b == 0 and c * d > 0
            for a, b, c, d in zip(before, step, before[::-1], step[::-1], strict=True)
        ):
            moves[-1] = ("l", before[0] + step[0], before[1] + step[1])
        elif step != (0, 0):
            moves.append(("l", *step))
    return "".join(written(*move) for move in moves)


def written(command: str, x: int, y: int) -> str:
    """A command of a path, in tenths."""
    if command == "z":
        return "z"
    a, b = short(x / 10, 1), short(y / 10, 1)
    if command == "l" and 0 in (x, y):
        return f"h{a}" if y == 0 else f"v{b}"
    return f"{command}{a} {b}"


def new_figure(height: float, rows: int = 1):
    """A figure of the page's width, and its axes (rows,) that share time."""
    fig = Figure(figsize=(WIDTH, height))
    fig.patch.set_visible(False)
    axes = fig.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    fig.subplots_adjust(0.155, 0.42 / height, 0.955, 1.0 - 0.12 / height, hspace=0.1)
    for axis in axes:
        axis.patch.set_visible(False)
        axis.set_axisbelow(True)
        axis.tick_params(bottom=False, left=False)
        axis.yaxis.set_label_coords(-0.125, 0.5)
    return fig, axes


def level_line(axis, value: float, text: str, colour: str, line: str, side="bottom") -> None:
    """A horizontal line over the whole width; `{}` in its name is the value."""
    axis.axhline(value, color=COLOURS[colour], ls=line, lw=1.1)
    axis.text(
        0.995,
        value,
        text.format(f"{value:g}"),
        color=COLOURS[colour],
        transform=axis.get_yaxis_transform(),
        ha="right",
        va=side,
        size=7.5,
    )


def time_panels(params: EnvParams, num_intervals: int):
    """Figure, axes by channel, and the hours at which the intervals end."""
    fig, axes = new_figure(6.6, len(PANELS))
    hours = params.reactor.interval / 3600.0 * np.arange(1, num_intervals + 1)
    panels = dict(zip(PANELS, axes, strict=True))
    for axis, label in zip(axes, PANELS.values(), strict=True):
        axis.set_ylabel(label)
        axis.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
    level_line(panels["polymer"], float(params.polymer_setpoint), "set-point {} kg/m³", "ink", ":")
    peak = panels["peak_temperature"]
    level_line(peak, float(params.temperature_setpoint), "set-point {} K", "ink", ":", "top")
    level_line(peak, float(params.temperature_limit), "limit {} K", "limit", "--")
    level_line(peak, float(params.runaway_temperature), "runaway {} K", "limit", "-")
    panels["initiator_feed"].set_ylim(
        float(params.reactor.feed_min) - 0.05, float(params.reactor.feed_max) + 0.1
    )
    axes[-1].set_xlabel("time, h")
    axes[-1].set_xlim(0.0, hours[-1])
    return fig, panels, hours


def bands(quantiles: np.ndarray, params: EnvParams, colour: str, label: str) -> str:
    """Median, middle half and 5 to 95 % of (5 levels, 5 channels, T)."""
    fig, panels, hours = time_panels(params, quantiles.shape[-1])
    for name, axis in panels.items():
        low, first, middle, third, high = quantiles[:, CHANNELS.index(name)]
        step = "pre" if name in INPUTS else None
        fill = dict(color=COLOURS[colour], lw=0.0, step=step)
        axis.fill_between(hours, low, high, alpha=0.2, **fill)
        axis.fill_between(hours, first, third, alpha=0.3, **fill)
        axis.plot(
            hours,
            middle,
            color=COLOURS[colour],
            drawstyle="steps-pre" if step else "default",
        )
    return to_svg(fig, label)


def episodes(worst: np.ndarray, params: EnvParams, colour: str, label: str) -> str:
    """Single episodes (K, 5 channels, T): solid, dashed, dotted."""
    fig, panels, hours = time_panels(params, worst.shape[-1])
    for episode, line in zip(worst, WORST_LINES.values(), strict=False):
        for name, axis in panels.items():
            axis.plot(
                hours,
                episode[CHANNELS.index(name)],
                color=COLOURS[colour],
                ls=line,
                lw=1.2,
                drawstyle="steps-pre" if name in INPUTS else "default",
            )
    return to_svg(fig, label)


def learning(curves: Sequence, name: str, axis_label: str, limit, label: str) -> str:
    """Median and middle half over seeds against interactions; `curves`: ((method, variant),
    frame of `marvel_tables.read_curve`), each a series of its own."""
    fig, (axis,) = new_figure(3.1)
    for number, ((method, variant), found) in enumerate(curves):
        at, (low, middle, high) = marvel_tables.smoothed(found, name)
        if name == "episode_return":  # a logarithm wants it positive
            low, middle, high = -high / 1e3, -middle / 1e3, -low / 1e3
        colour, line = line_of(method, variant)
        drawn = axis.plot(at, middle, color=COLOURS[colour], ls=line, marker=".", ms=4)
        filled = axis.fill_between(at, low, high, color=COLOURS[colour], alpha=0.12, lw=0.0)
        for artist, part in ((drawn[0], "line"), (filled, "band")):
            artist.set_gid(f"series-{number}-{part}")
    if limit is None:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set_ylim(0.0, None)
        axis.yaxis.set_major_locator(ticker.FixedLocator([0, 1, 2, 5, 10, 20, 50, 100, 200]))
        level_line(axis, limit, "cost limit {}", "limit", "--")
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(ticker.StrMethodFormatter("{x:,.12g}"))
    axis.set_ylabel(axis_label)
    axis.set_xlabel("interactions (intervals in the environment)")
    axis.set_xlim(0.0, None)
    return to_svg(fig, label)


def feasible(arrays: dict[str, np.ndarray], plane: str, controls: Sequence[str], label: str) -> str:
    """Where the feasible set ends in a plane, a line for each of the controls in force.

    `arrays`: of `benchmarks.ground_truth.slices_arrays`. Shaded: feasible with all of them.
    """
    fig, (axis,) = new_figure(3.1)
    limit, x, y = float(arrays["limit"]), arrays[plane], arrays["temperature"]
    peaks = [arrays[f"peak_{plane}_{name}"].T for name in controls]
    hottest = np.max(peaks, axis=0)
    axis.contourf(x, y, hottest, levels=[0.0, limit], colors=[COLOURS["safe"]], alpha=0.25)
    for number, peak in enumerate(peaks):
        colour, line = control_line(number)
        axis.contour(
            x, y, peak, levels=[limit], colors=[COLOURS[colour]], linestyles=[line], linewidths=1.6
        )
    level_line(axis, limit, "limit {} K", "limit", "--")
    axis.set_xlabel(f"{plane}, kg/m³")
    axis.set_ylabel("temperature, K")
    return to_svg(fig, label)


def control_line(number: int) -> tuple[str, str]:
    """Colour and line of the controls in force: blue, grey, vermilion for cold, steady, hot."""
    return ("s0", "s7", "s3")[number % 3], ("-", "-.", "--")[number % 3]


def drawing():
    """The context in which figures are drawn, whatever the user's matplotlibrc says."""
    return matplotlib.style.context(["default", STYLE])
