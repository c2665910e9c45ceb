"""`benchmarks.marvel`: what it counts, against known answers, and that it runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import cpq, marvel, sac_lag
from benchmarks import marvel as benchmark
from benchmarks import worker
from polycstr_jax import data as data_module
from polycstr_jax.env import initial_state, scenario_params, state_from_obs
from tests.made_up import noise, squashed_entropy

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SMALL = dataclasses.replace(
    marvel.DEFAULT, hidden=(8,), batch_size=32, gradient_steps=2, vpa_updates=3, num_updates=2
)

SCRATCH = dataclasses.replace(
    sac_lag.DEFAULT, hidden=(8,), batch_size=32, gradient_steps=2, num_updates=2
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything, at the smallest size, from the smallest networks."""
    folder = tmp_path_factory.mktemp("marvel")
    args = benchmark.Args(
        out=folder / "out",
        figures=folder,
        num_seeds=1,
        num_updates=2,
        num_pairs=8,
        num_repeats=2,
        horizon=3,
    )
    offline = dataclasses.replace(
        cpq.PRESETS["default"], vae_hidden=(8,), batch_size=32, num_updates=3
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "TRAINED", folder / "trained")
        patch.setitem(cpq.PRESETS, "default", offline)
        patch.setattr(marvel, "DEFAULT", SMALL)
        patch.setattr(benchmark, "RULES", {"pid": [{"rule": "pid", "proportional": 0.1}]})
        patch.setattr(benchmark, "SWEPT", {"no alignment": {"align": "none"}})
        patch.setattr(benchmark, "COVERED", ("mixed",))
        patch.setattr(sac_lag, "DEFAULT", SCRATCH)
        patch.setattr(benchmark, "SHOWN", benchmark.SHOWN[::3])
        patch.setattr(benchmark, "FOULING", {"pid": {"controller": marvel.PID}})
        patch.setattr(benchmark, "NUM_POINTS", 200)
        patch.setattr(benchmark, "ALIGNED", {"offline": {"align": "none"}, "aligned": {}})
        benchmark.main(args)
    assert (folder / "marvel-trajectories-startup.png").stat().st_size > 10_000
    return json.loads((args.out / "marvel.json").read_text())


def test_every_section_has_rows_and_provenance(measured):
    assert {*measured} == {*benchmark.SECTIONS}
    assert all({"commit", "hardware"} <= {*section["made"]} for section in measured.values())
    rows = {name: section["rows"] for name, section in measured.items()}
    assert [row["chosen"] for row in rows["tuning"]] == [True]
    plants = [("nothing", False), ("fouled", False), ("fouled", True)]
    assert [(row["change"], row["reset"]) for row in rows["fouling"]] == plants
    assert [row["data"] for row in rows["coverage"]] == ["mixed"]
    kinds = {(row["pairs"], row["critic"], row["critics"]) for row in rows["values"]}
    assert len(kinds) == len(rows["values"]) == 2 * 2 * 2
    for row in (*rows["tuning"], *rows["sweeps"]):
        assert 0.0 <= row["violating intervals"] <= 2 * data_module.EPISODE_LENGTH
        assert np.isfinite(row["gap closed"])


def test_aligned_critics_and_offline_ones_are_judged_by_the_same_episodes(measured):
    rows = {(r["pairs"], r["critic"], r["critics"]): r for r in measured["values"]["rows"]}
    for source in ("data", "random"):
        for critic in ("Q", "Q_c"):
            pair = [rows[source, critic, name] for name in ("offline", "aligned")]
            # Up to the entropies that the aligned ones were fitted to.
            assert pair[0]["true"] != pair[1]["true"]
            assert pair[0]["true"] == pytest.approx(pair[1]["true"], abs=1.0)
        assert rows[source, "Q", "offline"]["said"] != rows[source, "Q", "aligned"]["said"]


def test_bad_arguments_are_refused_by_name(tmp_path):
    for name, value, least in (("num_seeds", 0, 1), ("num_updates", 1, 2), ("horizon", 0, 1)):
        args = benchmark.Args(out=tmp_path, figures=tmp_path, **{name: value})
        flag = name.replace("_", "-")
        with pytest.raises(SystemExit, match=f"{flag} = {value}; allowed: {least} or more"):
            benchmark.main(args)


