"""Results that are whole, damaged or mixed, and the tables that are made of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import conditions, results, seed_tables, tables
from benchmarks.plan import CURVES, REFERENCES
from polycstr_jax import evaluate, stats

ROOT = Path(__file__).parent.parent
VERSIONS = {"jax": "0.10.2", "flax": "0.12"}
ONLINE = {"gradient_steps": 200, "num_updates": 12, "num_episodes": 1, "cost_limits": [2.0]}


def write_cell(folder, name, *, seeds=8, under=conditions.LEADERBOARD, settings=None, **changes):
    """A cell as `benchmarks.run` writes it, with made-up numbers; `changes` of its config."""
    place, _, stem = name.partition("/")
    scenario, method = place.split("-")[0], stem.split("@")[0]
    settings = {"num_updates": 10} if settings is None else settings
    config = {
        **{"method": method, "seeds": seeds, "evaluation": [under, True, 0], "source": "code1"},
        **{"versions": VERSIONS, "backend": "cpu", "config": settings},
        "algorithm_source": f"{method}1",
        **changes,
    }
    if method in REFERENCES:
        del config["algorithm_source"]
    rng = np.random.default_rng(sum(name.encode()))
    rows = [
        made_up_row(rng, seed, group) for group in groups(scenario, under) for seed in range(seeds)
    ]
    path = folder / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")
    info = {
        **{"hash": f"of {name}", "config": config, "commit": "abc1234", "versions": VERSIONS},
        **{"hardware": "a machine", "date": "2026-01-02", "data_returns": [-3e5, -7e4]},
    }
    path.with_suffix(".json").write_text(json.dumps(info))
    if "gradient_steps" in settings:
        seed, update = np.indices((seeds, settings["num_updates"])).reshape(2, -1)
        curves = pd.DataFrame({"seed": seed, "update": update})
        for column in CURVES:
            curves[column] = rng.uniform(0.1, 1.0, len(curves))
        curves["episode_return"] *= -1_000.0
        curves.to_csv(path.with_suffix(".curves.csv"), index=False)


def groups(scenario, under):
    """Groups of starts that `run` writes rows of."""
    for condition in under:
        doomed = evaluate.starts(scenario, condition.starts).doomed
        yield from [condition.name] * bool((~doomed).any())
        yield from [f"{condition.name}_doomed"] * bool(doomed.any())


def made_up_row(rng, seed, group):
    numbers = dict(zip(evaluate.EpisodeMetrics._fields, rng.uniform(size=99), strict=False))
    gap = np.nan if group.endswith("_doomed") else rng.normal(50.0, 5.0)
    return {
        **{"seed": seed, "starts": group, "num_starts": 64},
        **numbers,
        **{"score": rng.normal(80.0, 5.0), "solver_failed": 0.0, "score_std": 1.0},
        **{"worst_score": 60.0, "best_score": 99.0, "max_peak_temperature": 355.0},
        **{"gap_closed": gap, "gap_closed_median": gap, "gap_starts": 64},
        **{"excess_over_oracle": -0.1, "excess_over_unconstrained": -0.2},
        **{"doomed_share": 0.1, "first_doomed": np.nan, "lead": np.nan},
    }


def write_leaderboard(folder):
    for scenario in ("startup", "grade_up"):
        for method in ("pi_tuned", "zero"):
            write_cell(folder, f"{scenario}-pi/{method}@default", seeds=1)
        for method in ("pi/bc", "pi/iql", "mixed/bc", "mixed/fisor"):
            write_cell(folder, f"{scenario}-{method}@default")


def write_all_suites(preset):
    """A small results folder of every suite."""
    write_leaderboard(preset / "leaderboard")
    for name in ("bc@default", "bc+@default", "bc+@one-step", "iql@default"):
        under = conditions.of_starts("nominal", "wide")
        write_cell(preset / "picnn", f"startup-pi/{name}", under=under)
    for name in ("oracle@default", "bc@default", "iql+@default"):
        write_cell(preset / "robustness", f"startup-pi/{name}", under=conditions.SUITE)
    for name in ("bc@default", "fisor@default", "fisor@n-1", "cpq@limit2"):
        write_cell(preset / "fisor", f"startup-mixed/{name}", under=conditions.FISOR)
    for arm in ("default", "warm-start", "pid"):
        settings = ONLINE | {"align": "both", "vpa_updates": 5, "base": "cpq"}
        write_cell(
            preset / "marvel",
            f"startup-mixed/marvel@{arm}",
            settings=settings,
            base_config={"num_updates": 100},
        )


@pytest.fixture
def folder(tmp_path):
    """A leaderboard of preset cpu, whole."""
    write_leaderboard(tmp_path / "cpu/leaderboard")
    return tmp_path / "cpu/leaderboard"


def test_whole_results_are_read_with_what_they_are(folder, capsys):
    found = results.read_results(folder)
    assert len(found) == 2 * (2 + 4 * 8) * 4
    assert found.attrs == {"left_out": [], "mixed": []}
    assert set(found.scenario) == {"startup", "grade_up"} and set(found.commit) == {"abc1234"}
    assert capsys.readouterr().err == ""
    assert tables.read_results is results.read_results


@pytest.fixture
def few_resamples(monkeypatch):
    """For tests of what is written, whatever its intervals."""
    monkeypatch.setattr(stats, "NUM_RESAMPLES", 20)


def edit(path, change):
    path.write_text(change(path.read_text()))


def without_last_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


def with_cell(text, column, value):
    frame = pd.read_csv(pd.io.common.StringIO(text), dtype=str, keep_default_na=False)
    frame.loc[5, column] = value
    return frame.to_csv(index=False)


DAMAGE = {  # what happened to a .csv -> what is said
    "cut in a line": (lambda text: text[:-30], "cut off"),
    "cut at the end of a number": (lambda text: text[:-1], "cut off"),
    "cut after a line": (without_last_line, "31 rows; due are seeds 0 to 7"),
    "empty": (lambda text: "", "cut off"),
    "a field too many": (lambda text: text.replace("\n1,", "\n1,9,", 1), "differ in length"),
    "a seed twice": (lambda text: text.replace("\n1,", "\n2,", 1), "due are seeds 0 to 7"),
    "no score": (lambda text: with_cell(text, "score", ""), "score: 1 of 32 entries not finite"),
    "infinite": (lambda text: with_cell(text, "score", "inf"), "score: 1 of 32 entries"),
    "a word": (lambda text: with_cell(text, "violated", "0.1x"), "violated: not all of it numbers"),
    "a group gone": (lambda text: text.replace(",wide,", ",hot,"), "due are seeds"),
    "an old version": (lambda text: text.replace("gap_closed_median", "gap"), "lacks the columns"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_table_is_named_and_left_out(folder, damage, capsys):
    change, said = DAMAGE[damage]
    edit(folder / "startup-pi/bc@default.csv", change)
    found = results.read_results(folder)
    assert not (
        (found.scenario == "startup") & (found.method == "bc") & (found.dataset == "pi")
    ).any()
    assert len(found) == 2 * (2 + 4 * 8) * 4 - 32
    (line,) = found.attrs["left_out"]
    warning = capsys.readouterr().err
    assert line.startswith("startup-pi/bc@default: ") and said in line and line in warning
    suite = f"--preset cpu --suite leaderboard --out {folder.parent.parent}"
    assert f"python -m benchmarks.run {suite} --repair" in warning


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "being written, or was interrupted"),
        (lambda text: text[:-20], "is not JSON"),
        (lambda text: "[]", "does not hold what was written"),
        (lambda text: "{}", "lacks hash, config"),
        (lambda text: text.replace('"commit"', '"comit"'), "lacks commit"),
        (lambda text: text.replace('"source"', '"sauce"'), r"lacks config.source"),
    ],
)
def test_a_damaged_description_is_named_and_its_table_left_out(folder, change, said):
    path = folder / "grade_up-mixed/fisor@default.json"
    path.unlink() if change is None else edit(path, change)
    (line,) = results.read_results(folder).attrs["left_out"]
    assert line.startswith("grade_up-mixed/fisor@default: ") and said in line


def test_a_description_without_its_table_is_named(folder):
    (folder / "startup-pi/iql@default.csv").unlink()
    (line,) = results.read_results(folder).attrs["left_out"]
    assert line == "startup-pi/iql@default: no iql@default.csv"


def test_curves_are_part_of_what_trains_online(tmp_path):
    for arm in ("default", "pid", "dual"):
        write_cell(tmp_path, f"startup-mixed/marvel@{arm}", settings=ONLINE)
    curves = tmp_path / "startup-mixed"
    edit(curves / "marvel@pid.curves.csv", without_last_line)
    (curves / "marvel@dual.curves.csv").unlink()
    found = results.read_results(tmp_path)
    assert set(found.variant) == {"default"}
    dual, pid = found.attrs["left_out"]
    assert "no marvel@dual.curves.csv" in dual and "not the 96 rows that are due" in pid


@pytest.mark.usefixtures("few_resamples")
def test_curves_of_damaged_cells_are_in_no_table(tmp_path):
    for arm in ("default", "warm-start", "pid"):
        name = f"startup-mixed/marvel@{arm}"
        write_cell(tmp_path / "cpu/marvel", name, settings=ONLINE | {"base": "cpq"})
    (tmp_path / "cpu/marvel/startup-mixed/marvel@warm-start.json").write_text("{")
    tables.main(tables.Args("marvel", tmp_path))
    assert list(pd.read_csv(tmp_path / "cpu/marvel.csv").variant) == ["default", "pid"]
    compared = pd.read_csv(tmp_path / "cpu/marvel-comparisons.csv")
    assert list(compared.arms) == ["marvel@default - marvel@pid"]


def test_where_nothing_is_whole_the_error_says_why(folder):
    shutil.rmtree(folder / "grade_up-pi")
    for path in folder.glob("*/*.json"):
        path.write_text("{")
    with pytest.raises(
        ValueError, match=r"no results that are whole(.|\n)*startup-pi/zero@default"
    ):
        results.read_results(folder)


@pytest.mark.usefixtures("few_resamples")
def test_tables_say_what_they_leave_out(folder):
    edit(folder / "startup-pi/bc@default.csv", without_last_line)
    tables.main(tables.Args(results=folder.parent.parent))
    text = (folder.parent / "leaderboard.md").read_text()
    assert "LEFT OUT, damaged: startup-pi/bc@default: 31 rows" in text


IN_FLOAT32 = '"backend": "cpu", "precision": "float32"'
MIXTURES = {  # what differs in a cell -> what is said
    "shared code: code1 (11 cells": {"source": "code2"},
    "backend: cpu (7 cells": {"backend": "gpu NVIDIA H200"},
    "products of matrices: float32 (7 cells": {"precision": "float32 with tensorfloat32 products"},
    "flax: 0.12 (11 cells": {"versions": VERSIONS | {"flax": "0.13"}},
    "code of fisor: ": {"algorithm_source": "fisor2"},
}


def test_controllers_of_a_cpu_go_with_what_an_accelerator_trained(folder):
    on_gpu = '"backend": "gpu NVIDIA H200", "precision": "float32 with tensorfloat32 products"'
    for path in folder.glob("*/*.json"):
        where = on_gpu if "algorithm_source" in path.read_text() else IN_FLOAT32
        edit(path, lambda text, where=where: text.replace('"backend": "cpu"', where))
    assert results.read_results(folder).attrs["mixed"] == []
    zero = folder / "startup-pi/zero@default.json"
    edit(zero, lambda text: text.replace('"float32"', '"float64"'))
    with pytest.raises(ValueError, match=r"precision: float32 .* float64"):
        results.read_results(folder)


@pytest.mark.parametrize("said", MIXTURES)
def test_mixed_versions_are_refused_and_both_named(folder, said):
    write_cell(folder, "startup-mixed/fisor@default", **MIXTURES[said])
    path = folder / "startup-mixed/fisor@default.json"
    edit(path, lambda text: text.replace("abc1234", "def5678"))
    with pytest.raises(ValueError, match="mixes versions") as refused:
        results.read_results(folder)
    text = str(refused.value)
    (version,) = MIXTURES[said].values()
    version = version if isinstance(version, str) else version["flax"]
    assert said in text and f"{version} (1 cells: startup-mixed/fisor@default" in text
    assert "abc1234" in text and "def5678" in text and "--force" in text
    assert len(results.read_results(folder, force=True).attrs["mixed"]) == 1


@pytest.mark.usefixtures("few_resamples")
def test_forced_tables_say_that_versions_are_mixed(folder):
    write_cell(folder, "startup-mixed/fisor@default", source="code2")
    out = folder.parent.parent
    with pytest.raises(SystemExit, match="mixes versions"):
        tables.main(tables.Args(results=out))
    assert not (folder.parent / "leaderboard.md").exists()
    for table in ("leaderboard", "seeds"):
        tables.main(tables.Args(table, out, force=True))
        text = (folder.parent / f"{table}.md").read_text()
        assert "MIXED VERSIONS: shared code: code1 (11 cells" in text and "code2 (1 cells" in text


def test_methods_around_different_policies_have_their_own_code(tmp_path):
    for variant, base in (("default", "cpq"), ("bearl", "bearl")):
        name = f"startup-mixed/marvel@{variant}"
        write_cell(tmp_path, name, settings={"base": base}, algorithm_source=base)
    assert results.read_results(tmp_path).attrs["mixed"] == []


def files_of(preset):
    return {p.name: p.read_bytes() for p in sorted(preset.iterdir()) if p.is_file()}


@pytest.mark.usefixtures("few_resamples")
def test_the_same_results_give_the_same_bytes_in_another_process(tmp_path):
    """Another order of files and of sets; every table, figures too."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_all_suites(first / "cpu")
    for path in sorted(first.rglob("*.*"), reverse=True):
        copy = second / path.relative_to(first)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for table in tables.TABLES:
        tables.main(tables.Args(table, first))
    code = "import sys; from pathlib import Path; from benchmarks import tables\n"
    code += f"tables.stats.NUM_RESAMPLES = {stats.NUM_RESAMPLES}\n"
    code += "for t in sys.argv[2:]: tables.main(tables.Args(t, Path(sys.argv[1])))"
    subprocess.run(
        [sys.executable, "-c", code, second, *tables.TABLES],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
    )
    found, again = files_of(first / "cpu"), files_of(second / "cpu")
    assert {f"{table}.{suffix}" for table in tables.TABLES for suffix in ("md", "csv")} <= set(
        found
    )
    assert {"profiles.png", "robustness.png", "marvel-startup.png"} <= set(found)
    assert {"leaderboard-aggregate.csv", "picnn-orderings.csv"} <= set(found)
    assert sorted(found) == sorted(again)
    assert [name for name in found if found[name] != again[name]] == []
    for name in ("picnn.md", "fisor.md", "marvel.md"):  # m and its level
        assert "(Bonferroni: 1 - 0.05 / " in found[name].decode()


