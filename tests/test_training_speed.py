"""The benchmark of training speed: what it counts, what it concludes, what it writes.

Nothing here depends on how fast this machine is."""

import dataclasses
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import picnn
from algos.common import jitted_over_seeds
from benchmarks import training_speed
from benchmarks.training_speed import Args
from polycstr_jax.data import Normaliser, TrainingData

NUM_TRANSITIONS = 600


@pytest.fixture(scope="module")
def data():
    """Transitions of the shapes of the real ones."""
    key_obs, key_next, key_action = jax.random.split(jax.random.key(0), 3)
    column = jnp.linspace(-1.0, 0.0, NUM_TRANSITIONS)
    return TrainingData(
        obs=jax.random.normal(key_obs, (NUM_TRANSITIONS, 9)),
        action=jnp.tanh(jax.random.normal(key_action, (NUM_TRANSITIONS, 2))),
        reward=column,
        cost=(column > -0.2).astype(jnp.float32),
        constraint=column,
        next_obs=jax.random.normal(key_next, (NUM_TRANSITIONS, 9)),
        terminated=jnp.zeros(NUM_TRANSITIONS, bool),
        truncated=jnp.arange(NUM_TRANSITIONS) % 200 == 199,
        tracking_cost=-column,
        normaliser=Normaliser(
            obs_mean=jnp.zeros(9),
            obs_std=jnp.ones(9),
            action_mean=jnp.zeros(2),
            action_std=jnp.full(2, 0.5),
            action_low=jnp.full(2, -1.0),
            action_high=jnp.ones(2),
            reward_std=jnp.ones(()),
        ),
    )


@pytest.fixture(scope="module")
def algorithms():
    """At the sizes that are measured."""
    return training_speed.make_algorithms(training_speed.Sizes())


# --- FLOPs ---


def test_flops_of_an_mlp_are_those_counted_by_hand():
    products = training_speed.mlp_products(9, (256, 256), 2)
    forward = 2 * (9 * 256 + 256 * 256 + 256 * 2)
    assert training_speed.forward_flops(products) == forward
    # Backward: as much for the weights, and for the inputs of all layers but the first.
    inputs = 2 * (256 * 256 + 256 * 2)
    assert training_speed.training_flops(products) == 2 * forward + inputs


def test_flops_of_an_iql_update_are_those_counted_by_hand(algorithms):
    wide = 256 * 256
    policy = 3 * (wide + 256 * 2) + 2 * 9 * 256  # forward and backward: multiplications
    value_forward, critic_forward = wide + 256 + 9 * 256, wide + 256 + 11 * 256
    value, critic = 3 * (wide + 256) + 2 * 9 * 256, 3 * (wide + 256) + 2 * 11 * 256
    expected = 2 * 256 * (2 * critic_forward + value_forward + value + 2 * critic + policy)
    assert training_speed.update_flops("iql", algorithms["iql"].config) == expected


@pytest.mark.parametrize(
    "model, state_path", [("picnn", "mlp"), ("picnn", "linear"), ("nn", "mlp")]
)
def test_every_weight_of_a_cost_model_is_in_one_product(model, state_path):
    config = picnn.Config(model=model, state_path=state_path, hidden=(64, 32))
    init = picnn.make_network(config).init
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros(9), jnp.zeros(2))
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    products = training_speed.cost_products(config)
    assert sorted((x.size, x.width) for x in products) == sorted(x.shape for x in matrices)


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_xla_counts_the_same_flops_for_an_update(name, algorithms, data):
    for num_seeds in (1, 2):
        state = jax.eval_shape(
            lambda n=num_seeds: training_speed.untrained(algorithms[name], data, n)
        )
        run, keys = jitted_over_seeds(algorithms[name])[1], training_speed.seed_keys(num_seeds)
        program = training_speed.Training(run, state, data, keys, 3)
        counted = training_speed.xla_flops(program.compiled) / num_seeds
        expected = training_speed.update_flops(name, algorithms[name].config)
        assert counted == pytest.approx(expected, rel=0.15), num_seeds