def test_the_least_violating_of_the_good_settings_is_chosen():
    rows = [
        {"gap closed": gap, "violating intervals": intervals}
        for gap, intervals in ((90.0, 100.0), (86.0, 50.0), (84.0, 10.0))
    ]
    assert benchmark.choose(rows) is rows[1]


@pytest.mark.parametrize("file", ["marvel", "sac_lag"])
def test_changes_are_of_the_algorithm_or_of_its_controller(file):
    changes = {"rule": "dual", "rate": 0.5, "batch_size": 7}
    config = benchmark.configured(benchmark.Args(num_updates=3), changes, file)
    assert type(config) is {"marvel": marvel, "sac_lag": sac_lag}[file].Config
    assert (config.batch_size, config.num_updates) == (7, 3)
    assert (config.controller.rule, config.controller.rate) == ("dual", 0.5)


def test_settings_of_every_rule_are_as_many_and_allowed():
    assert len({len(settings) for settings in benchmark.RULES.values()}) == 1
    every = [x for settings in benchmark.RULES.values() for x in settings]
    changes = [*every, *benchmark.SWEPT.values(), *benchmark.ALIGNED.values()]
    params = scenario_params("startup")
    for change in (*changes, *benchmark.FOULING.values()):
        marvel.check_config(benchmark.configured(benchmark.Args(), change), params)


# --- Values ---


def test_agreement_is_of_ranks_and_its_error_in_deviations():
    true = np.arange(10.0)[None]
    assert benchmark.agreement(np.exp(true[0]), true)["rho"] == pytest.approx(1.0)
    assert benchmark.agreement(-true[0], true)["rho"] == pytest.approx(-1.0)
    assert np.isnan(benchmark.agreement(np.ones(10), true)["rho"])
    found = benchmark.agreement(true[0] + 3.0, true)
    assert found["off"] == pytest.approx(3.0 / true.std())
    assert (found["said"], found["true"], found["share of zeros"]) == pytest.approx((7.5, 4.5, 0.1))
    # The ceiling is of halves of the episodes: of noise alone it is low.
    noisy = np.random.default_rng(0).normal(size=(20, 500))
    assert abs(benchmark.agreement(true.repeat(50), noisy)["ceiling"]) < 0.2
    assert benchmark.agreement(true[0], np.repeat(true, 4, axis=0))["ceiling"] == pytest.approx(1.0)


def state_of(std: float = 1e-9):
    """Of an untrained Marvel, with a policy of this spread."""
    scales = data_module.normaliser(data_module.generate("startup", "pi", num_episodes=4))
    data = noise()._replace(normaliser=jax.tree.map(jnp.asarray, scales))
    init, _, _ = sac_lag.parts(SMALL)
    state = jax.jit(init)(jax.random.key(0), data)
    actor = jax.tree.map(lambda x: x, state.params.actor)
    last = actor["params"]["Dense_2"]
    actor["params"]["Dense_2"] = jax.tree.map(jnp.zeros_like, last) | {
        "bias": jnp.full_like(last["bias"], np.log(std))
    }
    return state._replace(params=state.params._replace(actor=actor))


def test_simulated_values_are_those_of_stepping_the_environment():
    """A policy without spread: the given action first, then the policy's, from the very state."""
    state, params = state_of(), scenario_params("startup")
    obs = jnp.asarray(data_module.generate("startup", "pi", num_episodes=1).obs[[20, 60]])
    action = jnp.asarray([[0.5, -0.5], [-0.3, 0.2]])
    act = sac_lag.mean_policy(SMALL, state)
    found = benchmark.simulated(SMALL, state, obs, action, jax.random.key(3), params, 2, 3)
    for x in found[:2]:  # nothing is random but the entropy of a spread of 1e-9
        np.testing.assert_allclose(x[0], x[1], rtol=1e-5)
    step = jax.jit(worker.ENV.step_env)
    for lane in range(2):
        env_state, now = initial_state(*state_from_obs(obs[lane])), action[lane]
        value = cost = 0.0
        for k in range(3):
            seen, env_state, reward, _, info = step(jax.random.key(0), env_state, now, params)
            value += 0.99**k * float(state.normaliser.reward(reward))
            cost += 0.99**k * float(info["constraints"][0] > 0.0)
            now = act(seen, None)
        assert float(found[0][0, lane]) == pytest.approx(value, rel=1e-3)
        assert float(found[1][0, lane]) == pytest.approx(cost)