# --- The leaderboard ---


def test_rows_have_intervals_over_seeds(folder):
    found = results.read_results(folder)
    board = tables.leaderboard(found).set_index(["scenario", "start group", "method", "data"])
    row = board.loc[("startup", "nominal", "iql", "pi")]
    cells = found[(found.scenario == "startup") & (found.starts == "nominal")]
    iql, bc = (cells[(cells.method == m) & (cells.dataset == "pi")] for m in ("iql", "bc"))
    over = stats.probability_of_improvement(iql.score.to_numpy(), bc.score.to_numpy())
    name = "P(improvement over BC)"
    assert tuple(row[[name, f"{name} low", f"{name} high"]]) == pytest.approx(over)
    assert 0.0 <= over.low < over.value < over.high <= 1.0
    violated = stats.seed_bootstrap(iql.violated.to_numpy(), np.mean)
    bounds = ["P(violation)", "P(violation) low", "P(violation) high"]
    assert tuple(row[bounds]) == pytest.approx(violated)
    itself = board.loc[("startup", "nominal", "bc", "pi")]
    assert itself[name] == 0.5 and np.isnan(itself[f"{name} low"])
    assert np.isnan(row["score CVaR 5 % low"])  # one seed of 8 is no tail
    assert np.isnan(board.loc[("startup", "nominal", "zero", "-"), "P(violation) low"])


