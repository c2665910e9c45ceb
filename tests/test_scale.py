"""Numbers depend neither on devices nor on hosts nor on interruptions; bad results are named."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest

import polycstr_jax
from algos import common, iql, picnn, sac_lag
from benchmarks import evaluate, plan, run, scale, worker
from polycstr_jax import evaluate as evaluate_module
from tests.made_up import noise

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROOT = Path(__file__).parent.parent
CELL = "smoke/picnn/startup-pi/bc@default"
ONE_CELL = ("--preset", "smoke", "--suite", "picnn", "--only", "bc@default", "--seeds", "5")
NUM_KILLS = int(os.environ.get("POLYCSTR_KILLS", "3"))


def start(out: Path, cache: Path, *arguments, devices: int = 1):
    """A run of 3 parts of 2 seeds each, the last one padded, that has trained nothing before."""
    cache.mkdir(exist_ok=True)
    if not (cache / "jax").exists():
        (ROOT / ".cache" / "jax").mkdir(parents=True, exist_ok=True)
        (cache / "jax").symlink_to(ROOT / ".cache" / "jax")
    settings = {
        "POLYCSTR_CACHE": str(cache),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, "-m", "benchmarks.run", *ONE_CELL, "--out", str(out), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, **pipes)


def finish(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said


def numbers(out: Path) -> tuple[bytes, dict]:
    """The cell's table, and every episode."""
    with np.load(out / f"{CELL}.npz") as arrays:
        episodes = {name: arrays[name].tobytes() for name in arrays}
    return (out / f"{CELL}.csv").read_bytes(), episodes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with one device finds, and how long it takes once all is compiled."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder / "first", folder / "cache", "--episodes"))
    started = time.perf_counter()
    finish(start(folder / "out", folder / "again", "--episodes"))
    assert numbers(folder / "out") == numbers(folder / "first")
    return folder / "out", time.perf_counter() - started


def test_numbers_are_the_same_on_four_devices(alone, tmp_path):
    finish(start(tmp_path / "out", tmp_path / "cache", "--episodes", devices=4))
    assert numbers(tmp_path / "out") == numbers(alone[0])
    info = json.loads((tmp_path / "out" / f"{CELL}.json").read_text())
    assert "4 JAX device(s)" in info["hardware"]
    assert info["hash"] == json.loads((alone[0] / f"{CELL}.json").read_text())["hash"]


