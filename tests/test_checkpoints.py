"""Trained states on disc: what comes back, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from algos import bc, checkpoints, common, cpq, marvel
from tests.made_up import noise

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TINY = cpq.Config(hidden=(4,), vae_hidden=(4,), batch_size=8, num_updates=2)
LAYER = ["--hidden", "4", "--num-updates", "1", "--gradient-steps", "1", "--vpa-updates", "1"]


@pytest.fixture(scope="module")
def trained():
    """Two seeds of CPQ."""
    keys = jax.vmap(jax.random.key)(np.arange(2))
    return jax.jit(jax.vmap(cpq.make_train(TINY).train, (0, None)))(keys, noise())[0]


@pytest.fixture
def saved(trained, tmp_path):
    checkpoints.save(tmp_path / "cpq", "cpq", TINY, trained)
    return tmp_path / "cpq"


def test_states_come_back_with_their_settings(saved, trained):
    algorithm, states = checkpoints.load(saved, "cpq", noise(), 2)
    assert algorithm.config == TINY
    assert type(states) is cpq.State
    jax.tree.map(np.testing.assert_array_equal, states, trained)


def test_a_scale_of_other_data_is_named(saved):
    scales = noise().normaliser
    other = noise()._replace(normaliser=scales._replace(obs_std=2.0 * scales.obs_std))
    with pytest.raises(ValueError, match=r"normaliser\.obs_std is of other data") as error:
        checkpoints.load(saved, "cpq", other, 2)
    assert "obs_mean" not in str(error.value)


def test_another_number_of_seeds_is_named(saved):
    with pytest.raises(ValueError, match=r"step is \(2,\), not \(3,\)"):
        checkpoints.load(saved, "cpq", noise(), 3)


def test_every_leaf_of_another_form_is_named(trained, tmp_path):
    wider = dataclasses.replace(TINY, hidden=(5,))  # not what it was trained with
    checkpoints.save(tmp_path / "cpq", "cpq", wider, trained)
    with pytest.raises(ValueError, match="does not fit") as error:
        checkpoints.load(tmp_path / "cpq", "cpq", noise(), 2)
    for part in ("actor", "critic", "cost_critic"):
        assert f"params.{part}.params.Dense_0.bias is" in str(error.value)
    assert "params.vae" not in str(error.value)


def test_settings_of_another_version_are_named(saved):
    file = saved / "_CHECKPOINT_METADATA"
    made_by = json.loads(file.read_text())
    made_by["custom_metadata"]["config"]["temper"] = 1.0
    del made_by["custom_metadata"]["config"]["discount"]
    file.write_text(json.dumps(made_by))
    with pytest.raises(ValueError, match=r"discount, temper: settings of another algos/cpq\.py"):
        checkpoints.load(saved, "cpq", noise(), 2)


def test_what_another_algorithm_saved_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"is cpq; allowed: what algos/bearl\.py saved"):
        checkpoints.load(saved, "bearl", noise(), 2)
    with pytest.raises(ValueError, match="is no checkpoint of an algorithm"):
        checkpoints.load(tmp_path / "nothing", "cpq", noise(), 2)


# --- The command line ---


def call(monkeypatch, name, module, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    common.command_line(name, module.PRESETS, module.make_train)


@pytest.fixture
def online(saved, monkeypatch, tmp_path):
    """Marvel's command line, on made-up data, after what is saved; and what it has trained."""
    monkeypatch.setattr(common, "load_training_data", lambda scenario, dataset: noise())
    given = ["--num-seeds", "2", "--offline", str(saved), "--out", str(tmp_path / "out")]
    kept = {}
    whole = common.train_seeds

    def train_seeds(algorithm, *args, **kwargs):
        found = whole(algorithm, *args, **kwargs)
        kept[algorithm.config] = found[0]
        return found

    monkeypatch.setattr(common, "train_seeds", train_seeds)
    return lambda *changes: call(monkeypatch, "marvel", marvel, *given, *LAYER, *changes), kept


def test_a_layer_begins_with_what_its_base_saved(online, trained):
    run, kept = online
    run()
    ((config, states),) = kept.items()  # the layer alone was trained
    assert isinstance(config, marvel.Config)
    jax.tree.map(np.testing.assert_array_equal, states.base, trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--hidden", "5"], r"the offline state of cpq does not fit: .*actor\.params\.Dense_0"),
        (["--cost-limits", "5"], r"base\.config\.cost_limit = 2\.0; allowed: the layer's, 5\.0"),
        (["--num-seeds", "1"], r"step is \(2,\), not \(1,\)"),
        (["--base", "bearl"], r"is cpq; allowed: what algos/bearl\.py saved"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(online, changes, message):
    run, kept = online
    with pytest.raises(SystemExit, match=message):
        run(*changes)
    assert not kept


def test_what_wraps_no_other_takes_nothing(monkeypatch, tmp_path):
    given = ["--offline", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"allowed: none, bc wraps no other"):
        call(monkeypatch, "bc", bc, *given)
