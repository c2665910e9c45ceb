"""What benchmarks.report reads. A damaged file is named to `warn(text)`, and left out."""

import contextlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import marvel_tables, plan
from benchmarks.results import read_results
from benchmarks.run import LEVELS
from benchmarks.worker import CHANNELS

SUITES = ("leaderboard", "picnn", "fisor", "marvel")  # those that the page shows
MAX_CELLS = 70  # whose trajectories are drawn: the page stays below 5 MB
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def read_suites(folder: Path, warn: Callable[[str], None]) -> dict[str, pd.DataFrame]:
    """Results by suite, in the order of the page, versions mixed or not: their `.attrs` say."""
    found = {}
    for suite in SUITES:
        if not (folder / suite).is_dir():
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the page says it, too
                found[suite] = read_results(folder / suite, force=True)
        except UNREADABLE as error:
            warn(f"Suite {suite} is left out: {one_line(error, folder.parent)}")
            continue
        for text in found[suite].attrs["left_out"]:
            warn(f"{folder.name}/{suite}/{text}; left out; --repair of benchmarks.run makes it.")
    return found


def read_curves(folder: Path, results: pd.DataFrame, warn) -> dict[tuple[str, ...], pd.DataFrame]:
    """As `marvel_tables.read_curves` of the cells in the results, without damaged files."""
    whole = set(results[["scenario", "method", "variant"]].itertuples(index=False, name=None))
    found = {}
    for path in sorted(folder.glob("*/*.curves.csv")):
        arm = marvel_tables.arm_of(path)
        if arm not in whole:
            continue
        try:
            curves = marvel_tables.read_curve(path)
            wanted = ["seed", "update", *plan.CURVES]
            values = curves[wanted].to_numpy(float)
            curves.attrs["num_episodes"], curves.attrs["cost_limits"][0]
            if not np.isfinite(values).all() or curves.groupby("seed").size().nunique() != 1:
                raise ValueError("it is not whole: entries or updates are missing")
        except UNREADABLE as error:
            warn(f"{path.relative_to(folder.parents[1])} is left out: {one_line(error, folder)}.")
            continue
        found[arm] = curves
    return found


def read_trajectories(folder: Path, suites: Iterable[str], warn) -> list[dict]:
    """Trajectories of all finished cells of a preset's suites, each cell once, at most `MAX_CELLS`.

    One a cell: scenario, dataset, method, variant, and the arrays of its `.trajectories.npz`.
    """
    names = ("scenario", "dataset", "method", "variant")
    found, left = {}, []
    for suite in suites:
        for path in sorted((folder / suite).glob("*/*.trajectories.npz")):
            cell = path.name.removesuffix(".trajectories.npz")
            key = (*path.parent.name.split("-"), *cell.split("@"))
            there = path.with_name(f"{cell}.json").exists() and key[0] in plan.SCENARIOS
            if key in found or not there:
                continue
            if len(found) == MAX_CELLS:
                left.append(f"{suite}/{path.parent.name}/{cell}")
                continue
            try:
                found[key] = dict(zip(names, key, strict=True)) | check_trajectories(path)
            except UNREADABLE as error:
                warn(f"{path.relative_to(folder.parent)} is left out: {one_line(error, folder)}.")
    if left:
        warn(f"Trajectories beyond {MAX_CELLS} cells are not drawn: {', '.join(left)}.")
    places = {name: at for at, name in enumerate((*plan.METHODS, *plan.REFERENCES))}

    def place(cell):
        method = places.get(cell["method"], len(places))
        return plan.SCENARIOS.index(cell["scenario"]), method, cell["dataset"], cell["variant"]

    return sorted(found.values(), key=place)


def check_trajectories(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a trajectories file; `ValueError` where they are not what is expected."""
    arrays = read_arrays(path)
    if tuple(arrays["channels"]) != CHANNELS or not np.allclose(arrays["levels"], LEVELS):
        raise ValueError(f"channels or levels are not {', '.join(CHANNELS)}, {LEVELS}")
    quantiles, worst = arrays["quantiles"], arrays["worst"]
    count = len(worst)
    of_worst = [arrays[f"worst_{name}"].shape for name in ("seed", "start", "score")]
    shape = (len(LEVELS), len(CHANNELS), *quantiles.shape[2:3])
    if quantiles.shape != shape or worst.shape[1:] != shape[1:] or of_worst != [(count,)] * 3:
        raise ValueError(f"shapes {quantiles.shape}, {worst.shape} and {of_worst} do not agree")
    return arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz, in its order; `ValueError` where it is none."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz, or cut off")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def one_line(error: Exception, folder: Path) -> str:
    """An error's text without line breaks and without where the folder lies."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else text
    return text.replace(f"{folder}/", "")
