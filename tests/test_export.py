"""Exported policies act as the trained ones do, and need nothing of this package."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from algos import bc, checkpoints, common, export
from benchmarks.plan import METHODS
from polycstr_jax import data as data_module
from tests.made_up import noise

flatbuffers = pytest.importorskip("flatbuffers", reason="jax.export writes with flatbuffers")
pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = {
    "hidden": (16, 12),
    "batch_size": 8,
    "num_updates": 2,
    "vae_hidden": (10,),
    "width": 8,
    "num_blocks": 1,
    "num_diffusion_steps": 2,
    "gradient_steps": 1,
    "vpa_updates": 1,
    "capacity": 200,
    "gate": 2.0,  # of errors that are N(0, 1) here: some are corrected, and some are not
}
CASES = {  # file of algos/ and settings; "has NumPy" stands in `NUMPY`
    "bc": ("bc", {}),
    "bc published": ("bc", {"track": "published"}),
    "bc in the plant's units": ("bc", {"standardise_actions": False}),
    "iql": ("iql", {}),
    "cpq": ("cpq", {}),
    "cpq in its box": ("cpq", {"action_unit": "box"}),
    "bearl": ("bearl", {}),
    "bcql": ("bcql", {}),
    "coptidice": ("coptidice", {}),
    "sac_lag": ("sac_lag", {}),
    "marvel": ("marvel", {}),
    "o2o_baselines": ("o2o_baselines", {}),
    "picnn": ("picnn", {}),
    "picnn published": ("picnn", {"track": "published", "precondition": False, "eta": 0.1}),
    "picnn linear": ("picnn", {"state_path": "linear", "activation": "elu", "num_steps": 1}),
    "picnn nn": ("picnn", {"model": "nn", "activation": "relu"}),
    "picnn ensemble": ("picnn", {"num_models": 3, "uncertainty": 0.7, "precondition": False}),
    "picnn without steps": ("picnn", {"num_steps": 0}),
    "picnn newton": ("picnn", {"correction": "newton"}),
    "picnn exact": ("picnn", {"correction": "exact"}),
    "fisor": ("fisor", {}),
    "fisor gaussian": ("fisor", {"actor": "gaussian", "num_samples": 1}),
}
NO_NUMPY = ("picnn newton", "picnn exact", "fisor", "fisor gaussian")
RANDOM = {"fisor", "fisor gaussian"}
NUMPY = sorted(CASES.keys() - set(NO_NUMPY))


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """Policies are trained in float32, whatever JAX_ENABLE_X64 says."""
    with jax.enable_x64(False):
        yield


def some_data():
    """Transitions without meaning, in float32."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), noise())


def algorithm_of(name, **changes):
    """A small one; of a layer, around a small BC or CPQ."""
    module = importlib.import_module(f"algos.{name}")
    fields = {field.name for field in dataclasses.fields(module.Config)}
    wanted = {k: x for k, x in SMALL.items() if k in fields} | changes
    config = dataclasses.replace(module.PRESETS["default"], **wanted)
    layer = {}
    if "base" in fields:
        track = {"track": config.track} if "track" in fields else {}
        layer["base"] = algorithm_of(config.base, **track)
    return module.make_train(config, *polycstr_jax.make("startup"), **layer)


def some_state(algorithm, seed=0):
    """As initialised, with noise on every parameter: no bias is 0, no average is its original."""
    base = () if algorithm.base is None else (some_state(algorithm.base, seed),)
    state = algorithm.init(jax.random.key(seed), some_data(), *base)
    fixed = ("opt_state", "normaliser", "base", "replay")
    kept = {name: getattr(state, name) for name in state._fields if name in fixed}
    leaves, form = jax.tree.flatten(state._replace(**dict.fromkeys(kept, ())))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    size = 0.03 if hasattr(state, "actor_average") else 0.3  # FISOR's samples would all be 1
    moved = [
        x + size * jax.random.normal(key, x.shape) if x.ndim > 0 else x
        for x, key in zip(leaves, keys, strict=True)
    ]
    mean = np.linspace(-1.0, 1.0, 9, dtype=np.float32)
    kept["normaliser"] = state.normaliser._replace(obs_mean=mean)
    return jax.tree.unflatten(form, moved)._replace(**kept)


@functools.cache
def case(name):
    file, settings = CASES[name]
    algorithm = algorithm_of(file, **settings)
    return algorithm, some_state(algorithm)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function of a case's name: the folder of its export, made once."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def of(name):
        folder = root / name.replace(" ", "_").replace("'", "")
        algorithm, state = case(name)
        made = {"algorithm": CASES[name][0], "scenario": "startup", "dataset": "pi", "seed": 0}
        export.write(folder, algorithm, state, **made)
        return folder

    return of


