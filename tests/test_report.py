"""The report is one page that needs nothing else, says what the tables say, and repeats."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from benchmarks import marvel_tables, plan, report, report_data, report_figures, report_html, tables
from benchmarks.results import PRESETS
from polycstr_jax import evaluate
from polycstr_jax.env import EnvParams, scenario_params

PRESET = PRESETS[0]
SEEDS = 8
HOSTILE = "<b>x&$y$"  # a method's name, from a file's
ROWS = {  # method -> data set, gap closed of its seeds
    "oracle": ("pi", np.array([100.0])),
    "bc": ("pi", np.linspace(40.0, 60.0, SEEDS)),
    "iql": ("pi", np.linspace(90.0, 70.0, SEEDS)),
    "fisor": ("mixed", np.linspace(-300.0, -9.0, SEEDS)),
    HOSTILE: ("mixed", np.full(SEEDS, np.nan)),
}


def rows_of(gap) -> pd.DataFrame:
    """Rows of a cell as `run` writes them, from nominal, hot and doomed starts."""
    names = (*evaluate.EpisodeMetrics._fields, "score_std", "worst_score", "best_score")
    more = ("max_peak_temperature", "doomed_share", "first_doomed", "lead")
    frame = pd.DataFrame(dict.fromkeys((*names, *more), 0.0), index=range(gap.size))
    frame = frame.assign(
        seed=range(gap.size),
        num_starts=32,
        score=np.nan_to_num(gap) + 5.0,
        max_peak_temperature=355.0,
        gap_closed=gap,
        gap_closed_median=gap,
        gap_starts=32,
        excess_over_oracle=-0.1,
        excess_over_unconstrained=-0.1,
    )
    doomed = frame.assign(gap_closed=np.nan, gap_closed_median=np.nan, violated=1.0)
    groups = {"nominal": frame, "hot": frame, "hot_doomed": doomed}
    return pd.concat([rows.assign(starts=name) for name, rows in groups.items()])


def write_cell(folder, method, variant, dataset, frame, **config):
    """The .csv and the .json of a cell; the path without a suffix."""
    path = folder / f"startup-{dataset}" / f"{method}@{variant}"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(f"{path}.csv", index=False)
    info = {
        "hash": "0",
        "commit": "abc1234",
        "config": {
            "method": method,
            "seeds": frame.seed.nunique(),
            "evaluation": [[[name, name, {}, {}] for name in ("nominal", "hot")], False, 0],
            "precision": "float32",
            "source": "s0",
            "backend": "cpu",
            "versions": {},
            **config,
        },
        "hardware": "a <machine>",
        "versions": {"jax": "0.0.1", "python": "3.11.0"},
        "date": "2026-01-02",
        "wall_time_s": {"run": 1800.0},
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(info))
    return path


def write_curves(path):
    seed, update = np.indices((SEEDS, 20)).reshape(2, -1)
    curves = pd.DataFrame({"seed": seed, "update": update} | dict.fromkeys(plan.CURVES, 0.0))
    curves["episode_return"] = -1e5 - 1e3 * seed - update
    curves["episode_cost"] = 1.0 + seed
    curves.to_csv(f"{path}.curves.csv", index=False)


def trajectories(num_worst=2):
    """Arrays of a trajectories file: a start-up that overshoots."""
    hours = 0.5 * np.arange(1, 201)
    rise = 1.0 - np.exp(-hours / 10.0)
    middle = np.stack([100 * rise, 345 + 5 * rise, 345 + 8 * rise, 2 * rise, 340 + rise])
    spread = np.linspace(-2.0, 2.0, 5)[:, None, None]
    return {
        "channels": np.array(report_data.CHANNELS),
        "levels": np.array(report_data.LEVELS),
        "quantiles": (middle + spread).astype(np.float32),
        "worst": np.stack([middle + 9.0] * num_worst).astype(np.float32),
        "worst_seed": np.arange(num_worst),
        "worst_start": np.arange(num_worst) + 10,
        "worst_score": np.linspace(-900.0, -100.0, num_worst),
    }


def write_results(out):
    """A small results folder with every part of the page but PICNN's and FISOR's suites."""
    board, marvel = out / PRESET / "leaderboard", out / PRESET / "marvel"
    for method, (dataset, gap) in ROWS.items():
        path = write_cell(board, method, "default", dataset, rows_of(gap))
        if method in ("oracle", "bc", "fisor"):
            np.savez(f"{path}.trajectories.npz", **trajectories())
    settings = {"num_episodes": 1, "num_updates": 20, "gradient_steps": 2, "cost_limits": [2.0]}
    for arm in (("marvel", "default"), ("marvel", "pid"), ("sac_lag", "default")):
        frame = rows_of(np.linspace(50.0, 60.0, SEEDS))
        path = write_cell(marvel, *arm, "mixed", frame, config=settings)
        write_curves(path)
    axis, temperature = np.linspace(0.0, 600.0, 13), np.linspace(335.0, 375.0, 11)
    peak = temperature + axis[:, None] / 60.0
    truth = out / "ground_truth"
    truth.mkdir()
    arrays = {"temperature": temperature, "limit": np.array(356.0), "monomer": axis}
    arrays |= {"controls_cold": np.array([0.5, 335.0]), "controls_hot": np.array([2.5, 350.0])}
    arrays |= {"peak_monomer_cold": peak, "peak_monomer_hot": peak + 3.0}
    np.savez(truth / "feasible_set.npz", **arrays)
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture
def copied(results, tmp_path):
    """A results folder to damage."""
    return shutil.copytree(results, tmp_path / "results")


@pytest.fixture(scope="module")
def page(results):
    text, warnings = report.build(results, PRESET)
    assert warnings == []
    return text.decode()


class Tables(HTMLParser):
    """Tables of a page by caption: per cell its text and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.rows, self.into, self.ids, self.tags = {}, [], None, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append(["", attrs])
        if tag in ("th", "td", "caption"):
            self.into = tag
        if tag == "caption":
            self.rows = []
            self.caption = ""

    def handle_endtag(self, tag):
        if tag in ("th", "td", "caption"):
            self.into = None
        if tag == "table":
            self.found.setdefault(self.caption, self.rows)

    def handle_data(self, data):
        if self.into == "caption":
            self.caption += data
        elif self.into:
            self.rows[-1][-1][0] += data


