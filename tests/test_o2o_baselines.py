"""JSRL, PEX and SO2: who acts, what is handed over, what the noise moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import polycstr_jax
from algos import cpq, marvel, o2o_baselines, sac_lag
from tests.made_up import noise

pytestmark = pytest.mark.usefixtures("quick_to_compile")
HORIZON = 10
SMALL = o2o_baselines.Config(
    hidden=(8,), batch_size=32, gradient_steps=2, capacity=50, action_unit="box", num_updates=2
)


@functools.cache
def offline():
    small = {"hidden": (8,), "vae_hidden": (8,), "batch_size": 32, "num_updates": 20}
    functions = cpq.make_train(cpq.Config(**small, action_unit="box"))
    return functions, jax.jit(functions.train)(jax.random.key(0), noise())[0]


@functools.cache
def begun(**changes):
    """Functions, and the state at the beginning of the online phase."""
    environment = polycstr_jax.make("startup", max_steps_in_episode=HORIZON)
    functions = o2o_baselines.make_train(
        dataclasses.replace(SMALL, **changes), *environment, base=offline()[0]
    )
    init = jax.jit(functions.init)
    return functions, init(jax.random.key(1), noise(), offline()[1])


def taken_over(state):
    given, ours = offline()[1].params, state.params
    return {
        name
        for name in marvel.NETWORKS
        if np.array_equal(*(ravel_pytree(getattr(p, name))[0] for p in (given, ours)))
    }


@pytest.mark.parametrize(
    ("method", "networks"),
    [
        ("jsrl", set()),
        ("pex", {"critic", "cost_critic"}),
        ("so2", {"actor", "critic", "cost_critic"}),
    ],
)
def test_each_takes_over_what_it_should(method, networks):
    _, state = begun(method=method)
    assert taken_over(state) == networks
    np.testing.assert_array_equal(
        ravel_pytree(state.target_critic)[0], ravel_pytree(state.params.critic)[0]
    )


@pytest.mark.parametrize(("step", "guided"), [(0, 10), (1, 5), (2, 0), (9, 0)])
def test_the_guide_acts_first_and_for_less_and_less_of_the_episode(step, guided):
    functions, state = begun(method="jsrl")
    state = state._replace(step=jnp.asarray(step))
    controller, memory = o2o_baselines.jump_start(
        functions.config, state, jax.random.key(3), HORIZON
    )
    learner, _ = sac_lag.stochastic(functions.config, state, jax.random.key(3))
    memory, obs = jax.tree.map(lambda x: x[0], memory), noise().obs[0]
    guide = offline()[0].policy(offline()[1])(obs, None)
    for interval in range(HORIZON):
        new, _ = learner(obs, memory[0])
        action, memory = controller(obs, memory)
        expected = guide if interval < guided else new
        np.testing.assert_allclose(action, expected, atol=1e-6)
        assert np.abs(np.asarray(guide - new)).max() > 1e-3  # they can be told apart


@pytest.mark.parametrize(("temperature", "better"), [(1e-4, 1.0), (1e6, 0.5)])
def test_the_more_valuable_proposal_is_taken_the_colder_the_surer(temperature, better):
    """Values are the first action: the new policy proposes about 0.9, pi0 about -0.9."""
    functions, state = begun(method="pex", pex_temperature=temperature)

    def proposing(params, mean):
        new = jax.tree.map(jnp.zeros_like, params)
        new["params"]["Dense_1"]["bias"] = jnp.full((2,), jnp.arctanh(mean))
        new["params"]["Dense_2"]["bias"] = jnp.full((2,), -3.0)
        return new

    critic = jax.tree.map(jnp.zeros_like, state.target_critic)
    kernel = critic["params"]["Dense_0"]["kernel"].at[:, 9, 0].set(1.0)
    critic["params"]["Dense_0"] = {"kernel": kernel, "bias": jnp.full((2, 8), 1.0)}
    critic["params"]["Dense_1"]["kernel"] = critic["params"]["Dense_1"]["kernel"].at[:, 0].set(1.0)
    actor = state.params.actor
    base = state.base._replace(params=state.base.params._replace(actor=proposing(actor, -0.9)))
    state = state._replace(
        params=state.params._replace(actor=proposing(actor, 0.9)), target_critic=critic, base=base
    )
    controller, _ = o2o_baselines.expand(functions.config, state, jax.random.key(0))
    keys = jax.random.split(jax.random.key(5), 2_000)
    actions, after = jax.vmap(lambda key: controller(noise().obs[0], key))(keys)
    assert np.abs(np.abs(np.asarray(actions)) - 0.9).max() < 0.1
    assert float(jnp.mean(actions[:, 0] > 0)) == pytest.approx(better, abs=0.04)
    assert not np.array_equal(jax.random.key_data(after), jax.random.key_data(keys))


def test_noise_on_the_target_s_action_moves_the_critics():
    slopes = {}
    for noisy in (0.0, 0.3):
        functions, state = begun(method="so2", target_noise=noisy, gradient_steps=1)
        state, _ = jax.jit(functions.run, static_argnums=3)(state, noise(), jax.random.key(1), 1)
        slopes[noisy] = [  # Adam's first moment: its first steps hide the size of a slope
            ravel_pytree(getattr(state.opt_state, name)[0].mu)[0]
            for name in ("critic", "cost_critic")
        ]
    for plain, moved in zip(*slopes.values(), strict=True):
        assert np.any(np.asarray(plain) != np.asarray(moved))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "cal-ql"}, "method = 'cal-ql'; allowed: jsrl, pex, so2"),
        ({"guided": 0.0}, "guided = 0.0; allowed: above 0, at most 1"),
        ({"pex_temperature": 0.0}, "pex_temperature = 0.0; allowed: above 0"),
        ({"target_noise": -0.1}, "target_noise = -0.1; allowed: 0 or more"),
        ({"discount": 0.9}, "base.config.discount = 0.99; allowed: the layer's, 0.9"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, message):
    with pytest.raises(ValueError) as error:
        begun(**setting)
    assert message in str(error.value)