def test_the_aggregate_resamples_scenario_by_scenario(folder):
    shutil.rmtree(folder / "grade_up-mixed")
    found = results.read_results(folder)
    together = tables.aggregate(found).set_index(["start group", "method", "data"])
    assert ("nominal", "fisor", "mixed") not in together.index  # in one scenario only
    row = together.loc[("nominal", "iql", "pi")]
    cells = found[(found.starts == "nominal") & (found.method == "iql")]
    scores = [c.score.to_numpy() for _, c in cells.sort_values("scenario").groupby("scenario")]
    expected = stats.seed_bootstrap(scores[::-1])  # start-up comes first
    assert tuple(row[["score IQM", "score IQM low", "score IQM high"]]) == pytest.approx(expected)
    assert row["seeds"] == 16
    assert not len(tables.aggregate(found[found.scenario == "startup"]))


# --- How many seeds are enough ---


def test_widths_fall_with_the_root_of_the_number_of_seeds():
    values = np.random.default_rng(0).normal(size=400)
    for n in (25, 100, 1_000):
        expected = 2.0 * 1.96 * values.std() / np.sqrt(n)
        assert stats.interval_width(values, n, np.mean) == pytest.approx(expected, rel=0.1)
    own = stats.seed_bootstrap(values)
    assert stats.interval_width(values, 400) == pytest.approx(own.high - own.low, rel=0.1)