def test_a_state_above_the_limit_costs_something():
    state, params = state_of(), scenario_params("startup")
    obs = jnp.asarray(data_module.generate("startup", "pi", num_episodes=1).obs[[20]])
    hot = obs.at[0, 4].set(params.temperature_limit + 5.0)
    rng = jax.random.key(0)
    _, cost, entropy = benchmark.simulated(SMALL, state, hot, jnp.zeros((1, 2)), rng, params, 1, 1)
    assert float(cost[0, 0]) == 1.0
    assert float(entropy[0, 0]) == 0.0  # of the given action there is none


def test_entropies_are_those_of_the_policy_discounted_from_the_second_action_on():
    std, mean = 0.4, 0.0
    state, params = state_of(std), scenario_params("startup")
    last = state.params.actor["params"]["Dense_1"]
    state.params.actor["params"]["Dense_1"] = jax.tree.map(jnp.zeros_like, last)
    obs = jnp.asarray(data_module.generate("startup", "pi", num_episodes=1).obs[[20]])
    rng = jax.random.key(0)
    found = benchmark.simulated(SMALL, state, obs, jnp.zeros((1, 2)), rng, params, 2_000, 3)[2]
    expected = (0.99 + 0.99**2) * 2 * squashed_entropy(mean, std)  # of two actions
    assert float(found.mean()) == pytest.approx(expected, abs=0.1)


def test_predictions_are_the_least_value_and_the_greatest_cost():
    state = state_of()

    def constant(critic, values):
        critic = jax.tree.map(jnp.zeros_like, critic)
        last = critic["params"]["Dense_1"]
        critic["params"]["Dense_1"] = last | {"bias": jnp.asarray(values)[:, None]}
        return critic

    params = state.params._replace(
        critic=constant(state.params.critic, (1.0, 2.0)),
        cost_critic=constant(state.params.cost_critic, (3.0, 4.0)),
    )
    obs, action = jnp.ones((2, 9)), jnp.zeros((2, 2))
    value, cost = benchmark.predicted(SMALL, state._replace(params=params), obs, action)
    assert value.tolist() == [1.0, 1.0] and cost.tolist() == [4.0, 4.0]


def test_pairs_are_of_the_data_or_of_random_actions():
    args, rng = benchmark.Args(num_pairs=64), np.random.default_rng(0)
    rows = data_module.generate("startup", "mixed")
    known = {row.tobytes() for row in np.concatenate([rows.obs, rows.action], axis=1)}
    of_data = np.concatenate(benchmark.pairs(args, "data", rng), axis=1)
    assert {row.tobytes() for row in of_data} <= known
    obs, action = benchmark.pairs(args, "random", rng)
    assert obs.shape == (64, 9) and 0.4 < np.abs(action).mean() < 0.6  # uniform in the box


# --- Coverage ---


def test_the_divergence_of_gaussians_is_the_known_one():
    rng = np.random.default_rng(0)
    sample, other = rng.normal(size=(4_000, 2)), rng.normal(1.0, 1.0, (4_000, 2))
    assert benchmark.divergence(sample, other) == pytest.approx(1.0, abs=0.15)  # |shift|^2 / 2
    assert benchmark.divergence(sample, rng.normal(size=(4_000, 2))) == pytest.approx(0, abs=0.1)


def test_control_errors_are_no_further_dimensions():
    """They are polymer and temperature once more, and would count twice in the divergence."""
    state, obs, action = state_of(), jnp.arange(18.0).reshape(2, 9), jnp.zeros((2, 2))
    found = benchmark.features(SMALL, state, obs, action)
    assert found[0].tolist() == [0, 1, 2, 3, 4, 7, 8, 0, 0]


def test_coverage_is_the_quantile_of_the_same_and_nothing_of_another_place():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4_000, 3))
    radius = benchmark.own_distance(data)
    assert benchmark.covered(rng.normal(size=(2_000, 3)), data[::2], radius) == pytest.approx(
        0.95, abs=0.02
    )
    assert benchmark.covered(rng.normal(9.0, 1.0, (2_000, 3)), data, radius) == 0.0
    # Less data cover less, within the same distance.
    assert benchmark.covered(rng.normal(size=(2_000, 3)), data[::40], radius) < 0.7


def test_differences_are_paired_and_written_with_their_interval():
    seeds = np.arange(8.0)
    assert benchmark.paired(seeds + 2.0, seeds) == "+2.0 [2.0, 2.0]"
    assert benchmark.paired(seeds[:4] - 0.25, seeds[:4], 2) == "-0.25 -"  # too few seeds
