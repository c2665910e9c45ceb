"""Other people's code runs on our environments as it is: PPO in purejaxrl's style here, and
Stable-Baselines3 and rejax where their virtual environment is."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from benchmarks import clients, clients_rejax, clients_sb3
from polycstr_jax import evaluate
from polycstr_jax.gymnasium_env import PolyCSTRGymnasium
from polycstr_jax.wrappers import LegacyStepAPI, LogWrapper
from tests import ppo_in_one_file as ppo

ROOT = Path(__file__).resolve().parent.parent
CLIENT_PYTHON = ROOT / clients.Args.peer_python
HORIZON = 10
CONFIG = ppo.Config()

with_clients = pytest.mark.skipif(
    not CLIENT_PYTHON.exists(), reason=".venv-clients is not there; `make clients` makes it"
)


# --- PPO in purejaxrl's style ---


@pytest.fixture(scope="module")
def trained(quick_to_compile):
    """Two seeds of each variant: what `train` returned, on the host."""
    env, params = polycstr_jax.make("grade_up", max_steps_in_episode=HORIZON)
    logged = LogWrapper(env)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    found = {}
    for variant, wrapped in (("six", logged), ("five", LegacyStepAPI(logged))):
        train = ppo.make_train(CONFIG, wrapped, params, five_values=variant == "five")
        with jax.numpy_rank_promotion("allow"):  # other people's code broadcasts
            found[variant] = jax.device_get(jax.jit(jax.vmap(train))(keys))
    return found


def whole_episodes(x):
    """(seeds, updates, intervals, lanes) as (seeds, episodes, intervals of an episode, lanes)."""
    x = x.reshape((2, -1, CONFIG.num_envs))
    return x[:, : x.shape[1] // HORIZON * HORIZON].reshape((2, -1, HORIZON, CONFIG.num_envs))


@pytest.mark.parametrize("variant", ["six", "five"])
def test_a_ppo_loop_learns_to_raise_the_grade(trained, variant):
    """From the spread of a random policy to two thirds of the squared error, within 45 episodes."""
    _, (batch, _) = trained[variant]
    returns = whole_episodes(batch.reward).sum(axis=2).mean(axis=2)  # (seeds, episodes)
    first, last = returns[:, :3].mean(axis=1), returns[:, -3:].mean(axis=1)
    assert np.all(last > 0.65 * first), "rewards are negative"


def test_both_apis_play_the_same_episodes_until_the_first_update(trained):
    six, five = (jax.tree.map(lambda x: x[:, 0], trained[v][1][0]) for v in ("six", "five"))
    for name in ("obs", "action", "log_prob", "value", "reward", "done"):
        np.testing.assert_allclose(getattr(six, name), getattr(five, name), rtol=1e-5, atol=1e-5)
    for name in six.info:
        np.testing.assert_allclose(six.info[name], five.info[name], rtol=1e-4, atol=1e-4)
    assert not np.array_equal(six.obs[0], six.obs[1]), "the seeds differ"


@pytest.mark.parametrize("variant", ["six", "five"])
def test_statistics_of_the_training_are_sums_of_its_rewards(trained, variant):
    _, (batch, _) = trained[variant]
    done = whole_episodes(batch.done)
    assert done[:, :, -1].all() and not done[:, :, :-1].any()
    told = {
        name: whole_episodes(batch.info[name])[:, :, -1] for name in batch.info if "_ep" in name
    }
    by_hand = whole_episodes(batch.reward).sum(axis=2)
    np.testing.assert_allclose(told["returned_episode_returns"], by_hand, rtol=1e-4)
    costs = whole_episodes(batch.info["cost"]).sum(axis=2)
    np.testing.assert_array_equal(told["returned_episode_cost"], costs)
    assert np.all(told["returned_episode_lengths"] == HORIZON)


def test_only_six_values_tell_the_end_of_time_from_the_end_of_the_plant(trained):
    """Advantages by hand, in float64; what differs is the value of the future at a time-out."""
    gamma, decay = CONFIG.gamma, CONFIG.gamma * CONFIG.gae_lambda
    for variant in ("six", "five"):
        _, (batch, advantage) = trained[variant]
        assert batch.done[:, 0].sum() == 2 * CONFIG.num_envs  # of seeds and environments, once each
        assert batch.terminated[:, 0].any() == (variant == "five")
        for seed, lane in ((0, 0), (1, 5)):
            one = jax.tree.map(lambda x: np.asarray(x[seed, 0, :, lane], np.float64), batch)  # noqa: B023
            value = one.value
            after = 0.0
            expected = np.zeros(CONFIG.num_steps)
            for k in reversed(range(CONFIG.num_steps)):
                if not one.done[k] and k + 1 < CONFIG.num_steps:
                    np.testing.assert_allclose(one.next_value[k], value[k + 1], atol=1e-5)
                future = 0.0 if variant == "five" and one.done[k] else one.next_value[k]
                delta = CONFIG.reward_scale * one.reward[k] + gamma * future - value[k]
                after = delta + decay * (0.0 if one.done[k] else after)
                expected[k] = after
            np.testing.assert_allclose(advantage[seed, 0, :, lane], expected, rtol=1e-3, atol=1e-4)
    # The final observation is an interval after the last one, not the start of another episode.
    (six, _) = trained["six"][1]
    end = HORIZON - 1
    moved = np.abs(six.info["final_observation"][:, 0, end] - six.obs[:, 0, end])
    assert np.all(moved[..., 4] < 5.0) and np.all(six.done[:, 0, end])
    controls, restarted = (
        six.info["final_observation"][:, 0, end, :, 7:],
        six.obs[:, 0, end + 1, :, 7:],
    )
    assert np.all(np.abs(controls - restarted).max(axis=-1) > 0.0)


# --- Our functions in the clients' scripts ---


def test_both_scripts_see_the_same_episodes():
    """Holding the inputs from two nominal starts, through Gymnasium and through JAX."""
    returns, costs, runaways = clients_sb3.play(
        PolyCSTRGymnasium("startup"), lambda _: np.zeros(2, np.float32), 2
    )
    gymnasium_row = clients_sb3.summary(returns, costs, runaways)
    (jax_row,) = clients_rejax.on_starts(
        lambda _: lambda obs, rng: jnp.zeros(2), jnp.zeros((1,)), 2
    )
    assert gymnasium_row.keys() == jax_row.keys()
    for name, value in gymnasium_row.items():
        np.testing.assert_allclose(value, jax_row[name], rtol=1e-4)
    assert returns[0] != returns[1]


def test_a_summary_is_what_it_says():
    found = clients_sb3.summary([-1.0, -2.0, -9.0], [0.0, 3.0, 0.0], [False, True, True])
    assert found == {
        "mean_return": -4.0,
        "median_return": -2.0,
        "cost": 1.0,
        "violated": pytest.approx(1 / 3),
        "runaway": pytest.approx(2 / 3),
    }


def test_random_actions_fill_the_action_space():
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.vmap(lambda key: clients_rejax.random_policy(None)(None, key))(keys)
    assert drawn.shape == (500, 2)
    assert -1.0 <= drawn.min() < -0.98 and 0.98 < drawn.max() <= 1.0


@pytest.mark.parametrize("script", [clients_sb3, clients_rejax])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds = none; allowed: one or more"),
        ({"num_starts": 65}, "num-starts = 65; allowed: 1 to 64"),
        ({"num_starts": 0}, "num-starts = 0; allowed: 1 to 64"),
    ],
)
def test_scripts_refuse_what_makes_no_sense(script, changes, message):
    with pytest.raises(SystemExit, match=message):
        script.main(script.Args(**changes))


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        (clients_sb3, {"steps": 0}, "steps = 0; allowed: 1 or more"),
        (clients_rejax, {"ppo_steps": 0}, "ppo-steps = 0; allowed: 1 or more"),
        (clients_rejax, {"sac_steps": -1}, "sac-steps = -1; allowed: 1 or more"),
    ],
)
def test_scripts_refuse_to_train_for_nothing(script, changes, message):
    with pytest.raises(SystemExit, match=message):
        script.main(script.Args(**changes))


@pytest.mark.parametrize(
    ("script", "theirs"),
    [
        (clients_sb3, {"gymnasium", "stable_baselines3", "numpy"}),
        (clients_rejax, {"rejax", "jax", "numpy"}),
    ],
)
def test_scripts_know_nothing_of_ours_but_the_package(script, theirs):
    imported = set()
    for node in ast.walk(ast.parse(Path(script.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == theirs | {"polycstr_jax", "rich", "tyro"}


# --- The comparison ---


def report(client, algorithms):
    """What a script prints, made up: each seed gains 1,000, of 2 seeds."""
    result = {"cost": 2.0, "violated": 0.5, "runaway": 0.25, "median_return": -1.0}
    rows = [{"algorithm": "random", "policy": "random", "seed": 0, "mean_return": -9e3} | result]
    for algorithm in algorithms:
        for policy, level in (("untrained", -3_000.0), ("trained", -2_000.0)):
            rows += [
                {"algorithm": algorithm, "policy": policy, "seed": s, "mean_return": level + s}
                | result
                for s in (0, 1)
            ]
    return {
        "client": client,
        "versions": {"jax": "0"},
        "settings": {},
        "wall_clock": 10.0,
        "rows": rows,
        "seconds": [{"algorithm": a, "seeds": 2, "training": 3.0} for a in algorithms],
    }


def test_a_run_writes_a_table_without_paths(tmp_path, monkeypatch):
    made_up = {
        "benchmarks.clients_sb3": report("Stable-Baselines3", ["SAC"]) | {"check_env": []},
        "benchmarks.clients_rejax": report("rejax", ["PPO", "SAC"]),
    }
    monkeypatch.setattr(clients, "run_client", lambda python, module: made_up[module])
    monkeypatch.setattr(clients, "peer_versions", lambda *_: {})
    out = tmp_path / "new" / "clients"
    clients.main(clients.Args(out=out, peer_python=Path(sys.executable)))
    text = (out / "clients.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    for part in found.values():
        assert part["provenance"].keys() >= {"commit", "versions", "hardware", "date", "command"}
    assert str(tmp_path) not in text and sys.executable not in text
    table = (out / "clients.md").read_text()
    assert "| rejax | PPO | trained | 2 | -1,999.5 | -2,000.0 |" in table
    assert "| Stable-Baselines3 | random | random | 1 | -9,000.0 | -9,000.0 |" in table
    assert "no warning" in table
    step = evaluate.references("startup", "nominal").step.mean()
    assert f"open-loop step to the steady inputs {step:,.1f}" in table

    made_up["benchmarks.clients_rejax"] = report("rejax", ["PPO"])
    clients.main(clients.Args("rejax", out, Path(sys.executable)))
    again = json.loads((out / "clients.json").read_text())
    assert again["sb3"] == found["sb3"] and len(again["rejax"]["rows"]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"peer_python": Path("nowhere/python")},
            "peer-python = nowhere/python .*make clients",
        ),
        ({"peer_python": Path(sys.executable)}, r"lacks one of stable-baselines3.*make clients"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(changes, message, tmp_path):
    args = {"out": tmp_path / "out", "peer_python": Path(sys.executable)} | changes
    with pytest.raises(SystemExit, match=message):
        clients.main(clients.Args(**args))
    assert not list(tmp_path.glob("out/*"))


def test_a_blocked_folder_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(clients, "peer_versions", lambda *_: {})
    with pytest.raises(SystemExit, match=r"out = .*below.* cannot be written to"):
        clients.main(clients.Args(None, Path(__file__) / "below", Path(sys.executable)))


def test_a_client_that_fails_says_why():
    with pytest.raises(
        SystemExit, match=r"benchmarks\.no_such_client failed[\s\S]*No module named"
    ):
        clients.run_client(Path(sys.executable), "benchmarks.no_such_client")


# --- The clients themselves ---


@pytest.fixture
def quick_in_their_process(monkeypatch):
    """As in ours: programs are kept, and compiled without the optimisations that take time."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)


