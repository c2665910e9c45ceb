"""Our data sets in the formats of others hold the same episodes, and come back bit by bit."""

import collections
import subprocess
import sys
import types
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest

from benchmarks import clients_d3rlpy, clients_dsrl
from polycstr_jax import data, interop
from polycstr_jax.env import PolyCSTR

ROOT = Path(__file__).parent.parent
NUM_EPISODES, T = 4, 200
ID = "polycstr/startup-pi-v0"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def trajectory():
    return data.generate_trajectory("startup", "pi", NUM_EPISODES)[0]


@pytest.fixture(scope="module")
def dataset(trajectory):
    return data.to_dataset(trajectory)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Minari's folder, and data sets of 4 episodes."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(data, "NUM_EPISODES", {"pi": NUM_EPISODES, "mixed": NUM_EPISODES})
    return tmp_path


def assert_equal(one, other):
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- Minari ---


def test_a_minari_set_comes_back_bit_by_bit(folder, dataset):
    made = interop.to_minari("startup", "pi")
    assert made.id == ID and made.total_episodes == NUM_EPISODES
    assert_equal(interop.from_minari(ID), dataset)
    assert list(minari.list_local_datasets()) == [ID]
    assert files_in(folder) == [
        "polycstr/namespace_metadata.json",
        f"{ID}/data/main_data.hdf5",
        f"{ID}/data/metadata.json",
    ]


def test_minari_holds_one_observation_more_than_actions(folder, trajectory):
    interop.to_minari("startup", "pi")
    for lane, episode in enumerate(minari.load_dataset(ID).iterate_episodes()):
        assert episode.observations.shape == (T + 1, 9) and episode.actions.shape == (T, 2)
        np.testing.assert_array_equal(episode.observations[:-1], trajectory.obs[:, lane])
        np.testing.assert_array_equal(episode.observations[1:], trajectory.next_obs[:, lane])
        np.testing.assert_array_equal(episode.rewards, trajectory.reward[:, lane])
        assert not episode.terminations.any()
        assert np.flatnonzero(episode.truncations).tolist() == [T - 1]
        # Peaks are not kept in a `Dataset`; margin plus limit gives them back exactly.
        peak = episode.infos["peak_temperature"]
        np.testing.assert_array_equal(peak[1:], trajectory.peak_temperature[:, lane])
        assert peak[0] == episode.observations[0, 4]
        assert episode.infos["cost"].sum() == trajectory.cost[:, lane].sum()
        assert {len(values) for values in episode.infos.values()} == {T + 1}


def test_the_recovered_environment_repeats_the_episode(folder):
    """`infos[name][t + 1]` belongs to action t: so says the environment itself."""
    found = interop.to_minari("startup", "pi")
    env, episode = found.recover_environment(), found[1]
    assert env.spec.id == "PolyCSTR-Startup-v0"
    assert env.observation_space == found.observation_space
    assert env.action_space == found.action_space
    start = episode.observations[0].astype(np.float64)
    state = start[:5] * [1.0, 1.0, 1e-6, 1.0, 1.0]
    env.reset(seed=0, options={"state": state, "control": start[7:]})
    for t, action in enumerate(episode.actions):
        obs, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_allclose(obs, episode.observations[t + 1], rtol=1e-3, atol=0.02)
        assert reward == pytest.approx(episode.rewards[t], rel=2e-3, abs=0.05)
        assert (terminated, truncated) == (episode.terminations[t], episode.truncations[t])
        for name in ("tracking_cost", "peak_temperature"):
            assert info[name] == pytest.approx(episode.infos[name][t + 1], rel=1e-3, abs=0.02)
        margin = episode.infos["constraint"][t + 1]
        assert info["constraints"][0] == pytest.approx(margin, abs=0.02)
        assert episode.infos["cost"][t + 1] == (margin > 0.0)


