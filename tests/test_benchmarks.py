"""The benchmark writes whole cells, resumes, and its tables repeat byte for byte."""

import dataclasses
import importlib
import itertools
import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from benchmarks import plan, run, tables, training_sets, worker
from benchmarks.conditions import Condition
from polycstr_jax import evaluate


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Results of two reference rows, BC and the layer on BC at smoke size."""
    out = tmp_path_factory.mktemp("results")
    run.main(run.Args("smoke", out=out, only=("zero", "random", "bc", "bc+")))
    return out


def cell_files(out):
    return sorted(path.name for path in (out / "smoke/leaderboard/startup-pi").iterdir())


def test_every_cell_has_a_table_and_its_provenance(smoke):
    assert cell_files(smoke) == [
        f"{method}@default.{suffix}"
        for method in ("bc+", "bc", "random", "zero")
        for suffix in ("csv", "json")
    ]
    info = json.loads((smoke / "smoke/leaderboard/startup-pi/bc@default.json").read_text())
    assert info["config"]["seed_width"] == 2 and info["config"]["config"]["num_updates"] == 20
    assert {"jax", "python"} <= set(info["versions"])
    assert {"hash", "commit", "hardware", "wall_time_s", "date"} <= set(info)


def test_rows_are_one_a_seed_and_group_of_starts(smoke):
    frame = pd.read_csv(smoke / "smoke/leaderboard/startup-pi/random@default.csv")
    counts = frame.groupby("starts").size().to_dict()
    assert counts == {"nominal": 8, "wide": 8, "hot": 8, "hot_doomed": 8}
    assert (frame.loc[frame.starts == "hot_doomed", "violated"] == 1.0).mean() > 0.9
    assert np.allclose(
        frame.score, evaluate.score(frame.episode_return, "startup"), rtol=1e-3, atol=1e-2
    )


def test_rows_place_returns_between_the_step_and_the_oracle(smoke):
    for method in ("zero", "random", "bc", "bc+"):
        frame = pd.read_csv(smoke / f"smoke/leaderboard/startup-pi/{method}@default.csv")
        doomed = frame.starts == "hot_doomed"
        assert frame.loc[doomed, ["gap_closed", "excess_over_oracle"]].isna().all(axis=None)
        assert (frame.loc[~doomed, "gap_closed"] < 100.0).all()
        assert not tables.beats_an_optimum(frame)
        assert (frame.loc[doomed, "doomed_share"] > 0.0).all()
        assert (frame.loc[doomed, "first_doomed"] == 0.0).all()
        assert (frame.loc[doomed, "lead"] > 0.0).all()
    calm = pd.read_csv(smoke / "smoke/leaderboard/startup-pi/zero@default.csv")
    assert (calm.loc[calm.starts == "nominal", "doomed_share"] == 0.0).all()


def test_a_finished_cell_is_not_run_again_and_a_changed_one_is(smoke, monkeypatch):
    path = smoke / "smoke/leaderboard/startup-pi/zero@default.csv"
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(run, "run_algorithm", lambda *_: pytest.fail("trained again"))
    run.main(run.Args("smoke", out=smoke, only=("zero", "bc")))
    assert path.stat().st_mtime_ns == before
    description = path.with_suffix(".json")
    info = json.loads(description.read_text())
    description.write_text(json.dumps(info | {"hash": "of another configuration"}))
    run.main(run.Args("smoke", out=smoke, only=("zero",), replace=True))
    assert path.stat().st_mtime_ns > before
    assert json.loads(description.read_text())["hash"] == info["hash"]


def test_what_a_trained_cell_compiled_is_freed_with_it(tmp_path, monkeypatch):
    cells = {cell.method: cell for cell in plan.plan_cells(plan.PRESETS["smoke"])}
    found, freed = worker.run_reference(cells["zero"]), []
    monkeypatch.setattr(run, "run_reference", lambda cell: found)
    monkeypatch.setattr(run, "run_algorithm", lambda *_: found)
    monkeypatch.setattr(jax, "clear_caches", lambda: freed.append(True))
    run.main(run.Args("smoke", out=tmp_path, only=("zero", "bc", "bc+")))
    assert len(freed) == 2


def test_an_interrupted_cell_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "to_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main(run.Args("smoke", out=tmp_path, only=("zero",)))
    assert not list(tmp_path.rglob("*.csv")) and not list(tmp_path.rglob("*.json"))


def test_results_older_than_the_oracle_are_refused_by_name(smoke, tmp_path):
    folder = tmp_path / "smoke/leaderboard/startup-pi"
    folder.mkdir(parents=True)
    source = smoke / "smoke/leaderboard/startup-pi/zero@default"
    frame = pd.read_csv(source.with_suffix(".csv")).drop(columns="gap_closed")
    frame.to_csv(folder / "zero@default.csv", index=False)
    info = json.loads(source.with_suffix(".json").read_text())
    del info["table_sha256"]  # results of before have none
    (folder / "zero@default.json").write_text(json.dumps(info))
    with pytest.raises(SystemExit, match=r"zero@default: lacks the columns gap_closed"):
        tables.main(tables.Args(results=tmp_path))


def test_tables_fail_where_a_row_beats_an_optimum(smoke, tmp_path):
    folder = tmp_path / "smoke/leaderboard/startup-pi"
    folder.mkdir(parents=True)
    source = smoke / "smoke/leaderboard/startup-pi/zero@default"
    frame = pd.read_csv(source.with_suffix(".csv")).assign(excess_over_unconstrained=2e-3)
    frame.to_csv(folder / "zero@default.csv", index=False)
    info = json.loads(source.with_suffix(".json").read_text())
    del info["table_sha256"]  # results of before have none
    (folder / "zero@default.json").write_text(json.dumps(info))
    with pytest.raises(SystemExit, match="A ROW BEATS AN OPTIMUM"):
        tables.main(tables.Args(results=tmp_path))
    assert "A ROW BEATS AN OPTIMUM" in (tmp_path / "smoke/leaderboard.md").read_text()


def test_a_table_without_its_description_does_not_count(smoke, tmp_path):
    folder = tmp_path / "startup-pi"
    folder.mkdir()
    (folder / "x@default.csv").write_text("seed,starts\n0,nominal\n")
    with pytest.raises(ValueError, match=r"holds no results that are whole(.|\n)*being written"):
        tables.read_results(tmp_path)


def test_the_hash_covers_configuration_and_source():
    cells = {cell.name: cell for cell in plan.plan_cells(plan.PRESETS["smoke"])}
    quick = {cell.name: cell for cell in plan.plan_cells(plan.PRESETS["cpu"])}
    name = "startup-pi/bc@default"
    assert cells[name].hash != quick[name].hash  # other updates and seeds
    assert cells["startup-pi/zero@default"].hash == quick["startup-pi/zero@default"].hash
    assert len({cell.hash for cell in quick.values()}) == len(quick)
    assert quick[name].config["config"]["num_updates"] == 10_000  # never undertrained to fit


def test_an_accelerator_and_its_precision_are_in_the_hash_of_what_they_train(monkeypatch):
    def planned():
        cells = plan.plan_cells(plan.PRESETS["smoke"])
        return {cell.method: cell for cell in cells if cell.method in ("zero", "bc")}

    def trained(cell):
        return worker.trained_hash(worker.algorithm_of(cell), cell, 0)

    on_cpu = planned()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu = planned()
    with jax.default_matmul_precision("tensorfloat32"):
        rounded = planned()
    found = [on_cpu, on_gpu, rounded]
    assert len({cells["zero"].hash for cells in found}) == 1  # controllers run on a CPU
    assert len({cells["bc"].hash for cells in found}) == 3
    assert len({trained(cells["bc"]) for cells in found}) == 3
    assert rounded["bc"].config["precision"] == "float32 with tensorfloat32 products"


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("polycstr_jax/reactor.py", "bc"),
        ("algos/common.py", "bc"),
        ("algos/bc.py", "bc"),
        ("benchmarks/worker.py", "bc"),
        ("algos/picnn.py", "bc+"),
        ("algos/bc.py", "bc+"),  # what it wraps
        ("algos/iql.py", "iql+"),
    ],
)
def test_an_edit_of_the_code_changes_the_hash(path, method, monkeypatch):
    name = f"startup-pi/{method}@default"

    def planned():
        return {cell.name: cell.hash for cell in plan.plan_cells(plan.PRESETS["smoke"])}[name]

    before, read, added = planned(), Path.read_bytes, b"# a comment\n"

    def edited(self):
        return read(self) + (added if str(self).endswith(path) else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert planned() == before
    added = b"x = 1\n"
    assert planned() != before


def test_what_is_executed_has_neither_comments_nor_docstrings():
    source = b'"""Text."""\n\nx = "#"  # why\n\n\ndef f():\n    """More.\n\n    """\n    return x\n'
    assert plan.executed(source) == b'x = "#"\ndef f():\n    return x'


def test_pi_gains_are_chosen_on_the_tune_starts_alone(monkeypatch):
    worker.pi_on_tune.cache_clear()
    read, starts = [], evaluate.starts
    monkeypatch.setattr(evaluate, "starts", lambda s, kind: read.append(kind) or starts(s, kind))
    chosen = {
        name: worker.choose_pi_gains("startup", name)
        for name in ("pi_best", "pi_safe", "pi_median")
    }
    assert read == ["tune"]
    kp, _, mean_return, violated = worker.pi_on_tune("startup")

    def of(name):
        index = np.flatnonzero((kp == chosen[name][0]).all(axis=1))[0]
        return mean_return[index], violated[index]

    assert of("pi_best")[0] == mean_return.max()
    assert of("pi_median")[0] == np.sort(mean_return)[50]
    assert of("pi_safe")[1] == violated.min() == 0.0
    assert of("pi_safe")[0] == mean_return[violated == 0.0].max()


def test_episodes_are_written_on_request(smoke, tmp_path):
    run.main(run.Args("smoke", out=tmp_path, only=("zero",), episodes=True))
    with np.load(tmp_path / "smoke/leaderboard/startup-pi/zero@default.npz") as arrays:
        assert arrays["nominal_score"].shape == (1, 64)
        mean = arrays["nominal_score"].mean(dtype=np.float64)
    frame = pd.read_csv(tmp_path / "smoke/leaderboard/startup-pi/zero@default.csv")
    assert frame[frame.starts == "nominal"].score.item() == pytest.approx(mean, rel=1e-4)


def test_zeros_have_no_sign_and_dashes_stay():
    assert tables.formatted(-0.04, "{:.1f}") == "0.0"
    assert tables.formatted(-0.06, "{:.1f}") == "-0.1"
    assert tables.formatted("-", "{}") == "-"
    assert tables.formatted(np.nan, "{:.1f}") == "-"


def test_tables_repeat_byte_for_byte_and_warn_of_smoke(smoke):
    arguments = tables.Args(results=smoke)
    tables.main(arguments)
    names = ("leaderboard.md", "leaderboard.csv")
    first = [(smoke / "smoke" / name).read_bytes() for name in names]
    tables.main(arguments)
    assert first == [(smoke / "smoke" / name).read_bytes() for name in names]
    text = first[0].decode()
    assert "the numbers mean nothing" in text
    assert "356 K" in text and "200 intervals" in text  # limit and horizon stand in the header
    assert "| zero | - | 1 |" in text


def test_table_statistics_are_those_of_the_seeds(smoke):
    results = tables.read_results(smoke / "smoke/leaderboard")
    board = tables.leaderboard(results)
    chosen = (board.method == "random") & (board["start group"] == "nominal")
    row = board[chosen].iloc[0]
    frame = pd.read_csv(smoke / "smoke/leaderboard/startup-pi/random@default.csv")
    score = np.sort(frame[frame.starts == "nominal"].score.to_numpy())
    assert row["score IQM"] == pytest.approx(score[2:6].mean())  # the middle half of 8 seeds
    assert row["worst seed"] == score[0]
    assert row["IQM low"] <= row["score IQM"] <= row["IQM high"]
    assert row["seeds"] == 8 and row["starts"] == 64


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"only = sac; allowed: oracle.*bc"):
        run.main(run.Args("smoke", out=tmp_path, only=("sac",)))
    with pytest.raises(SystemExit, match=r"only = bc@paper; allowed: bc@default\.$"):
        run.main(run.Args("smoke", out=tmp_path, only=("zero", "bc@paper")))
    with pytest.raises(SystemExit, match="holds no results of suite leaderboard; run"):
        tables.main(tables.Args(results=tmp_path))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SystemExit, match="cannot be written to"):
        run.main(run.Args("smoke", out=blocked / "below", only=("zero",)))


def test_methods_and_variants_are_selected_by_name():
    cells = plan.plan_cells(plan.SUITES["fisor"].presets["full"], "fisor")
    chosen = run.select(cells, ("zero", "cpq@limit2"))
    assert {(cell.method, cell.variant) for cell in chosen} == {
        ("zero", "default"),
        ("cpq", "limit2"),
    }
    assert run.select(cells, ()) == cells


def test_two_runs_do_not_share_a_folder(tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="in use by another run"):
            run.main(run.Args("smoke", out=tmp_path, only=("zero",)))


def test_a_layer_wraps_the_seeds_of_its_base_trained_anew_or_not(smoke, tmp_path, monkeypatch):
    name = "smoke/leaderboard/startup-pi/bc+@default.csv"
    monkeypatch.setattr(worker, "TRAINED", tmp_path / "trained")  # as on another machine
    run.main(run.Args("smoke", out=tmp_path, only=("bc+",)))
    assert (tmp_path / name).read_bytes() == (smoke / name).read_bytes()
    kept = {path: path.read_bytes() for path in (tmp_path / "trained").iterdir()}
    assert len(kept) == 2  # base and layer
    base = importlib.import_module("algos.bc")
    config = dataclasses.replace(base.PRESETS["default"], num_updates=20)
    keys = jax.vmap(jax.random.key)(np.arange(2))
    train = jax.jit(jax.vmap(base.make_train(config).train, (0, None)))
    alone, _ = train(keys, training_sets.load("startup", "pi"))
    (cell,) = (c for c in plan.plan_cells(plan.PRESETS["smoke"]) if c.method == "bc")
    algorithm = worker.build("bc", cell.algorithm_config, None)

    def states():
        return worker.train(algorithm, training_sets.load("startup", "pi"), cell, 0)[0]

    monkeypatch.setattr(
        worker, "train_batches", lambda *arguments, **_: pytest.fail("trained again")
    )
    assert states().opt_state == ()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), states().params, alone.params
    )
    monkeypatch.undo()
    monkeypatch.setattr(worker, "TRAINED", tmp_path / "trained")
    for path, whole in kept.items():
        path.write_bytes(whole[: len(whole) // 2])  # damaged files
    states()
    whole_again = [len(path.read_bytes()) == len(whole) for path, whole in kept.items()]
    assert sorted(whole_again) == [False, True]  # the base's


# --- The tables of arXiv 2507.22640 ---


def test_the_picnn_suite_covers_methods_variants_and_tracks():
    cells = plan.plan_cells(plan.SUITES["picnn"].presets["cpu"], "picnn")
    names = [cell.name for cell in cells if cell.scenario == "grade_up"]
    for method in ("bc", "bc+", "iql", "iql+"):
        assert f"grade_up-pi/{method}@default" in names
        assert f"grade_up-pi/{method}@published" in names
    assert set(tables.PICNN_VARIANTS) == {cell.variant for cell in cells}
    assert len({cell.hash for cell in cells}) == len(cells)
    trained = [cell for cell in cells if cell.algorithm_config is not None]
    assert all(cell.config["seeds"] >= 10 for cell in trained)
    for cell in cells:
        assert [c.name for c in cell.conditions] == ["nominal", "wide"]
    for cell in trained:  # the same track below and above
        if cell.base_config is not None:
            assert cell.base_config.track == cell.algorithm_config.track
            assert cell.variant != "published" or cell.base_config.track == "published"
    for before, cell in itertools.pairwise(trained):
        if cell.base_config is not None:  # right after what it wraps, or after another layer on it
            assert cell.base_config in (before.algorithm_config, before.base_config)


@pytest.fixture(scope="module")
def episodes():
    """Scores (10 seeds, 64 starts) of a few cells, with known differences."""
    rng = np.random.default_rng(0)
    base = rng.normal(80.0, 5.0, (10, 64))
    return {
        ("bc", "default"): base,
        ("bc+", "default"): base + rng.uniform(1.0, 3.0, (10, 1)),  # better in every seed
        ("bc+", "one-step"): base + rng.uniform(5.0, 6.0, (10, 1)),  # better still
        ("iql", "default"): base + np.where(np.arange(10) % 2, 9.0, -9.0)[:, None],  # undecided
    }


@pytest.fixture(scope="module")
def picnn_results(episodes, tmp_path_factory):
    """A results folder written by hand, with the columns that `run` writes."""
    out = tmp_path_factory.mktemp("picnn")
    folder = out / "quick/picnn/startup-pi"
    folder.mkdir(parents=True)
    low, high = evaluate.score_limits("startup")
    for (method, variant), score in episodes.items():
        metrics = evaluate.EpisodeMetrics(
            **{name: np.zeros_like(score) for name in evaluate.EpisodeMetrics._fields}
        )._replace(score=score, episode_return=low + score / 100.0 * (high - low))
        nominal = Condition("nominal", "nominal")
        config = {"method": method, "seeds": 10, "evaluation": [[nominal], False, 0]}
        config |= {"source": "x", "versions": {}, "backend": "cpu"}
        cell = plan.Cell("startup", "pi", method, variant, config)
        rows = worker.to_rows(cell, nominal, (metrics, None))
        run.write_cell(folder.parent, cell, rows, {"run": 1.0})
    return out


def test_paper_statistics_are_those_of_all_episodes(picnn_results, episodes):
    results = tables.read_results(picnn_results / "quick/picnn")
    table = tables.picnn_tables(results).set_index(["method", "variant"])
    for key, score in episodes.items():
        row = table.loc[key]
        assert row["mean"] == pytest.approx(score.mean(), rel=1e-5)
        assert row["std"] == pytest.approx(score.std(), rel=1e-4)
        assert row["min"] == pytest.approx(score.min(), rel=1e-5)
        assert row["max"] == pytest.approx(score.max(), rel=1e-5)
    assert table.loc[("bc", "default"), "paper mean"] == 41.2
    assert table.loc[("iql", "default"), "paper min"] == 72.7
    assert np.isnan(table.loc[("bc+", "one-step"), "paper mean"])


def test_the_papers_scale_runs_from_the_datas_least_to_its_largest_return(picnn_results):
    results = tables.read_results(picnn_results / "quick/picnn")
    least, largest = run.data_returns("startup")
    row = tables.picnn_tables(results).set_index(["method", "variant"]).loc[("bc", "default")]
    chosen = results[(results.method == "bc") & (results.variant == "default")]
    expected = 100.0 * (chosen.episode_return.mean() - least) / (largest - least)
    assert row["mean, data's min-max"] == pytest.approx(expected, rel=1e-4)


def test_orderings_are_judged_by_their_intervals(picnn_results):
    claims = tables.orderings(tables.read_results(picnn_results / "quick/picnn"))
    verdicts = claims.set_index("claim")["verdict"]
    assert verdicts["BC+ over BC"] == "holds"
    assert verdicts["discounted target over one-step, BC+"] == "fails"
    assert verdicts["IQL over BC"] == "open"
    assert "IQL+ over IQL" not in verdicts  # that cell is not there
    assert claims.set_index("claim")["seeds better"]["IQL over BC"] == "5 of 10"
    assert claims.attrs["comparisons"] == len(claims) == 3
    corrected = claims.set_index("claim")["corrected"]
    assert corrected["IQL over BC"] == "open" and corrected["BC+ over BC"] == "holds"


def test_with_many_comparisons_a_difference_has_to_be_larger(monkeypatch):
    """Ten seeds better by 0.2 to 2: shown alone, open among as many as the tables judge."""
    seeds = np.arange(10)
    cell = pd.DataFrame({"seed": seeds, "starts": "nominal", "scenario": "startup"})
    columns = {"variant": "default", "worst_score": 0.0}
    better = 0.2 * (1.0 + seeds) * (seeds != 3)
    results = pd.concat(
        [
            cell.assign(method="bc", score=0.0, **columns),
            cell.assign(method="bc+", score=better, **columns),
        ]
    )
    (claim,) = (c for c in tables.ORDERINGS if c[0] == "BC+ over BC")
    verdicts = {}
    for number in (1, 60):
        monkeypatch.setattr(tables, "ORDERINGS", (claim,) * number)
        found = tables.orderings(results)
        verdicts[number] = tuple(found[["verdict", "corrected"]].iloc[0])
    assert verdicts == {1: ("holds", "holds"), 60: ("holds", "open")}
    columns = dict.fromkeys(tables.PICNN_COLUMNS, 0) | {"scenario": "startup", "start group": "x"}
    text = tables.picnn_markdown(pd.DataFrame([columns]), found, "text")
    assert "60 comparisons are judged here, so each at 99.917 %" in text


def test_picnn_tables_are_written_and_repeat_byte_for_byte(picnn_results):
    arguments = tables.Args(table="picnn", results=picnn_results)
    names = ("picnn.md", "picnn.csv", "picnn-orderings.csv")
    tables.main(arguments)
    first = [(picnn_results / "quick" / name).read_bytes() for name in names]
    tables.main(arguments)
    assert first == [(picnn_results / "quick" / name).read_bytes() for name in names]
    assert "| bc+ | default | 10 |" in first[0].decode()
    with pytest.raises(SystemExit, match=r"benchmarks.run --suite picnn --out"):
        tables.main(tables.Args(table="picnn", results=picnn_results / "quick"))


def test_code_that_was_changed_is_dirty_and_results_that_were_are_not(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(run, "REPOSITORY", tmp_path)
    assert run.software()["commit"] == "unknown"  # not a repository
    (tmp_path / "results").mkdir()
    code, result = tmp_path / "code.py", tmp_path / "results" / "x.csv"
    for path in (code, result):
        path.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = run.software()["commit"]
    result.write_text("2")
    (tmp_path / "new.txt").write_text("")
    assert run.software()["commit"] == commit and commit.isalnum()
    code.write_text("2")
    assert run.software()["commit"] == f"{commit}-dirty"