def test_the_number_of_seeds_is_read_off_the_widths():
    widths = 40.0 / np.sqrt(seed_tables.SIZES)
    for half in (0.2, 1.0, 2.0, 5.0):
        assert seed_tables.seeds_for(half, widths) == pytest.approx((20.0 / half) ** 2, rel=0.05)
    assert seed_tables.seeds_for(50.0, widths) == seed_tables.SIZES[0]
    assert np.isnan(seed_tables.seeds_for(1.0, np.zeros(len(widths))))
    assert seed_tables.enough_text(8.0, False) == "≤ 8"


def test_only_what_goes_beyond_the_seeds_there_is_marked(tmp_path):
    write_cell(tmp_path, "startup-pi/bc@default", seeds=40)
    write_cell(tmp_path, "startup-pi/iql@default", seeds=4)  # too few
    write_cell(tmp_path, "startup-pi/zero@default", seeds=1)
    found = seed_tables.table(results.read_results(tmp_path), REFERENCES)
    assert set(found.method) == {"bc"} and list(found.quantity) == list(seed_tables.QUANTITIES)
    row = seed_tables.shown(found[found.quantity == "score IQM"], "score IQM").iloc[0]
    assert [str(n) for n in seed_tables.SIZES if row[str(n)].endswith("*")] == [
        str(n) for n in seed_tables.SIZES if n > 40
    ]