@pytest.mark.slow
@with_clients
def test_stable_baselines3_trains_on_the_environment_as_it_comes(quick_in_their_process):
    words = ["--steps", "4000", "--num-starts", "8", "--seeds", "0"]  # some minutes
    found = clients.run_client(CLIENT_PYTHON, "benchmarks.clients_sb3", words)
    assert found["check_env"] == []
    rows = {row["policy"]: row["mean_return"] for row in found["rows"]}
    assert rows.keys() == {"random", "untrained", "trained"}
    assert rows["trained"] > max(rows["random"], rows["untrained"])


def test_the_page_says_what_was_measured():
    found = json.loads((ROOT / "results" / "clients" / "clients.json").read_text())
    page = (ROOT / "docs" / "clients.md").read_text()
    assert "Every trained policy is better than random actions and than itself" in page
    for client in found.values():
        rows = client["rows"]
        random = max(row["mean_return"] for row in rows if row["policy"] == "random")
        trained = [row for row in rows if row["policy"] == "trained"]
        assert trained
        for row in trained:
            (untrained,) = (
                other["mean_return"]
                for other in rows
                if other["policy"] == "untrained"
                and (other["algorithm"], other["seed"]) == (row["algorithm"], row["seed"])
            )
            assert row["mean_return"] > max(random, untrained)