@pytest.mark.parametrize("model", ["picnn", "nn"])
def test_a_correction_step_is_cheaper_than_the_policys_forward_pass(model, algorithms, data):
    """In FLOPs, those of the dense layers and XLA's."""
    base = algorithms["bc"]
    config = dataclasses.replace(algorithms["picnn"].config, model=model)
    layer, key = picnn.make_train(config, base=base), jax.random.key(0)
    state = jax.eval_shape(lambda: layer.init(key, data, base.init(key, data)))
    obs, found = data.obs[None, : training_speed.NUM_DECISIONS], []
    for num_steps in (0, 1, 3):
        policy = picnn.make_train(dataclasses.replace(config, num_steps=num_steps), base=base)
        decisions = training_speed.Decisions(policy.policy, state, obs)
        found.append(training_speed.xla_flops(decisions.compiled) / training_speed.NUM_DECISIONS)
    step = (found[2] - found[1]) / 2
    assert training_speed.correction_flops(config) == pytest.approx(step, rel=0.15)
    forward = training_speed.forward_flops(training_speed.mlp_products(9, (256, 256), 2))
    assert forward == pytest.approx(found[0], rel=0.15)
    assert 0 < training_speed.correction_flops(config) < forward
    assert 0 < step < found[0]


# --- Timing ---


def test_all_calls_take_turns_between_two_looks_at_the_reference():
    order, values = [], iter([2.0, 4.0, 6.0, 8.0, 10.0, 12.0])

    def reference():
        order.append("reference")
        return next(values)

    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds, cpu_seconds, around = training_speed.take_turns(calls, 2, reference)
    assert order == ["reference", "a", "reference", "b", "reference"] * 2
    assert around == {"a": [3.0, 9.0], "b": [5.0, 11.0]}
    for found in (*seconds.values(), *cpu_seconds.values()):
        assert len(found) == 2 and min(found) >= 0.0


def ways(*rows):
    """Rows (width, times vmap at best, in the median round, difference of actions)."""
    names = ("width", "times_vmap", "times_vmap_median", "largest_action_difference")
    return [{"algorithm": "bc", **dict(zip(names, row, strict=True))} for row in rows]


@pytest.mark.parametrize(
    "others, width",
    [
        ([(1, 1.10, 1.12, 0.0), (2, 0.9, 0.9, 0.0)], 8),  # not by enough
        ([(1, 1.30, 1.05, 0.0)], 8),  # at best, but not in the median round
        ([(1, 1.30, 1.20, 0.0), (2, 1.40, 1.30, 1e-6)], 2),
        ([(1, 1.30, 1.20, 0.0), (2, 1.40, 1.30, 0.1)], 1),  # 2 gives other policies
        ([(2, 1.40, 1.30, 0.1)], 8),
    ],
)
def test_another_width_is_chosen_only_if_faster_for_the_same_policies(others, width):
    found = training_speed.batching_verdict(ways((8, 1.0, 1.0, 0.0), *others))
    assert found["bc"]["width"] == width
    assert ("vmap stays" in found["bc"]["text"]) == (width == 8)


# --- The whole ---


@pytest.fixture(scope="module")
def smoke(data, tmp_path_factory):
    """The folder that a smoke run wrote."""
    folder = tmp_path_factory.mktemp("training_speed") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_speed, "load_training_data", lambda *_: data)
        training_speed.main(Args(out=folder, smoke=True))
    return folder


