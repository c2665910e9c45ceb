"""The parts of benchmarks.report's page: prose, tables, choices, figures. All text is escaped."""

import html
import re
from collections.abc import Iterable

import numpy as np

from benchmarks import plan, report_figures, tables

LONG = 44  # characters from which a column of text is wrapped


def escape(value) -> str:
    return html.escape(str(value), quote=True)


def prose(text: str) -> str:
    """Paragraphs of a table's header; `code` stays code."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return "".join(f"<p>{part}</p>" for part in marked.split("\n\n") if part.strip())


def note(text: str) -> str:
    """A paragraph of small print; `text` is HTML."""
    return f'<p class="note">{text}</p>'


def table(
    rows: list[dict],
    columns: dict[str, str],
    caption: str,
    *,
    extra: Iterable[str] = (),
    keys: bool = False,
    sortable: bool = True,
) -> str:
    """Rows as a table; the first column heads the rows.

    `columns`: name -> how it is written. A column with bounds, `<name> low` and `<name> high` or
    with the name's last word, shows them behind its value. `extra`: columns hidden at first.
    `keys`: the line of the row's method before its name.
    """
    first, *others = columns
    classes = {name: class_of(name, rows, extra, sortable) for name in columns}
    heads = "".join(
        f'<th scope="col" aria-sort="none"{classes[name]}><button type="button">{escape(name)}'
        "</button></th>"
        if sortable
        else f'<th scope="col"{classes[name]}>{escape(name)}</th>'
        for name in columns
    )
    lines = []
    for row in rows:
        is_reference = row.get("method") in plan.REFERENCES
        line = "" if is_reference or not keys else report_figures.key_of(row)
        title = escape(tables.formatted(row[first], columns[first]))
        cells = "".join(cell(row, name, columns[name], classes[name]) for name in others)
        data = f' data-data="{escape(row["data"])}"' if "data" in row else ""
        lines.append(
            f'<tr{data}{" class=reference" if is_reference else ""}><th scope="row" class="text">'
            f"{line}{title}</th>{cells}</tr>"
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def class_of(name: str, rows: list[dict], extra: Iterable[str], sortable: bool) -> str:
    """The classes of a column's cells, as an attribute."""
    is_text = not sortable or not any(number_of(row.get(name)) for row in rows)
    is_long = is_text and any(len(str(row.get(name))) > LONG for row in rows)
    flags = {"text": is_text, "long": is_long, "extra": name in extra}
    words = " ".join(word for word, is_so in flags.items() if is_so)
    return f' class="{words}"' if words else ""


def cell(row: dict, name: str, pattern: str, classes: str) -> str:
    """A cell with what it is sorted by, and the interval of its value where there is one."""
    value = row.get(name, np.nan)
    number = number_of(value)
    sort = f' data-v="{number}"' if number and "text" not in classes else ""
    interval = ""
    for stem in (name, name.rpartition(" ")[2]):
        bounds = [row.get(f"{stem} {end}", np.nan) for end in ("low", "high")]
        if not interval and not np.isnan(bounds).any():
            low, high = (escape(tables.formatted(float(bound), pattern)) for bound in bounds)
            interval = f" <small>[{low}, {high}]</small>"
    return f"<td{sort}{classes}>{escape(tables.formatted(value, pattern))}{interval}</td>"


def number_of(value) -> str:
    """What a cell is sorted by: its number, or the one that its text begins with; else nothing."""
    if isinstance(value, str):
        match = re.match(r"[+-]?\d+(\.\d+)?(?= \[|$)", value)
        return match[0].removeprefix("+") if match else ""
    return "" if value is None or not np.isfinite(value) else f"{value:.9g}"


def picker(label: str, choices: list[tuple[str, str]]) -> str:
    """One of several contents, chosen by name; all of them where scripts do not run."""
    options = "".join(f"<option>{escape(name)}</option>" for name, _ in choices)
    contents = "".join(
        f'<div data-choice="{escape(name)}">{content}</div>' for name, content in choices
    )
    return (
        f'<div data-picker><p class="controls"><label>{escape(label)} '
        f"<select>{options}</select></label></p>{contents}</div>"
    )


def figure(svg: str, label: str, caption: str) -> str:
    """`label` is read aloud in place of the drawing; `caption` is HTML."""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def figures(parts: Iterable[str], width: str = "narrow") -> str:
    """Figures beside each other, as many as there is room for."""
    return f'<div class="figures {width}">{"".join(parts)}</div>'


def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{"".join(parts)}</section>'