def column(rows, name):
    """The cells below a head: (text, attributes)."""
    at = [cell[0] for cell in rows[0]].index(name)
    return [row[at] for row in rows[1:]]


def test_every_section_is_there(page):
    sections = ("papers", "curves", "trajectories", "feasible", "failures", "provenance")
    for name in ("leaderboard", *sections):
        assert f'<section id="{name}">' in page and f'<a href="#{name}">' in page
    assert "356 K" in page and "200 intervals" in page
    assert "abc1234" in page and "float32" in page and "0.50 h" not in page
    for label in (
        "startup: trajectories of bc, data pi",
        "startup: worst episodes of fisor, data mixed",
        "startup, training: violating intervals against interactions",
        "feasible set over monomer concentration and temperature",
    ):
        assert f'<svg role="img" aria-label="{label}"' in page
    assert "solid: seed 0, start 10, score -900; dashed: seed 1, start 11, score -100" in page


def test_the_leaderboard_says_what_the_tables_say(page, results):
    board = tables.leaderboard(tables.read_results(results / PRESET / "leaderboard"))
    board = board[board["start group"] == "nominal"]
    rows = Tables(page).found["startup, nominal starts (32 a seed)"]
    assert [cell[0] for cell in column(rows, "method")] == list(board.method)
    for name, pattern in (("gap closed", "{:.1f}"), ("score IQM", "{:.1f}"), ("worst seed", "{}")):
        shown = column(rows, name)
        for (text, attributes), value in zip(shown, board[name], strict=True):
            if np.isnan(value):
                assert text == "-" and "data-v" not in attributes
            else:
                assert float(attributes["data-v"]) == pytest.approx(value, rel=1e-8)
                assert name == "worst seed" or text.split(" [")[0] == pattern.format(value)
    bc = board[board.method == "bc"].iloc[0]
    text, _ = column(rows, "score IQM")[list(board.method).index("bc")]
    assert text.endswith(f" [{bc['IQM low']:.1f}, {bc['IQM high']:.1f}]")
    assert rows[1][0][1]["scope"] == "row" and rows[0][0][1]["scope"] == "col"