# --- The README ---


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{tables.README_BEGIN}\nold\n{tables.README_END}\nafter\n")
    return path


@pytest.mark.usefixtures("few_resamples")
def test_the_readme_is_rewritten_between_its_markers(folder, readme):
    arguments = tables.Args(results=folder.parent.parent, readme=readme)
    tables.main(arguments)
    text = readme.read_text()
    assert text.startswith(f"before\n{tables.README_BEGIN}\n\n**startup**\n\n| method | data |")
    assert text.endswith(f"\n\n{tables.README_END}\nafter\n") and "old" not in text
    board = pd.read_csv(folder.parent / "leaderboard.csv").set_index(
        ["scenario", "start group", "method", "data"]
    )
    row = board.loc[("grade_up", "nominal", "fisor", "mixed")]
    assert f"| fisor | mixed | {row['gap closed']:.1f} | {row['score IQM']:.1f} |" in text
    tables.main(arguments)
    assert readme.read_text() == text


def test_what_only_the_committed_results_have_is_shown_and_marked(folder, tmp_path):
    ours = tmp_path / "local" / "quick" / "leaderboard"
    write_cell(ours, "startup-pi/bc@default", seeds=2)
    own = results.read_results(ours)
    found = tables.with_committed(own, folder.parent.parent)
    board = tables.leaderboard(found[found.starts == "nominal"])
    startup = board[board.scenario == "startup"].set_index(["method", "data"])
    assert startup.loc[("bc", "pi"), "seeds"] == 2  # ours, not the committed one
    assert set(startup.index) == {
        *(("bc", "pi"), ("iql", "pi (committed)"), ("bc", "mixed (committed)")),
        *(("fisor", "mixed (committed)"), ("pi_tuned", "-"), ("zero", "-")),
    }
    tables.main(tables.Args(results=tmp_path / "local", beside=folder.parent.parent))
    assert "(committed)" in (tmp_path / "local" / "quick" / "leaderboard.md").read_text()
    with pytest.raises(SystemExit, match="--beside is of the table leaderboard"):
        tables.main(tables.Args("seeds", tmp_path / "local", beside=folder.parent.parent))