@pytest.mark.slow
@with_clients
def test_rejax_trains_on_the_environment_as_it_comes(quick_in_their_process):
    words = ["--ppo-steps", "1024", "--sac-steps", "600", "--num-starts", "2", "--seeds", "0", "1"]
    found = clients.run_client(CLIENT_PYTHON, "benchmarks.clients_rejax", words)
    rows = {(x["algorithm"], x["policy"], x["seed"]): x["mean_return"] for x in found["rows"]}
    for algorithm in ("PPO", "SAC"):
        for seed in (0, 1):
            assert rows[algorithm, "trained", seed] != rows[algorithm, "untrained", seed]
        assert rows[algorithm, "trained", 0] != rows[algorithm, "trained", 1]


# --- The page ---


def blocks() -> list[str]:
    """Python of docs/clients.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.S)


def needs_clients(block: str) -> bool:
    return "from stable_baselines3" in block or "import rejax" in block


def test_the_page_has_code_of_both_kinds():
    assert {needs_clients(block) for block in blocks()} == {True, False}


@pytest.mark.parametrize("block", [x for x in blocks() if not needs_clients(x)])
def test_the_pages_code_runs(block, quick_to_compile):
    exec(compile(block, "docs/clients.md", "exec"), {"__name__": "page"})


@pytest.mark.slow
@with_clients
@pytest.mark.parametrize("block", [x for x in blocks() if needs_clients(x)])
def test_the_pages_code_for_clients_runs(block, quick_in_their_process):
    short = re.sub(r"\b\d+_\d{3}\b", "300", block)  # intervals of training
    assert short != block
    done = subprocess.run(
        [CLIENT_PYTHON, "-c", short], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