def test_what_is_not_known_has_no_number_to_sort_by():
    assert report_html.number_of(np.nan) == report_html.number_of("-") == ""
    assert report_html.number_of(None) == report_html.number_of("5 of 10") == ""
    assert report_html.number_of("[1.0, 2.0]") == report_html.number_of("2026-01-02") == ""
    assert report_html.number_of("+69.2 [13.6, 128.9]") == "69.2"
    assert float(report_html.number_of(-1.5)) == -1.5


def test_intervals_stand_behind_their_values():
    row = {"method": "bc", "gap closed": 2.0, "gap closed low": 1.0, "gap closed high": 3.0}
    text = report_html.table([row], {"method": "{}", "gap closed": "{:.1f}"}, "x")
    assert "2.0 <small>[1.0, 3.0]</small>" in text and 'data-v="2"' in text


def test_all_scenarios_together_are_a_table(copied):
    board = copied / PRESET / "leaderboard"
    shutil.copytree(board / "startup-pi", board / "grade_up-pi")
    found = Tables(report.build(copied, PRESET)[0].decode()).found
    rows = found["all scenarios, nominal starts"]
    assert [cell[0] for cell in column(rows, "method")] == ["oracle", "bc", "iql"]
    assert [cell[0] for cell in column(rows, "scenarios")] == ["2", "2", "2"]


def test_text_of_files_is_escaped(page):
    assert HOSTILE not in page and "&lt;b&gt;x&amp;$y$" in page
    assert "a <machine>" not in page and "a &lt;machine&gt;" in page


def test_the_page_needs_nothing_else_and_names_no_folder(page, results):
    found = Tables(page)
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"<script>.*</script>", "", page, flags=re.S))
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "img", "object")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert str(results) not in page
    assert len(found.ids) == len(set(found.ids))


