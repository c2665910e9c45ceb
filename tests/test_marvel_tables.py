"""The tables of arXiv 2412.04426: what is counted in training, and what is compared."""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from algos import bearl
from benchmarks import marvel_tables
from benchmarks.comparisons import difference
from benchmarks.plan import (
    CURVES,
    METHODS,
    NOT_ON_CPU,
    ONLINE,
    RESTS_ON,
    SHARED,
    SUITES,
    VARIANTS,
    plan_cells,
)
from benchmarks.tables import markdown_table
from benchmarks.worker import algorithm_of
from polycstr_jax.env import scenario_params
from tests.made_up import noise

SEEDS = 8
ALGOS = Path(__file__).parent.parent / "algos"


def results_of(method, variant, gap):
    """Rows of a cell whose gap closed is `gap` + 0.1 a seed."""
    return pd.DataFrame(
        [
            {
                "scenario": "startup",
                "dataset": "mixed",
                "method": method,
                "variant": variant,
                "starts": kind,
                "seed": seed,
                "gap_closed": gap + 0.1 * seed,
                "violated": 0.25 if kind == "hot" else 0.0,
            }
            for seed in range(SEEDS)
            for kind in ("nominal", "hot")
        ]
    )


def curves_of(cost, num_updates=4, **config):
    """Of seeds that differ by one violating interval each; every other episode runs away."""
    seed, update = np.indices((SEEDS, num_updates)).reshape(2, -1)
    curves = pd.DataFrame({"seed": seed, "update": update} | dict.fromkeys(CURVES, 0.0))
    curves["episode_cost"] = cost + (update == 0) * seed
    curves["above_limit"] = (update == 0).astype(float)
    curves["episode_return"] = -1_000.0 * (update + 1)
    curves["peak_temperature"] = np.where(update % 2, 390.0, 351.0)
    settings = {"num_updates": num_updates, "num_episodes": 1, "gradient_steps": 200}
    settings |= {"cost_limits": [2.0], "offline_steps": 6_000 if "align" in config else 0}
    if "align" in config:
        settings["base"] = "cpq"
    curves.attrs = settings | config
    return curves


ARMS = {
    ("marvel", "default"): (70.0, curves_of(1.0, align="both", vpa_updates=5_000)),
    ("marvel", "warm-start"): (60.0, curves_of(3.0, align="none", vpa_updates=5_000)),
    ("sac_lag", "default"): (75.0, curves_of(20.0)),
}
RESULTS = pd.concat(
    [
        results_of("cpq", "default", -50.0),
        *(results_of(*arm, gap) for arm, (gap, _) in ARMS.items()),
    ]
)
FOUND = {("startup", *arm): curves for arm, (_, curves) in ARMS.items()}


def test_training_is_counted_over_all_episodes_of_a_seed():
    counted = marvel_tables.training_of(curves_of(3.0))
    np.testing.assert_allclose(counted["violating intervals"], 12.0 + np.arange(SEEDS))
    assert set(counted["above the limit"]) == {0.25} and set(counted["runaways"]) == {2}
    assert set(counted["mean return"]) == {-2_500.0}
    late = curves_of(3.0, num_updates=12)
    late["episode_cost"] = np.where(late["update"] < 10, 1.0, 5.0)
    assert set(marvel_tables.training_of(late)["in the first 10 updates"]) == {10.0}
    twice = marvel_tables.training_of(curves_of(3.0, num_episodes=2))
    np.testing.assert_allclose(twice["violating intervals"], 2.0 * (12.0 + np.arange(SEEDS)))


def test_a_row_has_its_budget_and_what_came_of_it():
    table = marvel_tables.table(RESULTS, FOUND).set_index(["method", "variant"])
    assert list(table.index) == [("cpq", "default"), ("sac_lag", "default"), *list(ARMS)[:2]]
    row = table.loc[("marvel", "default")]
    assert row["interactions"] == 4 * 200 and row["gradient steps"] == 4 * 200 + 5_000
    assert row["violating intervals"] == pytest.approx(4.0 + 3.5)
    assert row["gap closed"] == pytest.approx(70.35) and row["P(violation) hot"] == 0.25
    assert table.loc[("marvel", "warm-start"), "gradient steps"] == 4 * 200  # nothing is aligned
    assert table.loc[("cpq", "default"), "interactions"] == 0


def test_arms_are_compared_where_both_are_there():
    claims = marvel_tables.claims(RESULTS, FOUND)
    assert claims["arms"].tolist() == ["marvel@default - marvel@warm-start"]
    assert claims["violating intervals"][0].startswith("-8.0 [")
    assert claims["gap closed"][0].startswith("+10.0 [")
    # Both arms have the same seeds: what they have in common goes.
    assert claims["violating intervals"][0] == "-8.0 [-8.0, -8.0]"
    scratch = difference(pd.Series(np.arange(8.0)), pd.Series(np.arange(8.0)), False)
    assert scratch.value == 0.0 and scratch.low < -0.5 and scratch.high > 0.5
    assert claims.attrs["comparisons"] == 3  # one pair, three measures
    assert claims["apart"][0] == claims["apart, corrected"][0] == "violating intervals, gap closed"


def test_what_is_apart_by_itself_need_not_be_among_many():
    seeds = np.arange(float(SEEDS))
    both = pd.Series(seeds), pd.Series(np.zeros(SEEDS))
    of = {m: {"x": difference(*both, True, m), "y": difference(*both, False, m)} for m in (1, 60)}
    assert marvel_tables.apart(of[1]) == "x, y" and marvel_tables.apart(of[60]) == "-"
    for _, *arms in marvel_tables.CLAIMS:
        for method, variant in arms:
            assert variant in VARIANTS[METHODS[method][0]]


