"""The benchmark of training speed: what it counts, what it concludes, what it writes.

Nothing here depends on how fast this machine is."""

import dataclasses
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algos import picnn
from algos.common import MLP, jitted_over_seeds
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
    layers = training_speed.kernels(MLP((256, 256), 2), 9)
    forward = 2 * (9 * 256 + 256 * 256 + 256 * 2)
    assert training_speed.forward_flops(layers) == forward
    # Backward: as much for the weights, and for the inputs of all layers but the first.
    inputs = 2 * (256 * 256 + 256 * 2)
    assert training_speed.training_flops(layers) == 2 * forward + inputs


def test_flops_of_an_iql_update_are_those_counted_by_hand(algorithms):
    wide = 256 * 256
    policy = 3 * (wide + 256 * 2) + 2 * 9 * 256  # forward and backward: multiplications
    value_forward, critic_forward = wide + 256 + 9 * 256, wide + 256 + 11 * 256
    value, critic = 3 * (wide + 256) + 2 * 9 * 256, 3 * (wide + 256) + 2 * 11 * 256
    expected = 2 * 256 * (2 * critic_forward + value_forward + value + 2 * critic + policy)
    assert training_speed.update_flops("iql", algorithms["iql"].config) == expected


@pytest.mark.parametrize(
    "model, state_path, from_data, from_action, from_state, from_hidden",
    [  # multiplications by weights on what comes from: data, action, the state path, hidden units
        ("picnn", "mlp", 2 * 9 * 64, 2 * 97, 64 * 32 * 2 + 32, 64 * 32 + 32),
        ("picnn", "linear", 9 * 97, 2 * 97, 0, 64 * 32 + 32),
        ("nn", "mlp", 9 * 64, 2 * 64, 0, 64 * 32 + 32),
    ],
)
def test_flops_of_a_cost_model_are_those_counted_by_hand(
    model, state_path, from_data, from_action, from_state, from_hidden
):
    config = picnn.Config(
        model=model, state_path=state_path, hidden=(64, 32), num_models=2, batch_size=10
    )
    training = 2 * (from_data + from_action) + 3 * (from_state + from_hidden)
    assert training_speed.update_flops("picnn", config) == 2 * 10 * 2 * training
    step = 2 * (from_action + from_hidden)  # to the cost and back to the action
    if model == "nn":  # its first layer takes observation and action together
        step += 2 * from_data
    assert training_speed.correction_flops(config) == 2 * 2 * step


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_xla_counts_the_same_flops_for_an_update(name, algorithms, data):
    """Of a loop it counts the body once."""
    expected = training_speed.update_flops(name, algorithms[name].config)
    _, run = jitted_over_seeds(algorithms[name])
    for num_seeds in (1, 2):
        keys = jax.vmap(jax.random.key)(np.arange(num_seeds))
        state = jax.eval_shape(lambda k: training_speed.untrained(algorithms[name], data, k), keys)
        counted = run.lower(state, data, keys, 3).compile().cost_analysis()["flops"]
        assert counted / num_seeds == pytest.approx(expected, rel=0.15), num_seeds


@pytest.mark.parametrize("model", ["picnn", "nn"])
def test_a_correction_step_is_cheaper_than_the_policys_forward_pass(model, algorithms, data):
    """In FLOPs, those of the dense layers and XLA's."""
    base = algorithms["bc"]
    config = dataclasses.replace(algorithms["picnn"].config, model=model)
    layer, key = picnn.make_train(config, base=base), jax.random.key(0)
    state = jax.eval_shape(lambda: layer.init(key, data, base.init(key, data)))
    obs, found = training_speed.raw_observations(data, 1), []
    for num_steps in (0, 1, 3):
        policy = picnn.make_train(dataclasses.replace(config, num_steps=num_steps), base=base)
        program = training_speed.decisions(policy.policy).lower(state, obs).compile()
        found.append(program.cost_analysis()["flops"] / training_speed.NUM_DECISIONS)
    step = (found[2] - found[1]) / 2
    assert training_speed.correction_flops(config) == pytest.approx(step, rel=0.15)
    forward = training_speed.forward_flops(training_speed.kernels(MLP((256, 256), 2), 9))
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
    rates, around = training_speed.take_turns(calls, 2, 0.0, reference)
    assert order == ["reference", "a", "reference", "b", "reference"] * 2
    assert around == {"a": [(2.0, 4.0), (8.0, 10.0)], "b": [(4.0, 6.0), (10.0, 12.0)]}
    assert all(len(found) == 2 and min(found) > 0.0 for found in rates.values())


def test_a_rate_is_of_as_many_calls_as_fit_into_the_time():
    calls = []
    found = training_speed.rate(lambda: (time.sleep(0.01), calls.append(1)), 0.05)
    assert 0.0 < found <= 100.0 and found * 0.05 <= len(calls) <= 5
    calls.clear()
    assert training_speed.rate(lambda: calls.append(1), 0.0) > 0.0 and len(calls) == 1


@pytest.mark.parametrize(
    "others, width, pays",
    [
        ([(1, 1.10, 0.0), (2, 0.9, 0.0)], 1, False),  # not by enough
        ([(1, 0.8, 0.0), (2, 0.9, 0.0)], 8, False),
        ([(1, 1.30, 0.0), (2, 1.40, 1e-6)], 2, True),
        ([(1, 1.30, 0.0), (2, 1.40, 0.1)], 1, True),  # 2 gives other policies
        ([(2, 1.40, 0.1)], 8, False),
    ],
)
def test_another_width_pays_only_if_faster_for_the_same_policies(others, width, pays):
    names = ("vmapped at a time", "times vmap", "largest difference of actions")
    rows = [
        {"algorithm": "bc", **dict(zip(names, row, strict=True))}
        for row in ((8, 1.0, 0.0), *others)
    ]
    sentence = training_speed.batching_verdict(rows)
    assert sentence.startswith(f"bc: {width} at a time")
    assert ("worth it" in sentence, "vmap stays" in sentence) == (pays, not pays)