def two_processes() -> list[tuple[str, ...]]:
    """The arguments of two processes that find each other at a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = ("--coordinator", address, "--num-processes", "2", "--process-id")
    return [(*together, str(i)) for i in range(2)]


def test_numbers_are_the_same_in_two_processes_of_two_devices(alone, tmp_path):
    asked = ("--episodes", "--save-params")
    # Folders of their own, as on hosts that share none.
    finish(
        *(
            start(tmp_path / str(i), tmp_path / f"cache{i}", *asked, *among, devices=2)
            for i, among in enumerate(two_processes())
        )
    )
    assert numbers(tmp_path / "0") == numbers(alone[0])
    assert not (tmp_path / "1" / f"{CELL}.csv").exists()  # the first one writes
    kept = [{*(tmp_path / f"cache{i}" / "trained").iterdir()} for i in range(2)]
    assert [len(files) for files in kept] == [2, 1]  # each trained its own parts
    saved = [[*(tmp_path / str(i)).glob(f"{CELL}.params/*")] for i in range(2)]
    assert [sorted(path.name for path in paths) for paths in saved] == [["0", "4"], ["2"]]


def test_if_one_process_cannot_begin_none_does(tmp_path):
    (tmp_path / "0").mkdir()
    with run.locked(tmp_path / "0"):
        processes = [
            start(tmp_path / str(i), tmp_path / f"cache{i}", *among)
            for i, among in enumerate(two_processes())
        ]
        said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert f"out = {tmp_path / '0'} is in use by another run" in said[0]
    assert "another process has ended; its message says why" in said[1]
    assert not [text for text in said if "Traceback" in text]


def test_if_one_process_is_killed_the_other_says_so(tmp_path):
    first, second = (
        start(tmp_path / str(i), tmp_path / f"cache{i}", *among)
        for i, among in enumerate(two_processes())
    )
    while not [*(tmp_path / "cache1").glob("trained/*")]:  # before it hands over what it found
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.01)
    second.kill()
    second.communicate()
    said = first.communicate(timeout=600)[0]
    assert first.returncode != 0 and "another process has ended or does not answer" in said
    assert "Traceback" not in said
    assert not (tmp_path / "0" / f"{CELL}.csv").exists()


def test_a_run_that_is_killed_goes_on_where_it_was(alone, tmp_path):
    out, seconds = alone
    draws = random.Random(0)
    for _ in range(NUM_KILLS):
        process = start(tmp_path / "out", tmp_path / "cache", "--episodes")
        time.sleep(draws.uniform(0.2, 1.0) * seconds)
        process.kill()
        process.communicate()
    trained = tmp_path / "cache" / "trained"
    done = {path: path.stat().st_mtime_ns for path in trained.glob("*.msgpack")}
    finish(start(tmp_path / "out", tmp_path / "cache", "--episodes"))
    assert numbers(tmp_path / "out") == numbers(out)
    assert done.items() <= {p: p.stat().st_mtime_ns for p in trained.glob("*.msgpack")}.items()
    files = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    whole = [name for name in files if not name.endswith(".tmp")]
    assert whole == [".lock", "bc@default.csv", "bc@default.json", "bc@default.npz"]


def test_a_training_that_is_killed_goes_on_on_other_devices(alone, tmp_path, monkeypatch):
    """Kept after every update here, every two minutes otherwise; killed amid a part."""
    monkeypatch.setenv("POLYCSTR_KEEP_EVERY", "0")
    training, trained = tmp_path / "cache" / "training", tmp_path / "cache" / "trained"

    def amid_a_part():
        try:
            steps = [path for path in training.glob("*/*") if path.name.isdigit()]
        except FileNotFoundError:  # one ended just now
            return set()
        return {p.parent.name for p in steps if int(p.name) > 2} - {
            p.stem for p in trained.glob("*")
        }

    process = start(tmp_path / "out", tmp_path / "cache", "--episodes")
    while True:
        assert process.poll() is None, process.communicate()[0]
        if amid_a_part():
            process.send_signal(signal.SIGSTOP)  # or it may have ended before it is killed
            if amid_a_part():
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / f"{CELL}.csv").exists()
    finish(start(tmp_path / "out", tmp_path / "cache", "--episodes", devices=2))
    assert numbers(tmp_path / "out") == numbers(alone[0])
    assert not [p for p in training.glob("*/*") if p.name.isdigit()]  # of no use any more


def cell_of(num_seeds=6):
    preset = plan.SUITES["picnn"].presets["smoke"]._replace(num_seeds=num_seeds)
    return next(c for c in plan.plan_cells(preset, "picnn") if c.name.endswith("/bc@default"))


def test_parts_that_are_done_are_not_done_again(tmp_path, monkeypatch):
    cell, done = cell_of(), []
    made = worker.run_parts

    def run_parts(cell, firsts, devices):
        if firsts[0] >= 4:
            raise KeyboardInterrupt
        done.extend(firsts)
        return made(cell, firsts, devices)

    monkeypatch.setattr(worker, "TRAINED", tmp_path / "trained")
    monkeypatch.setattr(worker, "in_flight", lambda *_: 1)
    monkeypatch.setattr(worker, "run_parts", run_parts)
    with pytest.raises(KeyboardInterrupt):
        worker.run_algorithm(cell, None, tmp_path / "parts")
    assert done == [0, 2]
    (tmp_path / "parts" / "2.msgpack").write_bytes(b"half a file")
    done.clear()

    def counted(cell, firsts, devices):
        done.extend(firsts)
        return made(cell, firsts, devices)

    monkeypatch.setattr(worker, "run_parts", counted)
    found = worker.run_algorithm(cell, None, tmp_path / "parts")
    assert done == [2, 4]  # the damaged one, and the one that was interrupted
    whole = worker.run_algorithm(cell)
    jax.tree.map(np.testing.assert_array_equal, found.results, whole.results)
    np.testing.assert_array_equal(found.shown, whole.shown)
    jax.tree.map(np.testing.assert_array_equal, found.worst, whole.worst)


def test_the_worst_episodes_are_those_of_the_worst_seeds(tmp_path):
    score = np.array([[5.0, 1.0], [2.0, 2.0], [9.0, 9.0], [0.0, 8.0]])
    seen = np.arange(4 * 3 * 2 * 5, dtype=np.float32).reshape(4, 3, 2, 5)  # (S, T, E, channels)
    found = worker.worst_episodes(score, seen, first=10)
    assert found["seed"].tolist() == [11, 10, 13] and found["start"].tolist() == [0, 1, 0]
    assert found["score"].tolist() == [2.0, 1.0, 0.0]
    np.testing.assert_array_equal(found["channels"][1], seen[0, :, 1].T)


def small_algorithm(name):
    """A policy, a layer around it, or what trains in the environment; 10 updates each."""
    small = {"hidden": (8,), "batch_size": 16, "num_updates": 10}
    if name == "sac_lag":
        env, params = polycstr_jax.make("startup", max_steps_in_episode=5)
        small |= {"gradient_steps": 2, "num_episodes": 1, "capacity": 50}
        return sac_lag.make_train(sac_lag.Config(**small), env, params)
    policy = iql.make_train(iql.Config(**small))
    return picnn.make_train(picnn.Config(**small, base="iql"), base=policy) if name else policy


@pytest.mark.parametrize("name", ["", "picnn", "sac_lag"], ids=["iql", "layer", "online"])
def test_a_training_that_is_interrupted_goes_on_where_it_was(name, tmp_path, monkeypatch):
    algorithm = small_algorithm(name)
    keys = jax.vmap(jax.random.key)(np.arange(4))
    batches = [common.Batch(keys[:2], noise()), common.Batch(keys[2:], noise())]
    if algorithm.base is not None:
        init = jax.vmap(algorithm.base.init, (0, None))
        batches = [b._replace(base_states=init(b.rngs, b.data)) for b in batches]
    whole, _ = common.train_batches(algorithm, batches, 10, 5)
    keep, calls = common.checkpoints.keep_training, []
    folders = [tmp_path / "a", tmp_path / "b"]

    def interrupted(*arguments):
        keep(*arguments)
        calls.append((arguments[0].name, arguments[1]))
        if calls[:1] == [("a", 1)] and len(calls) == 5:  # the first time
            raise KeyboardInterrupt

    monkeypatch.setattr(common, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(common.checkpoints, "keep_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        common.train_batches(algorithm, batches, 10, 5, folders)
    kept = [[path.name for path in folder.iterdir()] for folder in folders]
    assert kept == [["3"], ["2"]]  # each goes on from its own
    (folders[0] / "4").mkdir()  # begun, and not whole
    calls.clear()
    found, _ = common.train_batches(algorithm, batches, 10, 5, folders)
    assert calls == [("a", 4), ("b", 3), ("a", 5), ("b", 4), ("b", 5)]
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    full = common.checkpoints.named_if_full(tmp_path)
    with pytest.raises(OSError, match="cannot be written to: no space"), full:
        raise ValueError("no space")  # as orbax says it


def test_a_training_is_kept_by_one_process_at_a_time(tmp_path):
    with worker.kept_in(tmp_path / "x") as first, worker.kept_in(tmp_path / "x") as second:
        assert first == tmp_path / "x" and second is None
    with worker.kept_in(tmp_path / "x") as third:
        assert third == first


def test_padding_hides_no_seed(tmp_path):
    score = -np.arange(8.0)[:, None] * np.ones((8, 2))  # padded seeds are the worst
    seen = np.zeros((8, 3, 2, 5), np.float32)
    metrics = evaluate_module.EpisodeMetrics(*([score] * 13))
    found = worker.outcome_of({"nominal": (metrics, (None, seen))}, {}, {}, 8, 9)
    assert found.worst["seed"].tolist() == [8]


def test_saved_policies_play_as_they_did(tmp_path, capsys):
    arguments = {"only": ("bc", "bc+"), "seeds": 4, "save_params": True, "trajectories": True}
    run.main(run.Args("smoke", "picnn", tmp_path, **arguments))
    folder = tmp_path / "smoke/picnn/startup-pi"
    for method in ("bc", "bc+"):  # a policy, and a layer around one
        out = tmp_path / f"{method}.csv"
        capsys.readouterr()
        evaluate.main(
            evaluate.Args(folder / f"{method}@default.params", ("nominal", "wide"), out, json=True)
        )
        said = json.loads(capsys.readouterr().out)
        assert said["made"]["scenario"] == "startup" and said["rows"][0]["seeds"] == 4
        of_run = pd.read_csv(folder / f"{method}@default.csv")
        again = pd.read_csv(out)[of_run.columns]
        pd.testing.assert_frame_equal(again, of_run, rtol=1e-5)
    with np.load(folder / "bc@default.trajectories.npz") as shown:
        assert shown["quantiles"].shape == (5, 5, 200) and shown["worst"].shape == (3, 5, 200)
        assert np.all(np.diff(shown["quantiles"], axis=0) >= 0.0)
        peak, temperature = shown["quantiles"][2, 2], shown["quantiles"][2, 1]
        assert np.all(peak >= temperature - 1e-3)
        of_run = pd.read_csv(folder / "bc@default.csv")
        worst = of_run[of_run.starts == "nominal"].sort_values("score").seed.iloc[:3]
        assert shown["worst_seed"].tolist() == worst.tolist()
    with pytest.raises(SystemExit, match=r"conditions = fuling 10; allowed: .*mean fouling 10"):
        evaluate.main(evaluate.Args(folder / "bc@default.params", ("fuling 10",)))
    with pytest.raises(SystemExit, match="holds no policies"):
        evaluate.main(evaluate.Args(tmp_path))
    (folder / "bc+@default.params" / "0").rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="begins with seed 2; allowed: parts of one run"):
        evaluate.main(evaluate.Args(folder / "bc+@default.params"))
    next((folder / "bc@default.params" / "0").glob("*_METADATA")).unlink()
    with pytest.raises(SystemExit, match="no whole checkpoint"):
        evaluate.main(evaluate.Args(folder / "bc@default.params"))


# --- Bad input ---


def test_damaged_tables_are_named_skipped_and_repaired_on_request(tmp_path, capsys):
    arguments = {"out": tmp_path, "only": ("zero", "step"), "scenarios": ("startup",)}
    run.main(run.Args("smoke", "picnn", **arguments))
    table = tmp_path / "smoke/picnn/startup-pi/zero@default.csv"
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    other = tmp_path / "smoke/picnn/startup-pi/step@default.json"
    other.write_text(other.read_text()[:40])
    with pytest.raises(SystemExit) as ended:
        run.main(run.Args("smoke", "picnn", **arguments))
    assert ended.value.code == 1  # not all that was asked for is there
    said = capsys.readouterr().err
    assert "zero@default.csv is damaged" in said and "step@default.csv is damaged" in said
    assert table.read_bytes() == whole[:-20]
    run.main(run.Args("smoke", "picnn", repair=True, **arguments))
    assert table.read_bytes() == whole and json.loads(other.read_text())["hash"]


def test_cells_of_other_settings_are_not_replaced_unasked(tmp_path, capsys):
    arguments = {"out": tmp_path, "only": ("zero", "random"), "scenarios": ("startup",)}
    run.main(run.Args("smoke", "picnn", **arguments))
    path = tmp_path / "smoke/picnn/startup-pi/zero@default.json"
    info = json.loads(path.read_text())
    config = info["config"] | {"source": "older", "gone": {"rate": 0.1}}
    older = json.dumps(info | {"config": config, "hash": "another", "commit": "abc1234"})
    path.write_text(older)
    said = (
        r"startup-pi/zero@default: (kept without --replace: )?commit abc1234, .*: "
        r"gone.rate 0.1, not there; source older, not \w{16}"
    )
    with pytest.raises(SystemExit, match=said + r"\n.*--replace, name another folder") as ended:
        run.main(run.Args("smoke", "picnn", **arguments))
    assert "random" not in str(ended.value)
    capsys.readouterr()
    run.main(run.Args("smoke", "picnn", dry_run=True, **arguments))
    shown = capsys.readouterr().out
    assert re.search(said, shown) and "(1 other, 1 there)" in shown
    # What is damaged can be repaired beside it.
    table = path.with_name("random@default.csv")
    whole = table.read_bytes()
    table.write_bytes(whole[:-20])
    run.main(run.Args("smoke", "picnn", repair=True, **arguments))
    assert "(1 made, 1 other)" in capsys.readouterr().out
    assert table.read_bytes() == whole and path.read_text() == older
    run.main(run.Args("smoke", "picnn", dry_run=True, replace=True, **arguments))
    assert "(1 there, 1 to replace)" in capsys.readouterr().out and path.read_text() == older
    run.main(run.Args("smoke", "picnn", replace=True, json=True, **arguments))
    became = {x["cell"]: x["became"] for x in json.loads(capsys.readouterr().out)["cells"]}
    assert became == {"startup-pi/zero@default": "made", "startup-pi/random@default": "there"}
    assert json.loads(path.read_text())["hash"] == info["hash"]


def test_what_is_asked_for_later_is_made_later_and_what_is_old_goes(tmp_path):
    arguments = {"out": tmp_path, "only": ("zero",), "scenarios": ("startup",)}
    run.main(run.Args("smoke", "picnn", **arguments))
    path = tmp_path / "smoke/picnn/startup-pi/zero@default.json"
    run.main(run.Args("smoke", "picnn", trajectories=True, episodes=True, **arguments))
    shown = path.with_suffix(".trajectories.npz")
    assert shown.exists() and path.with_suffix(".npz").exists()
    before = shown.stat().st_mtime_ns
    run.main(run.Args("smoke", "picnn", trajectories=True, **arguments))
    assert shown.stat().st_mtime_ns == before
    shown.write_bytes(shown.read_bytes()[:-30])  # cut off: as if it were not there
    run.main(run.Args("smoke", "picnn", trajectories=True, **arguments))
    assert run.is_whole(shown, [])
    run.main(run.Args("smoke", "picnn", force=True, **arguments))
    assert path.exists() and not shown.exists()  # of the table that was replaced


def test_what_a_run_would_do_and_did_is_said_to_people_and_machines(tmp_path, capsys):
    arguments = {"out": tmp_path, "only": ("zero", "step"), "scenarios": ("startup",)}
    run.main(run.Args("smoke", "picnn", dry_run=True, **arguments))
    said = capsys.readouterr().out
    assert said.split("\n")[:2] == ["startup-pi/step@default", "startup-pi/zero@default"]
    assert "(2 to do)" in said and not list(tmp_path.iterdir())
    with run.locked(tmp_path):  # while a run is going on
        run.main(run.Args("smoke", "picnn", dry_run=True, **arguments))
    capsys.readouterr()
    run.main(run.Args("smoke", "picnn", **(arguments | {"only": ("zero",)})))
    said = capsys.readouterr()
    assert "1/1 startup-pi/zero@default: " in said.err  # no bar in a pipe
    run.main(run.Args("smoke", "picnn", json=True, **arguments))
    said = json.loads(capsys.readouterr().out)
    assert said["results"] == str(tmp_path / "smoke/picnn")
    became = {cell["cell"]: cell["became"] for cell in said["cells"]}
    assert became == {"startup-pi/step@default": "made", "startup-pi/zero@default": "there"}
    info = json.loads((tmp_path / "smoke/picnn/startup-pi/step@default.json").read_text())
    assert info["hash"] == said["cells"][0]["hash"]


def test_a_full_disc_leaves_nothing_half_written(tmp_path):
    code = (
        "import resource, runpy\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))\n"
        "runpy.run_module('benchmarks.run', run_name='__main__')\n"
    )
    asked = ("--preset", "smoke", "--suite", "picnn", "--only", "zero", "--out", str(tmp_path))
    finished = subprocess.run(
        [sys.executable, "-B", "-c", code, *asked],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},  # or halves of programs stay
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1 and "Make room and run it again" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ("icl",)}, r"only = icl; allowed: .*iql.* Did you mean iql"),
        ({"only": ("bc@defualt",)}, r"only = bc@defualt; allowed: .* Did you mean bc@default"),
        ({"scenarios": ("start-up",)}, r"scenarios = start-up; allowed: .* Did you mean startup"),
        ({"seeds": 0}, r"seeds = 0; allowed: 1 or more"),
        ({"devices": 99}, r"devices = 99; allowed: 1 to"),
    ],
)
def test_bad_arguments_are_named_with_what_is_like_them(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run.main(run.Args("smoke", "picnn", tmp_path, **arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--coordinator localhost:1", r"num-processes, process-id: needed too"),
        (
            "--coordinator localhost:1 --num-processes 2 --process-id 2",
            r"process-id = 2; allowed: 0 to 1",
        ),
        (
            "--coordinator localhost:1 --num-processes 0 --process-id 0",
            r"num-processes = 0; allowed: 1 or more",
        ),
        ("--coordinator foo --num-processes 2 --process-id 1", r"coordinator = foo; .*HOST:PORT"),
        ("--distributed", r"distributed: .*--coordinator HOST:PORT"),  # JAX has begun in this one
    ],
)
def test_processes_that_cannot_work_together_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        scale.prepare(["--preset", "smoke", *arguments.split()])


@pytest.mark.parametrize("seconds", ["abc", "-1", "nan", ""])
def test_how_often_a_training_is_kept_is_a_time(seconds, monkeypatch):
    monkeypatch.setenv("POLYCSTR_KEEP_EVERY", seconds)
    with pytest.raises(SystemExit, match=f"POLYCSTR_KEEP_EVERY = {seconds}; allowed: seconds"):
        scale.prepare(["--preset", "smoke"])


def test_threads_that_are_no_number_are_refused(monkeypatch):
    monkeypatch.setenv("NPROC", "many")
    with pytest.raises(SystemExit, match="NPROC = many; allowed: 1 or more"):
        scale.prepare([])


def test_jax_has_to_find_a_cpu():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--dry-run"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1 and finished.stderr.startswith("JAX_PLATFORMS = cuda; allowed:")
    assert "Traceback" not in finished.stderr


def test_as_many_programs_are_in_flight_as_the_memory_holds():
    free = {"bytes_limit": 1_000, "bytes_in_use": 500}
    device = SimpleNamespace(memory_stats=lambda: free)
    assert scale.free_bytes(device) == 500
    assert scale.in_flight(150, device) == 2 and scale.in_flight(300, device) == 1
    assert scale.in_flight(9_999, device) == 1  # one is tried anyway
    assert scale.free_bytes(SimpleNamespace(memory_stats=lambda: None)) > 1 << 20
    assert worker.in_flight(cell_of(), jax.local_devices()) == 2
