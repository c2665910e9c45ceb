"""The tables of arXiv 2401.10700: statistics of made-up results, and the paper's own table."""

import numpy as np
import pandas as pd
import pytest

from algos import fisor
from benchmarks import fisor_tables, training_sets
from benchmarks.plan import ELSEWHERE, ON_AN_ACCELERATOR, SUITES, plan_cells
from benchmarks.tables import markdown_table
from polycstr_jax import SCENARIOS


def cell(method, variant, violated, score, dataset="mixed", scenario="startup", num=8):
    """Results of 8 seeds on nominal starts."""
    seeds = np.arange(num)
    return pd.DataFrame(
        {
            "seed": seeds,
            "scenario": scenario,
            "starts": "nominal",
            "method": method,
            "variant": variant,
            "dataset": dataset,
            "score": score + seeds,
            "gap_closed": 0.5 * score,
            "violated": violated,
            "violation_steps": 3.0 * np.asarray(violated),
            "runaway": 0.0,
            "doomed_share": 0.0,
        }
    )


RESULTS = pd.concat(
    [
        cell("oracle", "default", 0.0, 110.0, dataset="pi", num=1),
        cell("bc", "default", 0.5, 60.0),
        cell("fisor", "default", np.arange(8) == 3, 80.0),
        cell("fisor", "no-hj-2", 0.25, 70.0),
        cell("fisor", "n-1", np.arange(8) / 8.0, 75.0),
        cell("fisor", "default", 0.0, 60.0, dataset="mixed10"),
    ],
    ignore_index=True,
)


def rows():
    return fisor_tables.table(RESULTS, ["oracle"]).set_index(["method", "variant", "data"])


def test_rows_come_in_order_and_are_statistics_over_seeds():
    found = rows()
    assert [*found.index] == [
        ("oracle", "-", "-"),
        ("bc", "default", "mixed"),
        ("fisor", "default", "mixed"),
        ("fisor", "no-hj-2", "mixed"),
        ("fisor", "n-1", "mixed"),
        ("fisor", "default", "mixed10"),
    ]
    ours = found.loc[("fisor", "default", "mixed")]
    assert ours["reward"] == pytest.approx(0.835) and ours["gap closed"] == 40.0
    assert ours["P(violation)"] == 0.125 and ours["P(any violation)"] == 0.125
    assert ours["its interval"] == "[0.00, 0.53]"  # 1 of 8, Clopper-Pearson


def test_one_row_is_normalised_for_every_limit_but_those_trained_for_one():
    found = rows()
    bc = found.loc[("bc", "default", "mixed")]  # 1.5 violating intervals an episode
    assert [bc[f"cost L={x}"] for x in (0, 2, 5)] == pytest.approx([2.5, 0.75, 0.3])
    own = found.loc[("fisor", "no-hj-2", "mixed")]
    assert own["cost L=2"] == pytest.approx(0.375)
    assert np.isnan(own["cost L=0"]) and np.isnan(own["cost L=5"])
    for method in fisor_tables.LIMITED:
        row = fisor_tables.cell_row(cell(method, "limit5", 0.5, 60.0))
        assert row["cost L=5"] == pytest.approx(0.3) and np.isnan(row["cost L=2"])


def test_comparisons_say_who_violates_less():
    found = fisor_tables.claims(RESULTS).set_index(["against", "variant"])
    bc = found.loc[("bc", "default")]
    assert bc["P(violation)"] == pytest.approx(0.125 - 0.5) and bc["fewer violations"] == "yes"
    assert bc["mean reward"] == pytest.approx(0.2)
    assert bc["corrected"] == "open"  # of 3 comparisons, with 7 degrees of freedom
    assert found.loc[("fisor", "no-hj-2"), "fewer violations"] == "open"
    assert ("fisor", "default") not in found.index  # not against itself
    # Paired: a constant difference of variants of FISOR has no spread; of BC it has.
    assert found.loc[("fisor", "no-hj-2"), "mean reward, interval"] == "[0.100, 0.100]"
    assert bc["mean reward, interval"] != "[0.200, 0.200]"
    assert fisor_tables.claims(RESULTS).attrs["comparisons"] == 3
    few = fisor_tables.claims(RESULTS[RESULTS.seed < 4])
    assert set(few["fewer violations"]) == {"too few seeds"}


