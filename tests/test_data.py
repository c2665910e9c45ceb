"""The data sets are what docs/environment.md says, the same everywhere, and safe on disk."""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import polycstr_jax
from polycstr_jax import controllers, data, evaluate
from polycstr_jax.env import scenario_params

SCENARIOS = tuple(polycstr_jax.SCENARIOS)


@pytest.fixture(scope="module")
def pi_sets():
    return {scenario: data.generate(scenario, "pi") for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def mixed():
    return {scenario: data.generate_trajectory(scenario, "mixed") for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("dataset", data.DATASETS)
def test_gains_starts_and_noise_are_the_same_everywhere(scenario, dataset):
    plan = data.draw_behaviour(scenario, dataset, data.NUM_EPISODES[dataset])
    assert data.sha256(plan) == data.committed_checksums()["inputs"][f"{scenario}/{dataset}"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_arrays_have_the_committed_checksum_on_a_known_platform(scenario, pi_sets, mixed):
    committed = data.committed_checksums()["arrays"].get(data.platform_key())
    if committed is None:
        pytest.skip(f"no checksums of {data.platform_key()} are committed")
    assert data.sha256(pi_sets[scenario]) == committed[f"{scenario}/pi"]
    assert data.sha256(data.to_dataset(mixed[scenario][0])) == committed[f"{scenario}/mixed"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_trajectories_agree_with_the_reference_platform_outside_runaways(scenario, mixed):
    """Elsewhere only closeness can be asked for: per-episode returns and peaks, in float32."""
    with np.load(Path(__file__).parent / "data" / "mixed_reference.npz") as reference:
        expected_return = reference[f"{scenario}_return"]
        expected_peak = reference[f"{scenario}_peak"]
    calm = expected_peak < 375.0
    trajectory = mixed[scenario][0]
    returns = trajectory.reward.sum(axis=0, dtype=np.float64)
    np.testing.assert_allclose(returns[calm], expected_return[calm], rtol=2e-3)
    peaks = trajectory.peak_temperature.max(axis=0)
    np.testing.assert_allclose(peaks[calm], expected_peak[calm], atol=0.1)


def test_the_same_seed_gives_the_same_bytes(pi_sets):
    again = data.generate("startup", "pi")
    assert data.sha256(again) == data.sha256(pi_sets["startup"])
    other = data.generate("startup", "pi", seed=1)
    assert data.sha256(other) != data.sha256(again)


def test_data_do_not_depend_on_the_precision_setting(pi_sets):
    with jax.enable_x64(True):
        again = data.generate("grade_up", "pi")
    assert data.sha256(again) == data.sha256(pi_sets["grade_up"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pi_set_has_the_papers_size_and_no_runaway(scenario, pi_sets):
    dataset = pi_sets[scenario]
    assert dataset.obs.shape == (20_000, 9) and dataset.obs.dtype == np.float32
    assert dataset.action.shape == (20_000, 2) and np.abs(dataset.action).max() <= 1.0
    assert dataset.next_obs[:, 4].max() < 380.0
    assert dataset.constraint.max() <= 380.0 - 356.0


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_mixed_set_violates_and_runs_away_often_enough_to_learn_from(scenario, mixed):
    trajectory, plan = mixed[scenario]
    peak = trajectory.peak_temperature.max(axis=0)
    assert peak.shape == (500,)
    assert 0.20 <= np.mean(peak > 356.0) <= 0.70
    assert 0.05 <= np.mean(peak > 380.0) <= 0.15
    shares = np.bincount(plan.kind, minlength=5) / 500
    np.testing.assert_allclose(shares, data.MIXED_SHARES[scenario], atol=0.011)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_columns_are_consistent_with_each_other(scenario, pi_sets):
    dataset, params = pi_sets[scenario], scenario_params(scenario)
    error_p = params.polymer_setpoint - dataset.next_obs[:, 3].astype(np.float64)
    error_t = params.temperature_setpoint - dataset.next_obs[:, 4].astype(np.float64)
    np.testing.assert_allclose(dataset.reward, -(error_p**2 + error_t**2), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(
        dataset.tracking_cost, np.abs(error_p) + np.abs(error_t), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_array_equal(dataset.cost, (dataset.constraint > 0.0).astype(np.float32))
    same_episode = dataset.episode[1:] == dataset.episode[:-1]
    np.testing.assert_array_equal(
        dataset.obs[1:][same_episode], dataset.next_obs[:-1][same_episode]
    )
    assert not dataset.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncated), np.arange(199, 20_000, 200))
    # Controls move by the action times the largest increment, up to rounding, within bounds.
    moved = dataset.next_obs[:, 7:] - dataset.obs[:, 7:]
    np.testing.assert_allclose(moved, dataset.action * [0.5, 1.0], atol=1e-4)
    assert dataset.next_obs[:, 7].min() >= 0.0 and dataset.next_obs[:, 7].max() <= 2.5


def test_boosted_episodes_are_boosted_and_random_ones_random(mixed):
    trajectory, plan = mixed["startup"]
    for kind in (data.BOOST, data.RANDOM):
        for lane in np.flatnonzero(plan.kind == kind)[:5]:
            actions = trajectory.action[:, lane]
            if kind == data.BOOST:
                boosted = actions[plan.boost_start[lane] : plan.boost_end[lane]]
                np.testing.assert_array_equal(boosted, np.ones_like(boosted))
                assert 2 <= len(boosted) <= 5
            else:
                np.testing.assert_array_equal(actions, plan.random_action[lane])


def test_ornstein_uhlenbeck_noise_has_its_stationary_spread():
    plan = data.draw_behaviour("startup", "mixed", 500)
    noise = plan.noise[plan.kind == data.NOISE][:, 50:]
    expected = data.OU_SIGMA / np.sqrt(1.0 - (1.0 - data.OU_THETA) ** 2)
    assert noise.std() == pytest.approx(expected, rel=0.1)


def test_a_longer_draw_begins_with_the_shorter_one():
    short, long = (data.draw_behaviour("grade_down", "mixed", n) for n in (7, 20))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:7]), short, long)


def test_normaliser_standardises_the_pi_set_and_clips_runaways(pi_sets, mixed):
    scales = data.normaliser(pi_sets["startup"])
    obs = np.asarray(scales.obs(jnp.asarray(pi_sets["startup"].obs)))
    np.testing.assert_allclose(obs.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(obs.std(axis=0), 1.0, atol=0.1)
    training = data.training_data(data.to_dataset(mixed["startup"][0]), scales)
    assert np.abs(training.obs).max() == 10.0
    assert np.isfinite(training.reward).all()
    assert float(training.reward.min()) == pytest.approx(-20_000.0 / scales.reward_std, rel=1e-5)


def test_a_saved_data_set_comes_back(tmp_path, pi_sets):
    path = data.save(tmp_path / "deep" / "startup-pi.npz", pi_sets["startup"], scenario="startup")
    back = data.load(path)
    jax.tree.map(np.testing.assert_array_equal, back, pi_sets["startup"])
    assert [p.name for p in path.parent.iterdir()] == ["startup-pi.npz"]  # no temporary file


def test_a_changed_file_is_refused_with_both_checksums(tmp_path, pi_sets):
    dataset = pi_sets["startup"]
    reward = dataset.reward.copy()
    reward[5] += 1.0
    metadata = json.dumps({"sha256": data.sha256(dataset)})
    changed = dataset._replace(reward=reward)
    path = tmp_path / "changed.npz"
    np.savez(path, metadata=metadata, **changed._asdict())
    with pytest.raises(ValueError) as error:
        data.load(path)
    for part in (str(path), data.sha256(dataset), data.sha256(changed)):
        assert part in str(error.value)


def test_foreign_and_damaged_files_are_named(tmp_path):
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"foreign\.npz.*lacks.*action"):
        data.load(foreign)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"damaged\.npz.*cannot be read"):
        data.load(damaged)
    with pytest.raises(FileNotFoundError, match="missing"):
        data.load(tmp_path / "missing.npz")


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk on fire")

    target = tmp_path / "result.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        data.write_atomically(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


def test_files_with_other_columns_or_metadata_are_foreign(tmp_path, pi_sets):
    columns = pi_sets["startup"]._asdict()
    path = tmp_path / "x.npz"
    for changed, message in (
        ({"reward": columns["reward"].astype(np.float64)}, r"reward is float64.*allowed: float32"),
        ({"action": columns["action"][:, :1]}, r"action is float32 \(20000, 1\).*\(20000, 2\)"),
        ({"metadata": "no json"}, "metadata names no sha256"),
        ({"metadata": "{}"}, "metadata names no sha256"),
    ):
        np.savez(path, **{"metadata": "{}", **columns, **changed})
        with pytest.raises(ValueError, match=message):
            data.load(path)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"folder '.*file/below' cannot be written to"):
        data.write_atomically(tmp_path / "file" / "below" / "x.csv", lambda file: None)


def test_all_sets_are_regenerated_in_seconds():
    """Under 30 s is the claim on 2 quiet cores: at most twice that in processor time."""
    started = time.process_time()
    for scenario in SCENARIOS:
        for dataset in data.DATASETS:
            data.generate(scenario, dataset)
    assert time.process_time() - started < 60.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("start-up", "pi"), r"start-up.*allowed: startup"),
        (("startup", "expert"), r"expert.*allowed: pi, mixed"),
        (("startup", "pi", 0), r"num_episodes = 0.*1 or more"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.generate(*arguments)


def test_score_limits_are_the_percentiles_of_random_gain_pi_control():
    """A fresh sample with another seed lies within sampling error of the committed limits."""
    trajectory, _ = data.generate_trajectory("startup", "pi", 1_000, seed=7)
    returns = trajectory.reward.sum(axis=0)
    low, high = evaluate.score_limits("startup")
    assert np.percentile(returns, 10) == pytest.approx(low, rel=0.12)
    assert np.percentile(returns, 99) == pytest.approx(high, rel=0.03)


def test_gain_ranges_are_the_published_ones():
    assert (controllers.KP_LOW, controllers.KP_HIGH) == ((2e-4, 8e-3), (5e-3, 0.2))
    assert (controllers.KI_LOW, controllers.KI_HIGH) == ((6e-8, 2e-6), (1.5e-6, 5e-5))
    plan = data.draw_behaviour("startup", "pi", 300)
    assert np.all((plan.kp >= controllers.KP_LOW) & (plan.kp <= controllers.KP_HIGH))
    np.testing.assert_allclose(
        plan.ki.mean(axis=0), (np.array(controllers.KI_LOW) + controllers.KI_HIGH) / 2, rtol=0.1
    )