def test_minari_alone_finds_the_environment(folder):
    interop.to_minari("grade_up", "pi")
    code = (
        "import minari, sys; assert 'polycstr_jax' not in sys.modules; "
        "env = minari.load_dataset('polycstr/grade-up-pi-v0').recover_environment(); "
        "print(env.unwrapped.params.polymer_setpoint, env.reset(seed=0)[0].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.split() == ["100.0", "(9,)"], done.stderr


def test_minari_metadata_say_what_it_is(folder, dataset):
    metadata = interop.to_minari("startup", "pi").storage.metadata
    ours = metadata["polycstr_jax"]
    assert ours["sha256"] == data.sha256(dataset)
    plan = data.draw_behaviour("startup", "pi", NUM_EPISODES)
    assert ours["sha256_inputs"] == data.sha256(plan)
    assert (ours["scenario"], ours["dataset"], ours["seed"]) == ("startup", "pi", 0)
    assert ours["temperature_limit"] == PolyCSTR("startup").default_params.temperature_limit
    assert metadata["total_steps"] == NUM_EPISODES * T
    assert "PI" in metadata["algorithm_name"] and "infos[name][t + 1]" in metadata["description"]
    mixed = interop.to_minari("grade_down", "mixed")
    assert mixed.id == "polycstr/grade-down-mixed-v0"
    shares = mixed.storage.metadata["polycstr_jax"]["recipe"]
    assert "pi 35 %" in shares and "boost 25 %" in shares  # docs/environment.md


def test_another_seed_or_length_has_another_id(folder):
    assert interop.to_minari("startup", "pi", 2).id == "polycstr/startup-pi-2-episodes-seed-0-v0"
    other = interop.to_minari("startup", "pi", seed=7, dataset_id="mine/seven-v1")
    assert other.id == "mine/seven-v1"
    assert_equal(interop.from_minari("mine/seven-v1"), data.generate("startup", "pi", seed=7))


def test_what_is_there_is_replaced_only_when_asked(folder):
    def seed():
        return minari.load_dataset("mine-v0").storage.metadata["polycstr_jax"]["seed"]

    interop.to_minari("startup", "pi", seed=1, dataset_id="mine-v0")
    with pytest.raises(FileExistsError, match=r"mine-v0.*already.*overwrite=True"):
        interop.to_minari("startup", "pi", seed=2, dataset_id="mine-v0")
    assert seed() == 1
    interop.to_minari("startup", "pi", seed=2, dataset_id="mine-v0", overwrite=True)
    assert seed() == 2 and minari.load_dataset("mine-v0").total_episodes == NUM_EPISODES
    assert files_in(folder) == ["mine-v0/data/main_data.hdf5", "mine-v0/data/metadata.json"]


def test_nothing_half_written_is_left_and_the_old_set_stays(folder, monkeypatch):
    def fail(self, episodes):
        raise OSError("No space left on device")

    storage = type(interop.to_minari("startup", "pi").storage)
    before = interop.from_minari(ID), files_in(folder)
    monkeypatch.setattr(storage, "update_episodes", fail)
    for scenario in ("startup", "grade_up"):
        with pytest.raises(OSError, match="No space left"):
            interop.to_minari(scenario, "pi", overwrite=True)
    assert files_in(folder) == before[1]
    assert_equal(interop.from_minari(ID), before[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("polycstr/startup-pl-v0", r"did you mean 'polycstr/startup-pi-v0'.*There: none"),
        ("polycstr/grade_down-pi-v0", r"did you mean 'polycstr/grade-down-pi-v0'"),
        (
            ID,
            r"is not in .* yet .*to_minari\('startup', 'pi'\) makes it, or .*--dataset pi --format",
        ),
        ("door-human-v2", r"'door-human-v2' is not in .*to_minari makes: polycstr/startup-pi-v0"),
    ],
)
def test_an_unknown_id_is_answered_with_near_ones(folder, wrong, message):
    with pytest.raises(FileNotFoundError, match=message) as error:
        interop.from_minari(wrong)
    assert f"did you mean {wrong!r}" not in str(error.value)


@pytest.mark.parametrize("wrong", ["startup-pi", "polycstr/start up-v0", "../x-v0", ""])
def test_an_id_that_minari_does_not_allow_is_refused(folder, wrong):
    for call in (interop.from_minari, lambda x: interop.to_minari("startup", dataset_id=x)):
        with pytest.raises(ValueError, match=r"dataset_id = .*allowed: NAMESPACE/NAME-vNUMBER"):
            call(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shutdown",), "scenario = 'shutdown'; allowed: startup"),
        (("startup", "expert"), "dataset = 'expert'; allowed: pi, mixed"),
        (("startup", "pi", 0), "num_episodes = 0; allowed: an integer, 1 or more"),
        (("startup", "pi", 2, -1), "seed = -1; allowed: an integer, 0 or more"),
        (("grade_up", "pi", None, 0, ID), "that id is of 'startup', 'pi'"),
        (("startup", "pi", None, 1, ID), "that id is of 'startup', 'pi', all episodes, seed 0"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        interop.to_minari(*arguments)
    assert files_in(folder) == []


def test_a_changed_minari_set_is_refused_with_both_checksums(folder, dataset):
    interop.to_minari("startup", "pi")
    with h5py.File(folder / ID / "data" / "main_data.hdf5", "a") as file:
        file["episode_2/rewards"][5] -= 1.0
    with pytest.raises(ValueError, match=f"{data.sha256(dataset)} was written.*overwrite=True"):
        interop.from_minari(ID)


def test_damaged_and_foreign_minari_sets_are_named(folder):
    interop.to_minari("startup", "pi")
    with h5py.File(folder / ID / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2/infos/constraint"]
    with pytest.raises(ValueError, match=rf"{ID}.*\(infos/constraint is missing\).*overwrite=True"):
        interop.from_minari(ID)
    (folder / ID / "data" / "main_data.hdf5").write_bytes(b"not really")
    with pytest.raises(ValueError, match=rf"{ID}.*cannot be read as one of ours"):
        interop.from_minari(ID)
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "foreign-v0",
            [],
            observation_space=gymnasium.spaces.Box(-1.0, 1.0),
            action_space=gymnasium.spaces.Box(-1.0, 1.0),
        )
    with pytest.raises(ValueError, match=r"foreign-v0.*none of to_minari's.*polycstr/startup-pi"):
        interop.from_minari("foreign-v0")


def test_a_folder_that_minari_cannot_use_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"folder '.*file' cannot be.*"):
        interop.to_minari("startup", "pi")


@pytest.mark.parametrize("package", ["minari", "h5py"])
def test_without_the_extra_it_says_what_to_install(package, tmp_path, monkeypatch, dataset):
    monkeypatch.setitem(sys.modules, package, None)
    install = rf'{package} cannot be imported.*pip install "polycstr-jax\[interop\]"'
    for call in (lambda: interop.to_minari("startup"), lambda: interop.from_minari(ID)):
        with pytest.raises(ImportError, match=install):
            call()
    if package == "h5py":
        with pytest.raises(ImportError, match=install):
            interop.to_hdf5(tmp_path / "x.hdf5", dataset)
        with pytest.raises(ImportError, match=install):
            interop.from_hdf5(tmp_path / "x.hdf5")


# --- HDF5 ---


def episodes_of(path):
    """The episodes of a file, split as the loaders of DSRL and OSRL do.

    Every array of the file is read; an episode ends where terminals or timeouts is 1. (DSRL,
    `OfflineEnv.get_dataset` and `pre_process_data`; OSRL, `process_sequence_dataset`.)
    """
    arrays = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: (
                arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
        )
    needed = "observations next_observations actions rewards costs terminals timeouts".split()
    assert set(needed) <= set(arrays)
    assert len({len(array) for array in arrays.values()}) == 1  # all are cut alike
    ends = np.flatnonzero((arrays["terminals"] == 1) | (arrays["timeouts"] == 1)) + 1
    assert ends[-1] == len(arrays["rewards"])  # nothing is left over
    return [
        {name: array[start:end] for name, array in arrays.items()}
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def test_a_loader_of_dsrls_finds_our_episodes_returns_and_costs(tmp_path, trajectory, dataset):
    found = episodes_of(interop.to_hdf5(tmp_path / "x.hdf5", dataset))
    assert len(found) == NUM_EPISODES
    for lane, episode in enumerate(found):
        assert episode["observations"].shape == episode["next_observations"].shape == (T, 9)
        assert episode["actions"].shape == (T, 2)
        for name in ("observations", "next_observations", "actions", "rewards", "costs"):
            assert episode[name].dtype == np.float32
        np.testing.assert_array_equal(episode["observations"], trajectory.obs[:, lane])
        np.testing.assert_array_equal(
            episode["next_observations"][-1], trajectory.next_obs[-1, lane]
        )
        assert episode["rewards"].sum() == pytest.approx(trajectory.reward[:, lane].sum(), rel=1e-5)
        assert episode["costs"].sum() == trajectory.cost[:, lane].sum()
        assert not episode["terminals"].any() and episode["timeouts"].sum() == 1
    assert {float(episode["costs"].sum()) for episode in found} != {0.0}


def test_an_episode_that_terminates_is_cut_there(tmp_path, dataset):
    keep = (dataset.episode != 1) | (np.arange(NUM_EPISODES * T) < T + 150)
    shorter = data.Dataset(*(column[keep] for column in dataset))
    shorter.terminated[T + 149] = True
    found = episodes_of(interop.to_hdf5(tmp_path / "x.h5", shorter))
    assert [len(episode["rewards"]) for episode in found] == [T, 150, T, T]
    assert [bool(episode["terminals"][-1]) for episode in found] == [False, True, False, False]
    assert [bool(episode["timeouts"][-1]) for episode in found] == [True, False, True, True]


def test_what_dsrls_loaders_are_compared_with_are_the_episodes_of_the_data(dataset, tmp_path):
    path = interop.to_hdf5(tmp_path / "x.hdf5", dataset)
    lengths, returns, costs = clients_dsrl.of_file(path)
    assert lengths.tolist() == [data.EPISODE_LENGTH] * NUM_EPISODES
    for found, column in ((returns, dataset.reward), (costs, dataset.cost)):
        due = column.reshape(NUM_EPISODES, -1).sum(axis=1, dtype=np.float64)
        np.testing.assert_allclose(found, due, rtol=1e-12)


def test_an_hdf5_file_comes_back_bit_by_bit(tmp_path, dataset):
    path = interop.to_hdf5(tmp_path / "deep" / "x.hdf5", dataset, scenario="startup", seed=0)
    assert_equal(interop.from_hdf5(path), dataset)
    assert [p.name for p in path.parent.iterdir()] == ["x.hdf5"]
    with h5py.File(path) as file:
        assert file.attrs["scenario"] == "startup" and file.attrs["seed"] == 0
        assert file.attrs["sha256"] == data.sha256(dataset)


def without(name):
    return lambda file: file.pop(name)


def replaced(name, change):
    def apply(file):
        column = file[name][()]
        del file[name]
        file[name] = change(column)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("costs"), "costs missing; needed: observations, next_observations, actions"),
        (without("constraint"), "constraint missing; needed"),
        (replaced("rewards", np.float64), r"rewards is float64 \(800,\); allowed: float32 \(N,\)"),
        (replaced("timeouts", np.float32), r"timeouts is float32 \(800,\); allowed: bool \(N,\)"),
        (replaced("actions", lambda x: x[:, :1]), r"actions is .*\(800, 1\); allowed: .*\(N, 2\)"),
        (replaced("costs", lambda x: x[:, None]), r"costs is .*\(800, 1\); allowed: .*\(N,\)"),
        (replaced("costs", lambda x: x[:-1]), "lengths differ: .*costs 799.*same number of rows"),
        (replaced("rewards", lambda x: x - 1), "was written in it: the file was changed"),
        (lambda file: file.attrs.pop("sha256"), "None was written in it.*none of to_hdf5's"),
    ],
)
def test_what_is_wrong_with_an_hdf5_file_is_named(tmp_path, dataset, damage, message):
    path = interop.to_hdf5(tmp_path / "x.hdf5", dataset)
    with h5py.File(path, "a") as file:
        damage(file)
    with pytest.raises(ValueError, match=rf"path = '.*x\.hdf5'.*{message}.*to_hdf5"):
        interop.from_hdf5(path)