def test_mapped_seeds_are_trained_as_vmapped_ones(algorithms, data):
    """Each from its own state with its own key."""
    small = dict(training_speed.SMOKE.settings)
    config = dataclasses.replace(algorithms["bc"].config, **small)
    algorithm = training_speed.bc.make_train(config)
    act = jax.vmap(training_speed.decisions(algorithm.policy), in_axes=(0, None))
    obs, found = training_speed.raw_observations(data, 1), []
    for run in (jitted_over_seeds(algorithm)[1], training_speed.mapped(algorithm, 2)):
        call = training_speed.training(algorithm, run, data, 3, 5)
        call()  # the second goes on from here
        found.append(np.asarray(act(call(), obs)))
    assert found[0].shape == (3, 1, training_speed.NUM_DECISIONS, 2)
    np.testing.assert_allclose(*found, atol=1e-5)
    assert np.ptp(found[0], axis=0).max() > 1e-3, "seeds differ"


# --- The whole ---


@pytest.fixture(scope="module")
def smoke(data, tmp_path_factory):
    """The folder that a smoke run wrote."""
    folder = tmp_path_factory.mktemp("training_speed") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_speed, "load_training_data", lambda *_: data)
        training_speed.main(Args(out=folder, smoke=True, repeats=1))
    return folder


def test_the_json_holds_every_figure(smoke):
    text = (smoke / "training_speed.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    assert str(smoke) not in text, "a machine's path"
    assert {"commit", "versions", "hardware", "date"} <= set(found)
    assert found["args"] == {"seeds": [8], "repeats": 1, "smoke": True}
    peak = found["matmul GFLOP/s"]
    assert 0.0 < peak["median"] <= peak["best"]

    assert [row["algorithm"] for row in found["training"]] == ["bc", "iql", "picnn"]
    for row in found["training"]:
        assert row["seeds x updates/s"] == pytest.approx(8 * row["updates/s"])
        flops = row["seeds x updates/s"] * row["MFLOP an update"] / 1e3
        assert row["GFLOP/s"] == pytest.approx(flops)
        assert row["of the peak"] == pytest.approx(row["GFLOP/s"] / peak["best"])
        # Of one round the median is the only one, and no peak nearby is above the best.
        assert 0.0 < row["of the peak"] <= 1.001 * row["of the peak nearby, median"]

    if jax.default_backend() == "cpu":
        widths = [(row["algorithm"], row["vmapped at a time"]) for row in found["batching"]]
        assert widths == [(name, width) for name in ("bc", "iql") for width in (8, 1, 2, 4)]
        assert "bc: " in found["batching verdict"] and "iql: " in found["batching verdict"]
    for row in found["batching"]:
        assert row["seeds x updates/s"] > 0.0 and row["times vmap"] > 0.0
        assert row["largest difference of actions"] <= training_speed.TOLERANCE

    cases = [(row["cost model"], row["correction"], row["K"]) for row in found["correction"]]
    assert cases == [
        *[("picnn", "gradient", k) for k in (0, 1, 3, 5, 10)],
        *[("nn", "gradient", k) for k in (1, 3, 5, 10)],
        *[("picnn", "newton", k) for k in (1, 3)],
        ("picnn", "exact", None),
    ]
    alone = found["correction"][0]
    for row in found["correction"]:
        ratio = row["us an observation"] / alone["us an observation"]
        assert row["times the policy"] == pytest.approx(ratio)
        if row["K"]:
            share = (row["times the policy"] - 1.0) / row["K"]
            assert row["a step, of the policy"] == pytest.approx(share)
        else:
            assert row["a step, of the policy"] is None
        counted = bool(row["K"]) and row["correction"] == "gradient"
        assert (row["the same in FLOP"] is not None) == counted


def test_the_tables_are_complete_and_nothing_else_is_left(smoke):
    names = ["training_speed.json", "training_speed.md"]
    assert sorted(path.name for path in smoke.iterdir()) == names
    text = (smoke / "training_speed.md").read_text()
    assert str(smoke) not in text, "a machine's path"
    assert "SMOKE TEST" in text and "None" not in text and "nan" not in text
    tables = {"Updates": 3, "Correction layer": 12}
    if jax.default_backend() == "cpu":
        tables["Batching of 8 seeds on the CPU"] = 8
    for title in tables:
        assert f"## {title}\n" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(tables.values()) + len(tables), "headings, too"


def test_on_an_accelerator_the_tables_do_without_batching(smoke):
    found = json.loads((smoke / "training_speed.json").read_text())
    assert "Batching" not in training_speed.markdown(found | {"batching": []})


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
    assert f"out = {os.fspath(file)}" in str(error.value)


def test_all_seed_counts_are_measured_unless_some_are_named(tmp_path):
    accelerator = () if jax.default_backend() == "cpu" else (1_024,)
    assert training_speed.resolve(Args(out=tmp_path)).seeds == (1, 8, 64, *accelerator)
    assert training_speed.resolve(Args(out=tmp_path, seeds=(2,), smoke=True)).seeds == (2,)