def test_what_was_not_run_is_named():
    absent = dict(line.split(": ") for line in marvel_tables.missing(RESULTS))
    assert absent["grade_up"] == absent["grade_down"] == "all"
    lacking = absent["startup"].split(", ")
    assert {"marvel@fqe", "o2o@pex", "bearl@default"} <= set(lacking)
    assert not {"marvel@default", "cpq@default"} & set(lacking)


def test_curves_are_read_with_the_settings_they_were_made_with(tmp_path):
    folder = tmp_path / "startup-mixed"
    folder.mkdir()
    curves = curves_of(1.0)
    curves.to_csv(folder / "marvel@pid.curves.csv", index=False)
    assert marvel_tables.read_curves(tmp_path) == {}  # not finished
    curves.attrs |= {"offline_steps": 6_000}
    settings = {"config": {"config": curves.attrs, "base_config": {"num_updates": 6_000}}}
    (folder / "marvel@pid.json").write_text(json.dumps(settings))
    found = marvel_tables.read_curves(tmp_path)["startup", "marvel", "pid"]
    assert found.attrs == curves.attrs
    pd.testing.assert_frame_equal(found, curves, check_dtype=False)


def test_tables_and_figure_are_written(tmp_path):
    table, claims = marvel_tables.table(RESULTS, FOUND), marvel_tables.claims(RESULTS, FOUND)
    text = marvel_tables.markdown(table, claims, "text", markdown_table)
    assert "| marvel" in text and "## What helps" in text
    marvel_tables.figure(FOUND, "startup", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_suite_trains_every_arm_around_the_same_offline_policy():
    cells = plan_cells(SUITES["marvel"].presets["cpu"], "marvel")
    arms = {(c.method, c.variant): c for c in cells if c.algorithm_config is not None}
    assert {c.scenario for c in arms.values()} == {"startup"}
    bases = [c.base_config for c in arms.values() if c.method in ("marvel", "o2o")]
    assert len({*bases}) == 3  # CPQ, with masked targets, too, and BEAR-Lag: trained once, and kept
    assert sum(getattr(base, "masked_targets", False) for base in bases) == 3
    assert sum(isinstance(base, bearl.Config) for base in bases) == 2
    for (method, variant), cell in arms.items():
        assert (cell.base_config is None) == (method in ("sac_lag", "cpq", "bearl"))
        if method in ONLINE:
            assert variant in VARIANTS[METHODS[method][0]]
        else:  # the very policies that are handed over
            assert cell.algorithm_config in bases
    assert {method for method, _ in arms} == {"cpq", "bearl", *ONLINE}
    later = {(method, variant) for method in NOT_ON_CPU for variant in NOT_ON_CPU[method]}
    assert not later & set(arms)
    full = plan_cells(SUITES["marvel"].presets["full"], "marvel")
    assert later <= {(c.method, c.variant) for c in full}  # so that what was not run is named
    smoke = plan_cells(SUITES["marvel"].presets["smoke"], "marvel")
    assert {c.variant for c in smoke} == {"default"}


@pytest.mark.usefixtures("quick_to_compile")
def test_a_cell_trains_in_the_environment_of_its_scenario():
    """The first thing that is played begins where the scenario does."""
    cells = plan_cells(SUITES["marvel"].presets["full"], "marvel")
    wide = noise().normaliser._replace(obs_std=jnp.full(9, 1_000.0))
    data = noise()._replace(normaliser=wide)
    for scenario in ("startup", "grade_up"):
        cell = next(c for c in cells if (c.scenario, c.method) == (scenario, "sac_lag"))
        config = dataclasses.replace(
            cell.algorithm_config, hidden=(4,), batch_size=4, gradient_steps=1, capacity=200
        )
        functions = algorithm_of(cell._replace(algorithm_config=config))
        state = jax.jit(functions.init)(jax.random.key(0), data)
        state, _ = jax.jit(functions.run, static_argnums=3)(state, data, jax.random.key(1), 1)
        params = scenario_params(scenario)
        polymer, temperature = 1_000.0 * np.asarray(state.replay.kept.obs[0, 3:5])
        for found, mean, width in zip(
            (polymer, temperature), params.start_mean[3:], params.start_width[3:], strict=True
        ):
            assert abs(found - mean) <= width + 0.01, scenario
    assert scenario_params("startup").start_mean[3] != scenario_params("grade_up").start_mean[3]


def test_arms_are_paired_where_they_begin_with_the_same_policy():
    of_before = marvel_tables.handed_over({"base": "cpq"})
    assert of_before == marvel_tables.handed_over({"base": "cpq", "base_preset": "default"})
    assert of_before != marvel_tables.handed_over({"base": "cpq", "base_preset": "masked"})
    assert of_before != marvel_tables.handed_over({"base": "bearl"})
    assert of_before != marvel_tables.handed_over({})  # from scratch


def imported(file):
    """Files of algos/ that one of them imports."""
    tree = ast.parse((ALGOS / f"{file}.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    whole = {name.name for node in nodes if node.module == "algos" for name in node.names}
    return whole | {n.module.split(".")[1] for n in nodes if n.module.startswith("algos.")}


def test_a_hash_knows_every_file_that_an_algorithm_rests_on():
    # Hashed as what a cell's policy wraps; and what decides no number.
    bases = {"bc", "iql", "cpq", "bearl", "checkpoints"}
    for file, _ in METHODS.values():
        rests_on = set(RESTS_ON.get(file, ()))
        assert imported(file) - bases <= rests_on | set(SHARED), file
        assert rests_on >= {name for f in rests_on for name in RESTS_ON.get(f, ())}, file
    assert imported("o2o_baselines") >= {"marvel", "sac_lag", "common"}