def test_what_was_not_run_is_named():
    missing = fisor_tables.missing(RESULTS)
    assert {"fisor@paper", "fisor@first-commit", "fisor@tau-0.5", "cpq@limit0"} <= set(missing)
    assert "coptidice@limit5" in missing
    places = {name: where for name, _, where in (line.partition(" ") for line in missing)}
    assert places["fisor@n-1"] == "(grade_down-mixed, grade_up-mixed)"
    ours = places["fisor@default"]
    assert "startup-mixed50" in ours and "grade_up-mixed10" in ours
    assert "startup-mixed," not in ours and "startup-mixed10" not in ours


def test_a_method_that_is_not_known_yet_comes_last_of_its_data():
    added = (("coptidice", "limit2"), ("cpq", "limit2"), ("new", "x"))
    more = pd.concat([RESULTS, *(cell(*name, 0.1, 50.0) for name in added)])
    order = [*fisor_tables.table(more, ["oracle"]).method]
    assert order == ["oracle", "bc", "cpq", "coptidice", *["fisor"] * 3, "new", "fisor"]


def test_the_papers_table_adds_up_to_its_own_averages():
    paper = fisor_tables.paper_table()
    assert paper.groupby("suite").size().to_dict() == {
        "Bullet-Safety-Gym": 9,
        "MetaDrive": 10,
        "Safety-Gymnasium": 10,
    }
    for _, suite in paper.groupby("suite"):
        tasks = suite[suite.task != "average"].drop(columns=["suite", "task"]).mean()
        average = suite[suite.task == "average"].iloc[0]
        for name in ("FISOR reward", "FISOR cost", "BC reward", "BC cost"):
            assert tasks[name] == pytest.approx(average[name], abs=0.011), name


def test_the_markdown_marks_the_papers_table_as_another_benchmark():
    found, compared = fisor_tables.table(RESULTS, ["oracle"]), fisor_tables.claims(RESULTS)
    text = fisor_tables.markdown(found, compared, "text", markdown_table)
    assert "another benchmark" in text and "| CarButton1 |" in text.replace("  ", " ")
    assert "## startup, nominal" in text and "| fisor | no-hj-2 | mixed |" in text


def test_quick_trains_everything_in_startup_and_the_main_variants_elsewhere():
    cells = {c.name: c for c in plan_cells(SUITES["fisor"].presets["cpu"], "fisor")}
    trained = {name for name, c in cells.items() if c.algorithm_config is not None}
    for scenario in ("grade_down", "grade_up"):
        assert {n for n in trained if n.startswith(scenario)} == {
            *(f"{scenario}-mixed/fisor@{name}" for name in ELSEWHERE if name != "limit2"),
            *(f"{scenario}-mixed/{method}@limit2" for method in ("cpq", "coptidice", "bcql")),
            *(f"{scenario}-mixed/{method}@default" for method in ("bc", "iql")),
        }
    variants = set(fisor.PRESETS) - set(ON_AN_ACCELERATOR)
    assert {f"startup-mixed/fisor@{variant}" for variant in variants} <= trained
    assert {f"startup-{name}/fisor@default" for name in training_sets.NAMES[1:]} <= trained
    for method in ("cpq", "coptidice", "bcql"):
        assert {f"startup-mixed/{method}@limit{limit}" for limit in (0, 2, 5)} <= trained
    full = {c.name for c in plan_cells(SUITES["fisor"].presets["full"], "fisor")}
    assert set(cells) < full and {f"{s}-mixed10/bc@default" for s in SCENARIOS} <= full