def observations(number=64):
    rng = np.random.default_rng(5)
    return (3.0 * rng.standard_normal((number, 9))).astype(np.float32)


def keys(number=64):
    return np.random.default_rng(6).integers(2**32, size=(number, 2), dtype=np.uint32)


def original(name, obs):
    """Actions of the policy itself, an observation at a time, as the environment asks for them."""
    algorithm, state = case(name)
    act = jax.jit(algorithm.policy(state))
    with jax.default_matmul_precision("float32"):
        return np.stack(
            [
                act(row, jax.random.wrap_key_data(key, impl="threefry2x32"))
                for row, key in zip(obs, keys(len(obs)), strict=True)
            ]
        )


def imported(folder):
    """policy.py of a folder, as a module of its own."""
    spec = importlib.util.spec_from_file_location("policy", folder / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def called(folder, obs, random):
    act = jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
    return np.asarray(act.call(obs, *([keys(len(obs))] if random else [])))


# --- The forms act as the policy does ---


def test_every_algorithm_of_the_benchmark_is_exported():
    ours = {file for label, (file, _) in METHODS.items() if label != "td3bc"}  # the docs' example
    assert {file for file, _ in CASES.values()} == ours


@pytest.mark.parametrize("name", CASES)
def test_stablehlo_acts_as_the_policy_does(name, exported):
    obs = observations()
    expected = original(name, obs)
    assert expected.std() > 0.05
    found = called(exported(name), obs, name in RANDOM)
    assert found.dtype == np.float32 and found.shape == (64, 2)
    np.testing.assert_allclose(found, expected, atol=2e-3 if "exact" in name else 2e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_stablehlo_takes_any_number_of_observations(number, exported):
    obs = observations()
    for name in ("bc", "fisor"):
        found = called(exported(name), obs[:number], name in RANDOM)
        np.testing.assert_allclose(found, original(name, obs)[:number], atol=2e-5)


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_acts_as_the_policy_does(name, exported):
    obs = observations()
    expected = original(name, obs)
    policy = imported(exported(name))
    found = policy.act(obs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(policy.act(obs[3]), expected[3], atol=2e-5)


@pytest.mark.parametrize("name", NO_NUMPY)
def test_what_has_no_numpy_form_says_so(name, exported):
    files = {path.name for path in exported(name).iterdir()}
    assert files == {"policy.stablehlo", "policy.json"}
    assert "no NumPy form" in json.loads((exported(name) / "policy.json").read_text())["numpy"]


def test_a_correction_moves_actions_where_the_errors_are_large_and_nowhere_else():
    obs = observations()
    with_layer, alone = original("picnn", obs), original("picnn without steps", obs)
    far = np.abs(obs[:, 5]) + np.abs(obs[:, 6]) > SMALL["gate"]
    assert 5 < far.sum() < 60
    np.testing.assert_array_equal(with_layer[~far], alone[~far])
    assert np.all(np.abs(with_layer[far] - alone[far]).max(axis=1) > 1e-4)


def test_platforms_are_those_that_policy_json_names(exported):
    act = jax.export.deserialize(bytearray((exported("fisor") / "policy.stablehlo").read_bytes()))
    assert act.platforms == ("cpu", "cuda", "tpu")


def test_only_a_policy_that_draws_asks_for_a_key(exported):
    for name in ("bc", "fisor"):
        described = json.loads((exported(name) / "policy.json").read_text())
        assert described["needs_key"] is (name in RANDOM)
    obs = observations(2)
    with pytest.raises((TypeError, ValueError)):
        called(exported("bc"), obs, True)
    act = jax.export.deserialize(bytearray((exported("fisor") / "policy.stablehlo").read_bytes()))
    one, other = act.call(obs, keys(2)), act.call(obs, keys(2) + 1)
    assert np.abs(one - other).max() > 1e-3


def test_no_file_says_where_it_was_made(exported):
    for path in exported("picnn").iterdir():
        content = path.read_bytes()
        assert str(Path(__file__).parent.parent).encode() not in content, path.name
        assert b"linen" not in content, path.name  # of the paths of what is installed


def test_another_shape_is_refused(exported):
    with pytest.raises(ValueError, match=r"obs has shape \(8,\); allowed: \(9,\) or \(N, 9\)"):
        imported(exported("bc")).act(np.zeros(8))


# --- Without this package ---

BLOCKED = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
for name in {blocked}:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} is there")
"""
OURS = ("polycstr_jax", "algos", "benchmarks", "flax", "optax", "diffrax", "gymnax")


def run_outside(code, blocked, folder):
    """Standard output of Python that is isolated, outside the repository, without packages."""
    code = BLOCKED.format(blocked=blocked) + code
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_numpy_form_needs_numpy_alone(exported, tmp_path):
    folders = {name: str(exported(name)) for name in NUMPY}
    np.save(tmp_path / "obs.npy", observations(8))
    code = f"""
import numpy as np
actions = {{}}
for name, folder in {folders!r}.items():
    sys.path[0:0] = [folder]
    sys.modules.pop("policy", None)
    import policy
    actions[name] = policy.act(np.load("obs.npy")).tolist()
    sys.path.remove(folder)
loaded = {{name.partition(".")[0] for name in sys.modules}}
others = sorted(loaded - set(sys.stdlib_module_names) - {{"policy", "numpy"}})
print(json.dumps([actions, others]))
"""
    actions, others = run_outside(code, (*OURS, "jax", "jaxlib", "scipy"), tmp_path)
    assert not [name for name in others if not name.startswith(("_", "sitecustomize"))]
    for name in NUMPY:
        np.testing.assert_allclose(actions[name], original(name, observations(8)), atol=2e-5)


def test_stablehlo_needs_jax_alone(exported, tmp_path):
    folders = {name: str(exported(name)) for name in ("bc", "picnn newton", "fisor")}
    np.savez(tmp_path / "given.npz", obs=observations(8), key=keys(8))
    code = f"""
import jax
import jax.numpy as jnp
import numpy as np
from jax import export
given, actions = np.load("given.npz"), {{}}
for name, folder in {folders!r}.items():
    act = export.deserialize(bytearray(open(folder + "/policy.stablehlo", "rb").read()))
    arguments = [given["obs"], given["key"]][: len(act.in_avals)]
    actions[name] = np.asarray(act.call(*arguments)).tolist()
print(json.dumps(actions))
"""
    for name, actions in run_outside(code, OURS, tmp_path).items():
        np.testing.assert_allclose(actions, original(name, observations(8)), atol=2e-5)


def test_the_page_says_how_to_call_both_forms(exported, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / "docs/export.md").read_text()
    in_jax, in_numpy = (part.split("```")[0] for part in text.split("```python\n")[1:])
    shutil.copytree(exported("bc"), tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "exported")
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    for block in (in_jax, in_numpy):
        names = {"obs": observations(8)}
        exec(block, names)
        np.testing.assert_allclose(names["action"], original("bc", observations(8)), atol=2e-5)
    monkeypatch.delitem(sys.modules, "policy")


# --- From a checkpoint, by the command line ---

MADE_BY = {"scenario": "startup", "dataset": "pi", "num_seeds": 2}


def two_states(algorithm):
    return jax.tree.map(lambda *x: np.stack(x), *(some_state(algorithm, n) for n in (0, 1)))


@pytest.mark.parametrize(
    ("name", "acting"),
    [("bc", False), ("sac_lag", False), ("picnn", False), ("fisor", True), ("marvel", True)],
)
def test_a_seed_of_a_checkpoint_is_read_as_it_was_saved(name, acting, tmp_path):
    algorithm = algorithm_of(name)
    states = two_states(algorithm)
    if acting:  # as benchmarks.run --save-params does, of a layer's base, too
        states = checkpoints.without_what_ends(states)
        if algorithm.base is not None:
            states = states._replace(base=checkpoints.without_what_ends(states.base))
    checkpoints.save(tmp_path / "it", algorithm, states, algorithm=name, seed=4, **MADE_BY)
    found, state, made = export.read(tmp_path / "it", 5)
    assert found.config == algorithm.config and made["dataset"] == "pi"
    jax.tree.map(np.testing.assert_array_equal, state, jax.tree.map(lambda x: x[1], states))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two parts of one run, as benchmarks.run --save-params writes them: seeds 0 and 1, and 2."""
    folder = tmp_path_factory.mktemp("saved") / "bc@default.params"
    algorithm = algorithm_of("bc")
    states = checkpoints.without_what_ends(two_states(algorithm))
    made = {"algorithm": "bc", "scenario": "grade_up", "dataset": "mixed"}
    checkpoints.save(folder / "0", algorithm, states, seed=0, num_seeds=2, **made)
    last = jax.tree.map(lambda x: x[:1] + 0.25 if x.dtype == np.float32 else x[:1], states)
    checkpoints.save(folder / "2", algorithm, last, seed=2, num_seeds=1, **made)
    return folder


def test_the_command_line_writes_the_seed_that_is_asked_for(saved, tmp_path, capsys):
    algorithm, obs = algorithm_of("bc"), observations(8)
    for seed in (1, 2):
        out = tmp_path / str(seed)
        export.main(export.Args(saved, out=out, seed=seed))
        state = export.read(saved, seed)[1]
        expected = jax.vmap(lambda o, s=state: algorithm.policy(s)(o, None))(obs)
        np.testing.assert_allclose(imported(out).act(obs), expected, atol=2e-5)
    assert np.abs(imported(tmp_path / "1").act(obs) - imported(tmp_path / "2").act(obs)).max() > 0.1
    assert "kB" in capsys.readouterr().out
    described = json.loads((out / "policy.json").read_text())
    assert described["made_by"]["seed"] == 2 and described["made_by"]["dataset"] == "mixed"
    assert described["plant"]["polymer_setpoint"] == 100.0
    feed, coolant = described["action"]
    assert (feed["increment_per_interval_at_1"], feed["unit"]) == (0.5, "kg/h")
    assert (coolant["increment_per_interval_at_1"], coolant["unit"]) == (1.0, "K")
    assert [column["unit"] for column in described["obs"]][3:5] == ["kg/m3", "K"]
    assert set(described["sha256"]) == {"policy.stablehlo", "policy.npz", "policy.py"}
    for name, digest in described["sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert {"jax", "numpy", "python"} <= set(described["versions"]) and described["commit"]


@pytest.mark.parametrize(
    ("checkpoint", "seed", "message"),
    [
        ("bc@default.params", 3, r"seed = 3; allowed: 2 to 2, those of .*parts 0, 2"),
        ("bc@default.params", -1, r"seed = -1; allowed: 0 to 1"),
        ("bc@default.params/0", 2, r"seed = 2; allowed: 0 to 1"),
        ("nothing", 0, r"nothing does not exist; allowed: a folder that python algos/"),
    ],
)
def test_what_cannot_be_read_is_named_and_nothing_is_written(
    checkpoint, seed, message, saved, tmp_path
):
    with pytest.raises(SystemExit, match=message):
        export.main(export.Args(saved.parent / checkpoint, out=tmp_path / "out", seed=seed))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(SystemExit, match=r"out exists; remove it or name another folder"):
        export.main(export.Args(saved, out=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_without_flatbuffers_the_remedy_is_named(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"flatbuffers.*polycstr-jax\[interop\]"):
        export.main(export.Args(saved, out=tmp_path / "out"))


def test_a_form_that_acts_otherwise_is_not_written(monkeypatch, tmp_path):
    algorithm, state = case("bc")
    honest = export.to_numpy

    def wrong(*given):
        numbers = honest(*given)
        return numbers | {"scale": 1.01 * numbers["scale"]}

    monkeypatch.setattr(export, "to_numpy", wrong)
    with pytest.raises(RuntimeError, match="the numpy form differs from the policy by"):
        export.write(tmp_path / "out", algorithm, state, algorithm="bc")
    assert not list(tmp_path.iterdir())


def test_an_algorithm_of_ones_own_is_exported_as_stablehlo(tmp_path):
    algorithm, state = case("cpq")
    described = export.write(tmp_path / "out", algorithm, state, algorithm="mine")
    assert described["numpy"] == "mine has no NumPy form: its form is not known there."
    found = called(tmp_path / "out", observations(8), False)
    np.testing.assert_allclose(found, original("cpq", observations(8)), atol=2e-5)


# --- In the plant ---


def test_an_exported_policy_controls_the_reactor_as_the_original_does(tmp_path):
    pi = data_module.generate("startup", "pi", 10)
    training = data_module.training_data(pi, data_module.normaliser(pi))
    algorithm = bc.make_train(bc.Config(hidden=(32, 32), num_updates=300, learning_rate=1e-3))
    rng = jax.vmap(jax.random.key)(np.arange(1))
    states, _, _ = common.train_seeds(algorithm, training, rng, 300, num_chunks=1)
    state = jax.tree.map(lambda x: x[0], states)
    export.write(tmp_path / "bc", algorithm, state, algorithm="bc", scenario="startup")
    jitted, policy = jax.jit(algorithm.policy(state)), imported(tmp_path / "bc")

    def episode(act):
        env = gymnasium.make("PolyCSTR-Startup-v0")
        obs, _ = env.reset(seed=11)
        seen, ended = [obs], False
        while not ended:
            obs, _, terminated, truncated, _ = env.step(act(obs))
            seen.append(obs)
            ended = terminated or truncated
        return np.stack(seen)

    ours = episode(lambda obs: np.asarray(jitted(obs, None)))
    theirs = episode(policy.act)
    idle = episode(lambda obs: np.zeros(2))
    assert ours.shape == (201, 9)
    assert np.abs(ours[:, 3] - idle[:, 3]).max() > 10.0  # kg/m3: it does control
    np.testing.assert_allclose(theirs[:, 3], ours[:, 3], atol=0.05)  # kg/m3
    np.testing.assert_allclose(theirs[:, 4], ours[:, 4], atol=0.05)  # K