def test_the_json_holds_every_figure(smoke):
    text = (smoke / "training_speed.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert set(found["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
    for name in ("device", "backend", "date", "command", "matmul_precision"):
        assert isinstance(found[name], str) and found[name], name
    assert found["command"] == "python -m benchmarks.training_speed --smoke"
    assert str(smoke) not in text, "a machine's path"
    assert 0.0 < found["matmul_peak_median"] <= found["matmul_peak"]
    assert set(found["matmul_by_size"]) == {"64", "128"}

    assert {row["algorithm"] for row in found["training"]} == {"bc", "iql", "picnn"}
    for row in found["training"]:
        per_second = row["seeds"] * row["updates_per_second"]
        assert row["seed_updates_per_second"] == pytest.approx(per_second)
        flops = row["seed_updates_per_second"] * row["flops_per_update"]
        assert row["gflops"] == pytest.approx(flops / 1e9)
        assert row["share_of_peak"] == pytest.approx(row["gflops"] / found["matmul_peak"])
        for name in ("updates_per_second_median", "seed_updates_per_second_median"):
            assert 0.0 < row[name] <= row[name.removesuffix("_median")]
        assert row["share_of_peak_median"] > 0.0 and row["updates_measured"] >= 1
        assert row["xla_flops_per_update"] > 0.0

    widths = [(row["algorithm"], row["width"]) for row in found["batching"]]
    assert widths == [("bc", 8), ("bc", 1), ("iql", 8), ("iql", 1)]
    for row in found["batching"]:
        assert row["seed_updates_per_second"] >= row["seed_updates_per_second_median"] > 0.0
        assert row["times_vmap"] > 0.0 and row["times_vmap_median"] > 0.0
        assert row["largest_action_difference"] <= training_speed.TOLERANCE
    assert set(found["batching_verdict"]) == {"bc", "iql"}

    cases = [(row["model"], row["correction"], row["num_steps"]) for row in found["correction"]]
    assert cases == [
        ("policy", "none", 0),
        ("picnn", "gradient", 2),
        ("nn", "gradient", 2),
        ("picnn", "newton", 1),
        ("picnn", "exact", None),
    ]
    for row in found["correction"]:
        assert 0.0 < row["microseconds"] <= row["microseconds_median"]
        assert row["times_policy"] > 0.0 and row["cpu_microseconds"] > 0.0
    assert [row["model"] for row in found["correction_step"]] == ["picnn", "nn"]
    for row in found["correction_step"]:
        assert row["share_of_flops"] == pytest.approx(row["flops"] / row["policy_flops"])
        shares = ("share_of_policy", "share_of_policy_median", "cpu_share_of_policy")
        for name in ("microseconds", *shares):
            assert math.isfinite(row[name]), name
        assert row["xla_share_of_flops"] > 0.0


def test_the_tables_are_complete_and_nothing_else_is_left(smoke):
    names = ["training_speed.json", "training_speed.md"]
    assert sorted(path.name for path in smoke.iterdir()) == names
    text = (smoke / "training_speed.md").read_text()
    assert str(smoke) not in text, "a machine's path"
    for title in ("Updates", "Batching of 8 seeds on the CPU", "Correction layer"):
        assert f"## {title}\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    headings = 3
    assert len(rows) == headings + 3 + 4 + 5
    assert "None" not in text and "nan" not in text


def test_on_an_accelerator_the_tables_do_without_batching(smoke):
    found = json.loads((smoke / "training_speed.json").read_text())
    text = training_speed.markdown(
        found | {"backend": "gpu", "batching": [], "batching_verdict": {}}
    )
    assert "Batching" not in text and "TF32" in text


@pytest.mark.parametrize(
    "args, named",
    [
        (Args(seeds=(8, 0)), "seeds = 8 0;"),
        (Args(seeds=(-1,)), "seeds = -1;"),
        (Args(repeats=0), "repeats = 0;"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_before_measuring(args, named, tmp_path, monkeypatch):
    monkeypatch.setattr(training_speed, "measure_all", pytest.fail)
    with pytest.raises(SystemExit) as error:
        training_speed.main(dataclasses.replace(args, out=tmp_path / "out"))
    assert named in str(error.value) and "allowed: 1 or more" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_an_error_before_measuring(tmp_path, monkeypatch):
    monkeypatch.setattr(training_speed, "measure_all", pytest.fail)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match="cannot be written") as error:
        training_speed.main(Args(out=file / "folder"))
    assert os.fspath(file) in str(error.value)


def test_the_command_is_the_one_that_was_typed():
    assert training_speed.command(Args()) == "python -m benchmarks.training_speed"
    typed = training_speed.command(Args(seeds=(1, 8), repeats=5))
    assert typed == "python -m benchmarks.training_speed --seeds 1 8 --repeats 5"
    defaults = training_speed.resolve(Args())
    accelerator = () if jax.default_backend() == "cpu" else (1_024,)
    assert defaults.seeds == (1, 8, 64, *accelerator) and defaults.repeats == 3


def test_mapped_seeds_are_trained_as_vmapped_ones(algorithms, data):
    """Each from its own state with its own key."""
    small = dict(training_speed.SMOKE.settings)
    config = dataclasses.replace(algorithms["bc"].config, **small)
    algorithm = training_speed.bc.make_train(config)
    keys, found = training_speed.seed_keys(3), []
    for run in (jitted_over_seeds(algorithm)[1], training_speed.mapped(algorithm, 2)):
        program = training_speed.Training(
            run, training_speed.untrained(algorithm, data, 3), data, keys, 10
        )
        program()
        found.append(training_speed.actions_of(algorithm, program.state, data))
    assert found[0].shape == (3, training_speed.NUM_DECISIONS, 2)
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.ptp(found[0], axis=0).max() > 1e-3, "seeds differ"
