"""The diagnostics of the correction layer measure what they say."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import picnn
from benchmarks import picnn as diagnostics
from polycstr_jax import evaluate
from polycstr_jax.data import Normaliser, TrainingData

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def scales():
    return Normaliser(
        obs_mean=jnp.zeros(9),
        obs_std=jnp.ones(9),
        action_mean=jnp.zeros(2),
        action_std=jnp.full(2, 0.25),
        action_low=jnp.full(2, -0.9),
        action_high=jnp.full(2, 0.9),
        reward_std=jnp.ones(()),
    )


def random_states(config, num_seeds, scales):
    """Untrained cost models of several seeds, with weights large enough to bend."""
    network = picnn.make_network(config)

    def of(key):
        params = network.init(key, jnp.zeros(9), jnp.zeros(2))
        params = jax.tree.map(lambda x: jnp.where(jnp.ndim(x) == 2, 2.0 * x, x), params)
        return picnn.State(
            params=jax.tree.map(lambda x: x[None], params),
            opt_state=(),
            base=(),
            target_mean=jnp.asarray(10.0),
            target_std=jnp.asarray(4.0),
            eta=jnp.asarray(config.eta),
            gate=jnp.asarray(config.gate),
            normaliser=scales,
            step=jnp.zeros((), jnp.int32),
        )

    return jax.vmap(of)(jax.random.split(jax.random.key(0), num_seeds))


def test_r_squared_is_1_for_the_truth_and_0_for_its_mean():
    target = np.asarray([1.0, 2.0, 3.0, 6.0])
    assert diagnostics.r_squared(target, target) == 1.0
    assert diagnostics.r_squared(np.full(4, 3.0), target) == pytest.approx(0.0)
    two = diagnostics.r_squared(np.stack([target, target + 1.0]), target)
    np.testing.assert_allclose(two, [1.0, 1.0 - 4.0 / 14.0])


def test_eigenvalues_are_those_of_finite_differences(scales, double):
    config = picnn.Config(model="nn", hidden=(8,))
    states = random_states(config, 2, scales)
    rng = np.random.default_rng(0)
    obs, b = rng.standard_normal((3, 9)), rng.standard_normal((3, 2))
    low, high = diagnostics.eigenvalues(config, states, obs, b)
    cost, step = picnn.make_cost(config), 1e-4
    params = jax.tree.map(lambda x: x[1], states.params)

    def f(x):
        return float(cost(params, obs[2], b[2] + x))

    hessian = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            di, dj = step * np.eye(2)[i], step * np.eye(2)[j]
            hessian[i, j] = (f(di + dj) - f(di - dj) - f(dj - di) + f(-di - dj)) / (4 * step**2)
    expected = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose([low[1, 2], high[1, 2]], expected, atol=1e-5)


def test_the_certificate_tells_the_convex_network_from_the_standard_one(scales, monkeypatch):
    monkeypatch.setattr(diagnostics, "NUM_RANDOM", 300)
    trajectory = fake_trajectory()
    shares = {}
    for name, changes in diagnostics.MODELS.items():
        config = picnn.Config(**changes)
        states = random_states(config, 3, scales)
        row = diagnostics.convexity(config, states, trajectory, scales)
        shares[name] = (row["random: share negative"], row["roll-out: share negative"])
    assert shares["PICNN"] == shares["linear state path"] == (0.0, 0.0)
    assert min(shares["standard network"]) > 0.05


def fake_trajectory(num_steps=20, num_starts=6):
    """The two fields of a trajectory that the diagnostics read."""
    keys = jax.random.split(jax.random.key(3))

    class Fake:
        obs = jax.random.normal(keys[0], (num_steps, num_starts, 9))
        action = jnp.clip(0.25 * jax.random.normal(keys[1], (num_steps, num_starts, 2)), -1.0, 1.0)
        reward = jnp.zeros((num_steps, num_starts))

    return Fake


def test_more_steps_come_closer_to_the_minimum_that_newton_finds(scales):
    config = picnn.Config(gate=0.0)
    states = random_states(config, 2, scales)
    trajectory = fake_trajectory(74, 3)
    row = diagnostics.correction_quality(config, states, trajectory, scales)
    gaps = [row[f"K = {steps}: median gap"] for steps in diagnostics.GRID_STEPS]
    assert all(0.0 <= gap <= 1.0 for gap in gaps)
    assert gaps == sorted(gaps, reverse=True)
    assert row["cost at the minimum"] <= min(
        value for name, value in row.items() if name.endswith("cost after")
    )
    assert row["cost before"] > row["K = 1: cost after"]
    assert row["largest projected gradient at the minimum"] < 1e-3


def test_the_direction_of_a_linear_cost_persists(scales):
    config = picnn.Config(hidden=(4,))
    states = random_states(config, 2, scales)
    zeros = jax.tree.map(jnp.zeros_like, states.params)
    # Only the skip of the action to the output is left: the cost is linear in the action.
    direction = jnp.tile(jnp.asarray([[3.0], [4.0]])[None, None], (2, 1, 1, 1))
    zeros["params"]["Dense_4"]["kernel"] = direction
    size, cosine = diagnostics.gradient_course(
        config, states._replace(params=zeros), fake_trajectory(), scales
    )
    np.testing.assert_allclose(size, 5.0, rtol=1e-5)
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)
    assert size.shape == (20,) and cosine.shape == (19,)


def test_the_best_setting_is_best_over_all_scenarios_and_bases():
    def row(base, eta, mean):
        return {
            "scenario": "x",
            "base": base,
            "num_steps": 1,
            "eta": eta,
            "gate": 0.0,
            "mean": mean,
        }

    rows = [
        row("bc", 0.1, 50.0),
        row("bc", 1.0, 90.0),
        row("iql", 0.1, 60.0),
        row("iql", 1.0, -9.0),
    ]
    assert diagnostics.best_setting(rows) == {"num_steps": 1, "eta": 0.1, "gate": 0.0, "mean": 55.0}
    assert diagnostics.mean_of(rows, "bc", 1, 1.0, 0.0, ["x"]) == 90.0
    with pytest.raises(ValueError, match="allowed: one a scenario"):
        diagnostics.mean_of(rows, "bc", 3, 1.0, 0.0, ["x"])


def test_every_preset_has_the_setting_that_the_committed_tuning_chose():
    path = pathlib.Path(__file__).parent.parent / "results/picnn/diagnostics.json"
    grids = json.loads(path.read_text())["grids"]
    assert set(grids) == set(picnn.PRESETS)
    for name, rows in grids.items():
        best, config = diagnostics.best_setting(rows), picnn.PRESETS[name]
        chosen = {"num_steps": config.num_steps, "eta": config.eta, "gate": config.gate}
        assert chosen == {key: best[key] for key in chosen}, name


def test_every_option_is_allowed():
    for name in diagnostics.OPTIONS:
        picnn.make_train(diagnostics.option_config(name))


def test_starts_are_widened_within_the_stated_bounds():
    nominal = evaluate.starts("grade_up", "nominal")
    np.testing.assert_array_equal(diagnostics.widened("grade_up", 0.0).state, nominal.state)
    wide = diagnostics.widened("grade_up", 2.0).state
    factor = wide[:, [0, 3]] / nominal.state[:, [0, 3]]
    assert 0.8 <= factor.min() < 0.9 and 1.1 < factor.max() <= 1.2 + 1e-6
    shift = wide[:, 4] - nominal.state[:, 4]
    assert -6.0 <= shift.min() < -3.0 and 3.0 < shift.max() <= 6.0 + 1e-4
    np.testing.assert_array_equal(wide[:, [1, 2]], nominal.state[:, [1, 2]])


def test_predictions_are_in_the_units_of_the_cost(scales):
    column = jnp.linspace(0.0, 9.0, 50)
    data = TrainingData(
        obs=jnp.zeros((50, 9)),
        action=jnp.zeros((50, 2)),
        reward=-column,
        cost=jnp.zeros(50),
        constraint=column,
        next_obs=jnp.zeros((50, 9)),
        terminated=jnp.zeros(50, bool),
        truncated=jnp.zeros(50, bool),
        tracking_cost=column,
        normaliser=scales,
    )
    config = picnn.Config(target="one_step")
    states = random_states(config, 2, scales)
    flat = jax.tree.map(jnp.zeros_like, states.params)
    predicted, true = diagnostics.predictions(config, states._replace(params=flat), data)
    np.testing.assert_array_equal(true, data.tracking_cost)
    # A zero raw weight is a weight of log 2 on softplus(0) = log 2.
    z = 64 * np.log(2.0) ** 2
    expected = 10.0 + 4.0 * 64 * np.log(2.0) * np.log1p(np.exp(z))
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(SystemExit, match="num-seeds = 0; allowed: 1 or more"):
        diagnostics.main(diagnostics.Args(num_seeds=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written to"):
        diagnostics.main(diagnostics.Args(out=tmp_path / "file" / "x"))


def test_the_standard_network_is_the_better_fit_where_the_surface_is_not_convex():
    config = dataclasses.replace(picnn.PRESETS["default"], hidden=(32, 32))
    rng = np.random.default_rng(0)
    obs = np.zeros((4_000, 9), np.float32)
    action = np.float32(rng.uniform(-1.0, 1.0, (4_000, 2)))
    target = np.float32(np.cos(3.0 * action[:, 0]))  # concave around 0
    fits = {}
    for model in ("picnn", "nn"):
        network = picnn.make_network(dataclasses.replace(config, model=model))
        params = diagnostics.fit(network, obs, action, target, 2_000)
        fits[model] = diagnostics.r_squared(network.apply(params, obs, action), target)
    assert fits["nn"] > 0.95
    assert fits["picnn"] < 0.7  # the best convex fit of a hill is poor