@pytest.mark.usefixtures("few_resamples")
def test_tables_for_machines_are_the_rows_of_the_csv(folder, capsys):
    tables.main(tables.Args(results=folder.parent.parent, json=True))
    said = json.loads(capsys.readouterr().out)  # nothing else is there
    table = pd.read_csv(folder.parent / "leaderboard.csv")
    assert (said["table"], said["preset"], said["mixed"]) == ("leaderboard", "cpu", [])
    assert [row["method"] for row in said["rows"]] == list(table.method)
    found = np.array([row["gap closed"] for row in said["rows"]], float)  # null where not known
    np.testing.assert_allclose(found, table["gap closed"])


def test_a_readme_without_markers_is_left_alone(folder, readme):
    readme.write_text(f"{tables.README_END}\n{tables.README_BEGIN}\n")
    with pytest.raises(SystemExit, match="these two lines once each"):
        tables.main(tables.Args(results=folder.parent.parent, readme=readme))
    assert readme.read_text().startswith(tables.README_END)


def test_the_readme_shows_the_preset_with_the_most_cells_and_no_smoke_test(folder, readme):
    out = folder.parent.parent
    shutil.copytree(folder.parent, out / "smoke")
    shutil.copytree(folder.parent, out / "full")
    assert results.presets_there(out, ("leaderboard",)) == ["full", "cpu", "smoke"]
    (out / "full" / "leaderboard/startup-pi/bc@default.csv").unlink()
    (out / "full" / "leaderboard/startup-pi/bc@default.json").unlink()
    assert results.presets_there(out, ("leaderboard",)) == ["cpu", "full", "smoke"]
    with pytest.raises(SystemExit, match="that is cpu, asked for is full"):
        tables.main(tables.Args(results=out, preset="full", readme=readme))
    shutil.rmtree(out / "full")
    with pytest.raises(SystemExit, match="that is cpu, asked for is smoke"):
        tables.main(tables.Args(results=out, preset="smoke", readme=readme))
    shutil.rmtree(folder.parent)
    with pytest.raises(SystemExit, match="no smoke test"):
        tables.main(tables.Args(results=out, readme=readme))
    with pytest.raises(SystemExit, match="not of seeds"):
        tables.main(tables.Args("seeds", out, readme=readme))
    assert "old" in readme.read_text()


def test_the_committed_readme_shows_the_committed_results():
    arguments = tables.Args(results=ROOT / "results")
    preset = tables.presets_of(arguments)[0]
    assert preset != "smoke"
    found = results.read_results(arguments.results / preset / "leaderboard", force=True)
    path = ROOT / "README.md"
    _, block, _ = tables.between_markers(path.read_text(), path)
    assert block == tables.readme_block(found, preset), (
        f"README.md is stale against results/{preset}/leaderboard: run "
        "python -m benchmarks.tables leaderboard --readme README.md"
    )


def test_names_that_are_misspelt_are_guessed(folder):
    with pytest.raises(SystemExit, match=r"preset = ful; allowed: full, cpu.* Did you mean full\?"):
        tables.main(tables.Args(results=folder.parent.parent, preset="ful"))
    with pytest.raises(SystemExit, match=r"table = leaderbord; .* Did you mean leaderboard\?"):
        tables.main(tables.Args("leaderbord"))
    with pytest.raises(SystemExit, match=r"table = x; allowed: leaderboard, seeds"):
        tables.main(tables.Args("x"))
