"""Trained states on disc: what comes back, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import polycstr_jax
from algos import bc, bearl, checkpoints, common, cpq, iql, marvel, o2o_baselines, picnn, sac_lag
from tests.made_up import noise

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = {"hidden": (4,), "batch_size": 8, "num_updates": 2}
BASES = {
    "bc": (bc, bc.Config(**SMALL)),
    "iql": (iql, iql.Config(**SMALL)),
    "cpq": (cpq, cpq.Config(**SMALL, vae_hidden=(4,))),
    "bearl": (bearl, bearl.Config(**SMALL, vae_hidden=(4,), max_multiplier=float("inf"))),
}
MADE_BY = {"scenario": "startup", "dataset": "mixed", "seed": 0, "num_seeds": 2}


def trained(name):
    """An algorithm, and two seeds of it."""
    module, config = BASES[name]
    algorithm = module.make_train(config)
    keys = jax.vmap(jax.random.key)(np.arange(2))
    return algorithm, jax.jit(jax.vmap(algorithm.train, (0, None)))(keys, noise())[0]


@pytest.fixture(scope="module")
def of_cpq():
    return trained("cpq")


@pytest.fixture
def saved(of_cpq, tmp_path):
    checkpoints.save(tmp_path / "cpq", *of_cpq, algorithm="cpq", **MADE_BY)
    return tmp_path / "cpq"


def load(path, data=None, **changes):
    wanted = {"algorithm": "cpq", **MADE_BY, **changes}
    return checkpoints.load(path, noise() if data is None else data, **wanted)


@pytest.mark.parametrize("name", BASES)
def test_states_come_back_with_their_settings(name, tmp_path):
    before, states = trained(name)
    checkpoints.save(tmp_path / "it", before, states, algorithm=name, **MADE_BY)
    after, found = load(tmp_path / "it", algorithm=name)
    assert after.config == before.config
    assert type(found) is type(states)
    jax.tree.map(np.testing.assert_array_equal, found, states)


def test_what_trains_in_the_environment_comes_back_to_act(tmp_path):
    small = {"gradient_steps": 2, "num_episodes": 1, "capacity": 200}
    before = sac_lag.make_train(
        sac_lag.Config(**SMALL, **small), *polycstr_jax.make("grade_up", max_steps_in_episode=5)
    )
    states = jax.vmap(before.init, (0, None))(jax.vmap(jax.random.key)(np.arange(2)), noise())
    states = checkpoints.without_what_ends(states)
    made = {**MADE_BY, "scenario": "grade_up"}
    checkpoints.save(tmp_path / "it", before, states, algorithm="sac_lag", **made)
    after, found = load(tmp_path / "it", algorithm="sac_lag", scenario="grade_up", acting=True)
    assert after.config == before.config
    jax.tree.map(np.testing.assert_array_equal, found, states)


@pytest.mark.parametrize("other", [{"seed": 7}, {"num_seeds": 3}, {"dataset": "pi"}])
def test_what_was_made_otherwise_is_named(saved, other):
    ((name, value),) = other.items()
    message = f"{name} is {MADE_BY[name]!r}, not {value!r}"
    with pytest.raises(ValueError, match=message) as error:
        load(saved, **other)
    assert str(error.value).count(", not ") == 1


def test_a_scale_of_other_data_is_named(saved):
    scales = noise().normaliser
    other = noise()._replace(normaliser=scales._replace(obs_std=1.01 * scales.obs_std))
    with pytest.raises(ValueError, match=r"normaliser\.obs_std is of other data") as error:
        load(saved, other)
    assert "obs_mean" not in str(error.value)
    rounded = noise()._replace(normaliser=scales._replace(obs_mean=scales.obs_mean + 1e-5))
    load(saved, rounded)


def test_every_leaf_of_another_form_is_named(of_cpq, tmp_path):
    algorithm, states = of_cpq
    wider = dataclasses.replace(algorithm.config, hidden=(5,))  # not what it was trained with
    made = algorithm._replace(config=wider)
    checkpoints.save(tmp_path / "cpq", made, states, algorithm="cpq", **MADE_BY)
    with pytest.raises(ValueError, match="does not fit") as error:
        load(tmp_path / "cpq")
    for part in ("actor", "critic", "cost_critic"):
        assert f"params.{part}.params.Dense_0.bias is" in str(error.value)
    assert "params.vae" not in str(error.value)


def test_settings_of_another_version_are_named(saved):
    file = saved / "_CHECKPOINT_METADATA"
    made_by = json.loads(file.read_text())
    made_by["custom_metadata"]["config"]["temper"] = 1.0
    del made_by["custom_metadata"]["config"]["discount"]
    file.write_text(json.dumps(made_by))
    with pytest.raises(ValueError, match=r"discount; temper. Allowed: settings of this version"):
        load(saved)


def test_what_another_algorithm_saved_is_refused(saved):
    with pytest.raises(ValueError, match=r"algorithm is 'cpq', not 'bearl'"):
        load(saved, algorithm="bearl")


@pytest.mark.parametrize("lost", ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "d", "."])
def test_a_checkpoint_that_is_not_whole_is_refused(saved, lost):
    shutil.rmtree(saved / lost) if (saved / lost).is_dir() else (saved / lost).unlink()
    with pytest.raises(ValueError, match=r"is no whole|does not exist"):
        load(saved)


def test_a_checkpoint_that_is_cut_off_is_refused_in_a_line(saved, monkeypatch):
    path = max(saved.glob("**/d/*"), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[:10])
    with pytest.raises(ValueError, match="whole"):
        load(saved)
    path.write_bytes(content)

    def restore(*_, **__):  # as orbax does where a larger file is cut off
        raise Exception("reading failed.\n" * 100)

    monkeypatch.setattr(checkpoints.orbax.StandardCheckpointer, "restore", restore)
    with pytest.raises(ValueError, match="is not whole: reading failed") as error:
        load(saved)
    assert len(str(error.value)) < len(str(saved)) + 250 and "\n" not in str(error.value)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is no whole checkpoint; allowed: a folder that python"):
        load(tmp_path / "file")


# --- The command line ---


def call(monkeypatch, name, module, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    common.command_line(name, module.PRESETS, module.make_train)


LAYERS = {
    "marvel": (marvel, "cpq", ["--gradient-steps", "1", "--vpa-updates", "1"]),
    "o2o_baselines": (o2o_baselines, "cpq", ["--gradient-steps", "1"]),
    "picnn": (picnn, "bc", []),
}


@pytest.fixture
def run_layer(monkeypatch, tmp_path):
    """The command line of a layer on made-up data; and what it has trained, by configuration."""
    monkeypatch.setattr(common, "load_training_data", lambda scenario, dataset: noise())
    whole, kept = common.train_seeds, {}

    def train_seeds(algorithm, *args, **kwargs):
        found = whole(algorithm, *args, **kwargs)
        kept[algorithm.config] = found[0]
        return found

    monkeypatch.setattr(common, "train_seeds", train_seeds)

    def run(name, path, *changes):
        module, _, smaller = LAYERS[name]
        given = ["--num-seeds", "2", "--dataset", "mixed", "--hidden", "4", "--num-updates", "1"]
        given += ["--offline", str(path), "--out", str(tmp_path / "out"), *smaller]
        call(monkeypatch, name, module, *given, *changes)

    return run, kept


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_begins_with_what_its_base_saved(name, run_layer, tmp_path):
    run, kept = run_layer
    base, states = trained(LAYERS[name][1])
    made_by = {"algorithm": LAYERS[name][1], **MADE_BY}
    checkpoints.save(tmp_path / "base", base, states, **made_by)
    run(name, tmp_path / "base")
    ((config, found),) = kept.items()  # the layer alone was trained
    assert isinstance(config, LAYERS[name][0].Config)
    jax.tree.map(np.testing.assert_array_equal, found.base, states)
    made = json.loads((tmp_path / "out" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert made["base_config"]["hidden"] == [4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--hidden", "5"], r"the offline state of cpq does not fit: .*actor\.params\.Dense_0"),
        (["--cost-limits", "5"], r"base\.config\.cost_limit = 2\.0; allowed: the layer's, 5\.0"),
        (["--num-seeds", "1"], r"num_seeds is 2, not 1"),
        (["--base", "bearl"], r"algorithm is 'cpq', not 'bearl'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(run_layer, saved, changes, message):
    run, kept = run_layer
    with pytest.raises(SystemExit, match=message):
        run("marvel", saved, *changes)
    assert not kept


def test_what_wraps_no_other_takes_nothing(monkeypatch, tmp_path):
    given = ["--offline", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"allowed: none, bc wraps no other"):
        call(monkeypatch, "bc", bc, *given)