def test_what_is_no_hdf5_file_is_named(tmp_path, dataset):
    path = tmp_path / "x.hdf5"
    path.write_text("not really")
    with pytest.raises(ValueError, match=r"x\.hdf5' cannot be read as HDF5.*with to_hdf5"):
        interop.from_hdf5(path)
    interop.to_hdf5(path, dataset)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"x\.hdf5' cannot be read as HDF5"):
        interop.from_hdf5(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.hdf5' does not exist"):
        interop.from_hdf5(tmp_path / "nothing.hdf5")
    with pytest.raises(ValueError, match=r"path = .* is a folder; allowed: a file"):
        interop.from_hdf5(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("x.npz", {}, ValueError, r"x\.npz'; allowed: a name that ends in \.hdf5 or \.h5"),
        ("x.h5", {"cost": np.zeros(5, np.float32)}, ValueError, "lengths differ.*cost 5"),
        ("x.h5", {"cost": np.zeros(800)}, ValueError, "cost is float64"),
        ("file/x.h5", {}, OSError, "folder .* cannot be written to"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(
    tmp_path, dataset, name, changes, error, message
):
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        interop.to_hdf5(tmp_path / name, dataset._replace(**changes))
    assert files_in(tmp_path) == ["file"]


def test_an_empty_data_set_is_refused(tmp_path, dataset):
    with pytest.raises(ValueError, match="no rows; allowed: 1 or more"):
        interop.to_hdf5(tmp_path / "x.h5", data.Dataset(*(column[:0] for column in dataset)))


# --- The page about it ---


def test_the_page_on_data_runs(tmp_path, folder, monkeypatch):
    """docs/data.md, top to bottom, with data sets of 4 episodes."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "data.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "docs/data.md", "exec"), names)
    assert names["done"].sum() == NUM_EPISODES
    assert all(minari_id in text for minari_id in interop.minari_ids())
    assert all(f"| `{column}` |" in text for column in data.Dataset._fields)
    assert all(key in text for key in interop.HDF5_NAMES.values())


def test_d3rlpys_episodes_keep_every_pair_of_observation_and_action(folder, monkeypatch, dataset):
    """As `benchmarks/clients_d3rlpy.py` makes them, in an environment that has d3rlpy; here a
    tuple stands in for d3rlpy's episode."""
    fields = ["observations", "actions", "rewards", "terminated"]
    stand_in = types.SimpleNamespace(Episode=collections.namedtuple("Episode", fields))
    monkeypatch.setitem(sys.modules, "d3rlpy.dataset", stand_in)
    episodes = clients_d3rlpy.episodes_of(interop.to_minari("startup", "pi"))
    assert len(episodes) == NUM_EPISODES
    for number, episode in enumerate(episodes):
        rows = slice(number * T, (number + 1) * T)
        # d3rlpy makes T transitions of T + 1 rows of an episode that timed out.
        assert {len(x) for x in episode[:3]} == {T + 1} and not episode.terminated
        np.testing.assert_array_equal(episode.observations[:-1], dataset.obs[rows])
        np.testing.assert_array_equal(episode.observations[1:], dataset.next_obs[rows])
        np.testing.assert_array_equal(episode.actions[:-1], dataset.action[rows])
        np.testing.assert_array_equal(episode.rewards[:-1, 0], dataset.reward[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["x", "--num-updates", "0"], "--num-updates 0; allowed: 1 or more"), ([], "folder")],
)
def test_d3rlpys_script_refuses_before_it_imports_anything(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["clients_d3rlpy.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        clients_d3rlpy.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
