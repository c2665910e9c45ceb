"""Marvel: what is handed over, what the alignment learns, and what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import polycstr_jax
from algos import actor_critic, bearl, cpq, marvel, sac_lag
from algos.common import MLP
from tests.made_up import noise, squashed_entropy, transitions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
OFFLINE = {"hidden": (8,), "vae_hidden": (8,), "batch_size": 32, "num_updates": 20}
SMALL = marvel.Config(
    hidden=(8,),
    batch_size=32,
    gradient_steps=3,
    capacity=50,
    vpa_updates=10,
    action_unit="box",
    num_updates=2,
)


@functools.cache
def environment():
    return polycstr_jax.make("startup", max_steps_in_episode=10)


@functools.cache
def offline(name="cpq"):
    """Functions of an offline algorithm, and its state after some updates."""
    module = {"cpq": cpq, "bearl": bearl}[name]
    functions = module.make_train(module.Config(**OFFLINE, action_unit="box"))
    return functions, jax.jit(functions.train)(jax.random.key(0), noise())[0]


def handed_over(base="cpq", **changes):
    """Functions, and the state at the beginning of the online phase."""
    functions = marvel.make_train(
        dataclasses.replace(SMALL, base=base, **changes), *environment(), base=offline(base)[0]
    )
    init = jax.jit(functions.init)
    return functions, init(jax.random.key(1), noise(), offline(base)[1])


def moved(state, other):
    """Parts of the parameters that differ."""
    flat = [
        {name: np.asarray(ravel_pytree(x)[0]) for name, x in params._asdict().items()}
        for params in (state, other)
    ]
    return {n for n in flat[0] if n in flat[1] and np.any(flat[0][n] != flat[1][n])}


# --- The hand-over ---


@pytest.mark.parametrize("base", ["cpq", "bearl"])
def test_the_policy_handed_over_acts_as_the_offline_one_does(base):
    functions, state = handed_over(base)
    alone, given = offline(base)
    obs, key = 3.0 * noise().obs[:100], jax.random.key(0)
    ours, theirs = (
        jax.vmap(lambda o, act=a: act(o, key))(obs)
        for a in (functions.policy(state), alone.policy(given))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.ptp(np.asarray(ours)) > 0.01


def test_a_warm_start_takes_the_critics_as_they_are_and_forgets_the_multiplier():
    _, state = handed_over(align="none", multiplier_scale=1.0)
    given = offline()[1]
    assert moved(state.params, given.params) == set()
    for ours, theirs in (
        (state.target_critic, given.params.critic),
        (state.target_cost_critic, given.params.cost_critic),
    ):
        np.testing.assert_array_equal(ravel_pytree(ours)[0], ravel_pytree(theirs)[0])
    assert float(state.multiplier.multiplier[0]) == 0.0 and int(state.replay.size) == 0


@pytest.mark.parametrize(
    ("which", "changed"),
    [
        ("both", {"critic", "cost_critic"}),
        ("reward", {"critic"}),
        ("cost", {"cost_critic"}),
        ("none", set()),
    ],
)
def test_the_alignment_moves_the_critics_it_names_and_never_the_policy(which, changed):
    _, state = handed_over(align=which)
    assert moved(state.params, offline()[1].params) == changed


def test_the_base_is_made_of_a_preset_of_its_file():
    masked = marvel.make_base(marvel.PRESETS["masked-cpq"]).config
    assert masked.masked_targets and masked.cost_target == "max" and masked.ood_scale == 1.5
    assert masked.hidden == marvel.DEFAULT.hidden
    assert not marvel.make_base(marvel.DEFAULT).config.masked_targets
    with pytest.raises(ValueError, match=r"base_preset = mask; allowed: default, .*masked"):
        marvel.make_base(dataclasses.replace(SMALL, base_preset="mask"))


def test_critics_may_begin_at_random():
    _, state = handed_over(critics="random", align="none")
    assert moved(state.params, offline()[1].params) == {"critic", "cost_critic"}


def test_the_unit_of_lambda_is_the_ratio_of_the_medians():
    functions, state = handed_over(align="none", multiplier_scale=None)
    data, network = noise(), MLP((8,), 1)
    value, cost = (
        np.median(np.abs(actor_critic.twin_values(network, critic, data.obs, data.action)))
        for critic in (state.params.critic, state.params.cost_critic)
    )
    assert float(state.multiplier.scale[0]) == pytest.approx(value / max(cost, 0.01), rel=1e-4)
    gain = float(state.multiplier.gains.integral[0])
    rule = functions.config.controller
    assert gain == pytest.approx(rule.integral * value / max(cost, 0.01), rel=1e-4)
    _, given = handed_over(align="none")
    assert float(given.multiplier.scale[0]) == marvel.DEFAULT.multiplier_scale == 8.0


def test_a_state_of_another_form_is_refused_and_every_leaf_named():
    functions = cpq.make_train(cpq.Config(**OFFLINE | {"hidden": (8, 4)}, action_unit="box"))
    other = jax.jit(functions.init)(jax.random.key(0), noise())
    ours = marvel.make_train(SMALL, *environment(), base=functions)
    with pytest.raises(ValueError) as error:
        ours.init(jax.random.key(1), noise(), other)
    message = str(error.value)
    assert "the offline state of cpq does not fit" in message
    for part in ("actor", "critic", "cost_critic"):
        # A layer too many, and the one after it has another input.
        assert f"{part}.params.Dense_" in message
    assert message.count(" is not known here") == 2 * 2 + 2  # two critics; the actor has two heads
    assert "not (8, 2)" in message and "not (2, 8, 1)" in message


@pytest.mark.parametrize(
    ("setting", "value"),
    [("action_unit", "asinh"), ("discount", 0.9), ("timeouts", "terminal"), ("cost_limit", 40.0)],
)
def test_a_base_with_other_settings_is_refused(setting, value):
    config = cpq.Config(**OFFLINE | {"action_unit": "box", setting: value})
    with pytest.raises(
        ValueError, match=rf"^base\.config\.{setting} = {value}; allowed: the layer"
    ):
        marvel.make_train(SMALL, *environment(), base=cpq.make_train(config))


# --- What the alignment learns ---


def chain():
    """A, reward 1 and cost 0.1, is followed by B, reward 2 and cost 0.3, and B by itself for ever,
    with a time-out at every step."""
    action = jax.random.uniform(jax.random.key(3), (1_000, 1), minval=-1.0)
    begins = jnp.arange(1_000) % 2 == 0
    first, second = jnp.eye(2)
    obs = jnp.where(begins[:, None], first[None], second[None])
    after = jnp.tile(second[None], (1_000, 1))
    reward, cost = jnp.where(begins, 1.0, 2.0), jnp.where(begins, 0.1, 0.3)
    data = transitions(obs, action, cost, after, reward=reward)
    return data._replace(truncated=jnp.ones(1_000, bool))


@pytest.mark.parametrize(
    ("alpha", "alpha_cost", "std", "timeouts"),
    [
        (0.0, 0.0, 0.6, "bootstrap"),
        (0.5, 0.2, 0.6, "bootstrap"),
        (0.5, 0.02, 0.02, "bootstrap"),  # a narrow policy: its costs look smaller
        (0.5, 0.2, 0.6, "terminal"),
    ],
)
def test_values_are_those_of_the_policy_with_the_entropy_of_each(alpha, alpha_cost, std, timeouts):
    """Q(B) = (r + gamma alpha H) / (1 - gamma), Q(A) = r + gamma (Q(B) + alpha H)."""
    mean = 0.4
    config = dataclasses.replace(
        SMALL,
        hidden=(32, 32),
        batch_size=128,
        vpa_updates=1_500,
        vpa_rate=3e-3,
        target_rate=0.05,
        discount=0.9,
        entropy_weight=alpha,
        cost_entropy_weight=alpha_cost,
        cost_target="mean",
        timeouts=timeouts,
        multiplier_scale=1.0,
    )
    data = chain()
    state = jax.jit(sac_lag.parts(config)[0])(jax.random.key(0), data)
    actor = jax.tree.map(jnp.zeros_like, state.params.actor)
    for head, value in (("Dense_2", mean), ("Dense_3", np.log(std))):
        actor["params"][head]["bias"] = jnp.full((1,), value)
    state = state._replace(params=state.params._replace(actor=actor))
    aligned = jax.jit(functools.partial(marvel.align, config))(state, data, jax.random.key(1))
    entropy = squashed_entropy(mean, std)
    assert (entropy > 0.4) == (std > 0.1) and (entropy < -2.0) == (std < 0.1)
    goes_on = 0.9 if timeouts == "bootstrap" else 0.0
    network, at = MLP((32, 32), 1), jnp.full((2, 1), np.tanh(mean))
    for critic, signal, weight in (
        (aligned.params.critic, (1.0, 2.0), alpha),
        (aligned.params.cost_critic, (0.1, 0.3), alpha_cost),
    ):
        last = (signal[1] + goes_on * weight * entropy) / (1.0 - goes_on)
        expected = [signal[0] + goes_on * (last + weight * entropy), last]
        found = actor_critic.twin_values(network, critic, jnp.eye(2), at)
        np.testing.assert_allclose(found, np.tile(expected, (2, 1)), rtol=0.1, atol=0.03)
    assert moved(aligned.params, state.params) == {"critic", "cost_critic"}


# --- Bad input ---


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"cost_limits": (-2.0,)}, "cost_limits = (-2.0,); allowed: one number, or two, of 0"),
        ({"cost_limits": (2.0, 1.0)}, "allowed: one number: the offline algorithms know one cost"),
        ({"cost_entropy_weight": float("nan")}, "cost_entropy_weight = nan; allowed: a finite"),
        ({"vpa_updates": -1}, "vpa_updates = -1; allowed: 0 or more"),
        ({"entropy_weight": -1.0}, "entropy_weight = -1.0; allowed: 0 or more"),
        ({"align": "all"}, "align = 'all'; allowed: both, reward, cost, none"),
        ({"multiplier_scale": 0.0}, "multiplier_scale = 0.0; allowed: above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        marvel.make_train(dataclasses.replace(SMALL, **setting), *environment())
    assert message in str(error.value)