def test_the_same_results_give_the_same_bytes_wherever_they_lie(copied, results, tmp_path):
    report.main(report.Args(results, out=tmp_path / "a.html"))
    report.main(report.Args(copied, out=tmp_path / "b.html"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_bands_of_trajectories_are_the_quantiles_and_lines_the_limits(monkeypatch):
    monkeypatch.setattr(report_figures, "to_svg", lambda fig, label: fig)
    params, quantiles = scenario_params("grade_up"), trajectories()["quantiles"]
    params = params.replace(temperature_limit=358.0)
    with report_figures.drawing():
        axes = report_figures.bands(quantiles, params, "s0", "x").axes
    for axis, name in zip(axes, report_figures.PANELS, strict=True):
        at = report_data.CHANNELS.index(name)
        *levels, median = axis.lines
        np.testing.assert_array_equal(median.get_ydata(), quantiles[2, at])
        np.testing.assert_array_equal(median.get_xdata(), 0.5 * np.arange(1, 201))
        for band, (low, high) in zip(axis.collections, ((0, 4), (1, 3)), strict=True):
            drawn = set(band.get_paths()[0].vertices[:, 1].astype(np.float32))
            assert drawn >= set(quantiles[low, at]) | set(quantiles[high, at])
            assert max(drawn) == quantiles[high, at].max()
            assert min(drawn) == quantiles[low, at].min()
        if name == "peak_temperature":
            assert [line.get_ydata()[0] for line in levels] == [350.0, 358.0, 380.0]
        if name == "polymer":
            assert [line.get_ydata()[0] for line in levels] == [100.0]


def test_bands_of_curves_are_quartiles_over_seeds_of_ten_updates(results):
    path = results / PRESET / "marvel/startup-mixed/marvel@default.curves.csv"
    curves = marvel_tables.read_curve(path)
    at, bands = marvel_tables.smoothed(curves, "episode_return")
    of_seeds = curves["episode_return"].to_numpy().reshape(SEEDS, 2, 10).mean(axis=2)
    np.testing.assert_allclose(bands, np.quantile(of_seeds, (0.25, 0.5, 0.75), axis=0))
    assert list(at) == [1_000, 3_000]


def test_a_method_has_one_line_everywhere():
    arms = [(m, v) for m in plan.ONLINE for v in plan.VARIANTS[plan.METHODS[m][0]]]
    lines = {arm: report_figures.line_of(*arm) for arm in arms}
    assert len({repr(line) for line in lines.values()}) == len(arms)
    offline = [m for m in plan.METHODS if m not in plan.ONLINE]
    assert len({report_figures.line_of(m, "default") for m in offline}) == len(offline)
    assert report_figures.line_of("fisor", "n-1") == report_figures.line_of("fisor", "default")


def test_shorter_paths_are_the_same_polygons():
    points = np.random.default_rng(0).uniform(0.0, 300.0, (40, 2))
    points[10:20, 1] = points[10, 1]  # along a horizontal line, there and back
    text = "M " + " \nL ".join(f"{x:.6f} {y:.6f}" for x, y in points) + " \nz\n"
    short = report_figures.short_path(text)
    assert len(short) < len(text) / 2 and short.endswith("z")
    at, ends = np.zeros(2), []
    for command, a, b in re.findall(r"([Mlhv])(-?[\d.]+)(?: (-?[\d.]+))?", short):
        step = {"h": (a, 0.0), "v": (0.0, a)}.get(command, (a, b))
        at = at * (command != "M") + np.array(step, float)
        ends.append(at)
    for point in np.delete(points, range(11, 19), axis=0):
        assert np.abs(np.array(ends) - point).max(axis=1).min() <= 0.0501
    for curved in ("M 0 0 C 1 1 2 2 3 3", "M 0 0 Q 1 1 2 2"):
        assert report_figures.short_path(curved) == curved


def test_words_in_a_figure_stay_what_they_are():
    with report_figures.drawing():
        fig, (axis,) = report_figures.new_figure(2.0)
        axis.set_xlabel("0.12345 <b> $x$ #0a000a")
        text = report_figures.to_svg(fig, "x")
    assert "0.12345 &lt;b&gt; $x$ #0a000a</text>" in text


def test_what_is_missing_is_said(copied):
    shutil.rmtree(copied / PRESET / "marvel")
    shutil.rmtree(copied / "ground_truth")
    for path in copied.rglob("*.trajectories.npz"):
        path.unlink()
    text, warnings = report.build(copied, PRESET)
    text = text.decode()
    assert warnings == []
    for command in (
        f"python -m benchmarks.run --preset {PRESET} --suite picnn",
        f"python -m benchmarks.run --preset {PRESET} --suite marvel",
        f"python -m benchmarks.run --preset {PRESET} --suite leaderboard --trajectories",
        "python -m benchmarks.ground_truth --only slices",
    ):
        assert f"<code>{command}</code>" in text
    assert "<figure>" not in text


def test_marvel_alone_makes_a_page(copied):
    shutil.rmtree(copied / PRESET / "leaderboard")
    text = report.build(copied, PRESET)[0].decode()
    assert f"--preset {PRESET} --suite leaderboard</code>" in text
    assert "marvel@pid" in text and re.search("Not run: startup: .*sac_lag@apid", text)


@pytest.mark.parametrize("damage", ["cut", "text", "shapes", "channels"])
def test_damaged_trajectories_are_named_and_left_out(copied, damage, tmp_path, capsys):
    path = copied / PRESET / "leaderboard/startup-pi/bc@default.trajectories.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1_000])
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "shapes":
        np.savez(path, **trajectories() | {"worst": np.zeros((2, 5, 7))})
    else:
        np.savez(path, **trajectories() | {"channels": np.array(["a"] * 5)})
    report.main(report.Args(copied, out=tmp_path / "report.html"))
    name = f"{PRESET}/leaderboard/startup-pi/bc@default.trajectories.npz is left out"
    assert f"warning: {name}" in capsys.readouterr().err
    text = (tmp_path / "report.html").read_text()
    assert name in text and str(copied) not in text
    assert "trajectories of bc" not in text and "trajectories of fisor" in text


@pytest.mark.parametrize("damage", ["cut", "empty", "column"])
def test_damaged_curves_are_named_and_left_out(copied, damage):
    path = copied / PRESET / "marvel/startup-mixed/marvel@pid.curves.csv"
    text = path.read_text()
    if damage == "column":
        pd.read_csv(path).drop(columns="episode_cost").to_csv(path, index=False)
    else:
        path.write_text(text[: len(text) // 2] if damage == "cut" else "")
    page, (warning,) = report.build(copied, PRESET)
    assert warning.startswith(f"{PRESET}/marvel/startup-mixed/marvel@pid")
    assert "marvel@pid.curves.csv" in warning and "left out" in warning
    assert report_html.escape(warning) in page.decode()
    assert page.count(b"data-toggle=") == 2


def test_damaged_slices_and_cells_are_named(copied):
    (copied / "ground_truth/feasible_set.npz").write_bytes(b"PK\x03\x04")
    (copied / PRESET / "marvel/startup-mixed/marvel@pid.json").write_text("{")
    page, warnings = report.build(copied, PRESET)
    cell, slices = warnings
    assert cell.startswith(f"{PRESET}/marvel/startup-mixed/marvel@pid: marvel@pid.json is not JSON")
    assert slices.startswith("ground_truth/feasible_set.npz is left out: ")
    assert b"Its file cannot be read." in page


def test_mixed_versions_are_refused_unless_they_are_asked_for(copied, tmp_path):
    path = copied / PRESET / "leaderboard/startup-pi/bc@default.json"
    path.write_text(path.read_text().replace('"s0"', '"s1"'))
    out = tmp_path / "report.html"
    with pytest.raises(
        SystemExit, match=r"Suite leaderboard mixes versions: shared code: s0 .*\n--f"
    ):
        report.main(report.Args(copied, out=out))
    assert not out.exists()
    report.main(report.Args(copied, out=out, force=True))
    head, rest = "Suite leaderboard mixes versions", "shared code: s0 (4 cells: "
    assert f"<summary>{head}</summary>{rest}" in out.read_text()


def test_a_row_that_beats_an_optimum_is_shouted(copied):
    path = copied / PRESET / "leaderboard/startup-pi/bc@default.csv"
    pd.read_csv(path).assign(excess_over_oracle=0.5, solver_failed=0.1).to_csv(path, index=False)
    page, warnings = report.build(copied, PRESET)
    assert tables.BEATEN in warnings[0] and "the solver failed" in warnings[1]
    assert tables.BEATEN.encode() in page


def test_no_more_cells_are_drawn_than_the_page_can_carry(copied, monkeypatch):
    monkeypatch.setattr(report_data, "MAX_CELLS", 1)
    page, (warning,) = report.build(copied, PRESET)
    assert warning.startswith("Trajectories beyond 1 cells are not drawn: leaderboard/startup-")
    assert page.count(b": trajectories of ") == 1


def test_thirty_thousand_rows_make_a_page(tmp_path):
    folder, rng = tmp_path / PRESET / "leaderboard", np.random.default_rng(0)
    for number in range(20):
        frame = rows_of(rng.normal(50.0, 30.0, 500))
        write_cell(folder, f"m{number}", "default", "mixed", frame)
    page, warnings = report.build(tmp_path, PRESET)
    assert warnings == [] and b"30,000 rows of results" in page
    assert len(page) < 1e6


def test_worst_seeds_come_worst_first(results):
    found = report.worst_seeds(tables.read_results(results / PRESET / "leaderboard"))
    nominal = found[found.starts == "nominal"]
    assert "oracle" not in set(nominal.method)
    assert list(nominal[nominal.method == "iql"].seed) == [7, 6, 5]
    assert list(nominal[nominal.method == "bc"].seed) == [0, 1, 2]


def test_bad_arguments_are_named(results, tmp_path):
    with pytest.raises(SystemExit, match=r"holds no results; run python -m benchmarks.run --out"):
        report.main(report.Args(tmp_path))
    with pytest.raises(SystemExit, match=f"preset = tiny; allowed: {PRESET}, "):
        report.main(report.Args(results, "tiny"))
    with pytest.raises(SystemExit, match=f"holds no results of preset {PRESETS[1]}"):
        report.main(report.Args(results, PRESETS[1]))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit, match="cannot be written to"):
        report.main(report.Args(results, out=tmp_path / "file" / "report.html"))
    with pytest.raises(SystemExit, match="is a folder; allowed: a file"):
        report.main(report.Args(results, out=tmp_path))


def test_unreadable_results_alone_are_an_error(copied, tmp_path):
    shutil.rmtree(copied / PRESET / "marvel")
    for path in (copied / PRESET / "leaderboard").rglob("*.csv"):
        pd.read_csv(path).drop(columns="gap_closed").to_csv(path, index=False)
    with pytest.raises(SystemExit, match=r"bc@default: lacks the columns gap_closed"):
        report.main(report.Args(copied, out=tmp_path / "report.html"))


# --- In a browser ---

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def view(browser, page, tmp_path):
    """The page in a window of 1280 x 900; its console and its requests are checked afterwards."""
    path = tmp_path / "report.html"
    path.write_text(page)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(path.as_uri())
    yield opened
    context.close()
    assert said == [] and asked == [path.as_uri()]


BOARD = '#leaderboard [data-choice="startup, nominal starts"]'


def order_of(view):
    rows = view.locator(f"{BOARD} tbody tr:visible th")
    return [text.strip() for text in rows.all_inner_texts()]


def test_a_head_sorts_by_its_numbers_and_what_is_not_known_stays_last(view):
    head = view.locator(f"{BOARD} th", has_text=re.compile("^gap closed$"))
    known = {m: np.mean(gap) for m, (_, gap) in ROWS.items() if not np.isnan(gap).any()}
    largest_first = sorted(known, key=known.get, reverse=True)
    head.locator("button").click()
    assert order_of(view) == [*largest_first, HOSTILE]
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert order_of(view) == [*largest_first[::-1], HOSTILE]
    assert head.get_attribute("aria-sort") == "ascending"
    view.locator(f"{BOARD} th button", has_text="method").click()
    assert order_of(view) == sorted(ROWS, key=lambda name: name.strip("<").lower())
    assert head.get_attribute("aria-sort") == "none"


def test_the_leaderboard_is_filtered_and_another_one_chosen(view):
    view.locator("[name=data]").select_option("mixed")
    assert order_of(view) == ["oracle", HOSTILE, "fisor"]
    view.locator("[name=references]").uncheck()
    view.locator("[name=method]").fill("FIS")
    assert order_of(view) == ["fisor"]
    assert view.locator("#leaderboard output").inner_text() == "1 rows"
    assert not view.locator(f"{BOARD} .extra").first.is_visible()
    view.locator("[name=columns]").check()
    assert view.locator(f"{BOARD} th.extra").first.is_visible()
    select = view.locator("#leaderboard [data-picker] select")
    select.select_option("startup, hot_doomed starts")
    assert not view.locator(BOARD).is_visible()


def test_figures_are_there_and_drawn(view):
    visible = view.locator("figure svg[role=img]:visible")
    assert visible.count() == 3 + 2 + 1 + 2  # trajectories, curves, slices, worst episodes
    for figure in visible.all():
        box = figure.bounding_box()
        assert box["width"] > 200 and box["height"] > 150
        assert figure.locator("path").count() > 10 and figure.locator("text").count() > 5
        drawn = figure.evaluate("x => x.getBBox().width / x.viewBox.baseVal.width")
        assert 0.8 < drawn <= 1.01


def test_curves_are_shown_and_hidden(view):
    hidden = view.locator("#curves [data-series]").evaluate_all(
        "all => all.filter(x => x.style.display === 'none').length"
    )
    assert hidden == 4  # line and band of the arm that is not drawn at first, in two figures
    view.locator("#curves summary").click()
    view.locator("#curves details input").check()
    assert view.locator("#curves [data-series][style*=none]").count() == 0


def test_the_button_turns_the_page_dark_and_light_again(view):
    def colours():
        return view.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('figure svg text')).fill]"
        )

    light = colours()
    view.locator("#theme").click()
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0] and dark[1] != light[1]
    view.locator("#theme").click()
    assert colours() == light
    view.emulate_media(color_scheme="dark")
    assert colours() == light  # the button counts


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_does_not_scroll_sideways(view, scheme):
    view.emulate_media(color_scheme=scheme)
    view.set_viewport_size({"width": 390, "height": 844})
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    box = view.locator(f"{BOARD} .scroll")
    assert box.evaluate("x => x.scrollWidth > x.clientWidth")
    first = view.locator(f"{BOARD} tbody th").first
    before = first.bounding_box()["x"]
    box.evaluate("x => { x.scrollLeft = 200; }")
    assert first.bounding_box()["x"] == pytest.approx(before, abs=1.5)  # it stays


def test_defaults_of_the_environment_are_those_on_the_page(page):
    params = EnvParams()
    assert f"limit {params.temperature_limit:g} K" in page
    assert f"runaway {params.runaway_temperature:g} K" in page
