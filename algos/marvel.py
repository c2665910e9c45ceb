"""Marvel: from an offline policy to safe online training (arXiv 2412.04426).

A layer around an offline algorithm, CPQ or BEAR-Lag, whose policy and critics it takes over:

1. Value pre-alignment (VPA): `vpa_updates` gradient steps over the offline data fit the critics
   to the policy pi0 that they are to judge, which stays as it is:

       Q   <- r + gamma (1 - terminated) (min_i Qbar_i(s', a') - alpha   log pi0(a' | s'))   (eq. 8)
       Q_c <- c + gamma (1 - terminated) (max_i Qbar_c,i(s', a') - alpha_c log pi0(a' | s')) (eq. 9)

   with a' ~ pi0. At alpha = 0 it is fitted Q evaluation. An entropy above 0 raises a value, and a
   cost looks greater; but the entropy of two squashed actions is at most 1.4 and has no least: of
   a narrow policy it is below 0, and alpha_c makes its costs look smaller.
2. SAC-Lag online (`algos/sac_lag.py`), with the adaptive PID (`algos/multipliers.py`, eq. 12-15).
   The multiplier's unit, in which its gains are given, is the median of |Q| over that of |Q_c|,
   on the data. Measured after the alignment it is 4 to 15 in start-up, before it 1 to 3, for CPQ's
   values are not those of its policy yet. All arms have 8, so that they differ in what they are
   called by; `multiplier_scale` None measures it.

`align` none is the paper's Warm Start; `critics` random aligns critics that know nothing.

Deviations from the paper: its values of alpha, alpha_c and K are not known; two cost critics, the
greater in targets (`cost_target`); time-outs bootstrap in all phases, or in none; the optimisers
begin anew online, and the temperature at alpha. The release calls an evaluation without entropy,
fails to load critics of another form without a word, and its online actor has another activation
than the offline one. Here a leaf that does not fit is named and refused, and so is a base with
another unit of actions, discount or limit.

Run: python algos/marvel.py --scenario startup --dataset mixed --num-seeds 8
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algos import bearl, checkpoints, cpq, multipliers, sac_lag
from algos.actor_critic import (
    SquashedActor,
    descend,
    reduce_heads,
    squashed_sample,
    twin_values,
)
from algos.common import (
    LAYER_KEY,
    MLP,
    Algorithm,
    check_range,
    command_line,
    sample_batch,
    to_unit,
)
from algos.multipliers import Controller

Base = Literal["cpq", "bearl"]
Align = Literal["both", "reward", "cost", "none"]
# The chosen ones of four sizes each, `benchmarks.marvel --only tuning`.
PID = Controller(proportional=0.03, integral=0.03, derivative=0.03)
APID = replace(PID, rule="apid", adaptation="symmetric")
APID_PAPER = Controller(
    rule="apid", adaptation="paper", proportional=0.1, integral=0.1, derivative=0.1
)
DUAL = Controller(rule="dual", rate=0.003)
FIXED = Controller(rule="fixed", initial=1.0)  # the best constant: an oracle's


@dataclass(frozen=True)
class Config(sac_lag.Config):
    """SAC-Lag's hyper-parameters and those of the hand-over."""

    base: Base = "cpq"
    base_preset: str = "default"  # of the base's file
    align: Align = "both"
    critics: Literal["offline", "random"] = "offline"
    vpa_updates: int = 5_000  # K, gradient steps; 0 as `align` none
    vpa_rate: float = 1e-3  # of the critics, by Adam
    entropy_weight: float = 0.01  # alpha of VPA
    cost_entropy_weight: float = 0.001  # alpha_c
    initial_temperature: float = 0.01  # of SAC, as alpha
    controller: Controller = APID
    multiplier_scale: float | None = 8.0  # None: measured at the hand-over


DEFAULT = Config()
PRESETS = {
    "default": DEFAULT,
    "warm-start": replace(DEFAULT, align="none"),
    "more-steps": replace(DEFAULT, align="none", gradient_steps=250),  # as many in all
    "warm-start-pid": replace(DEFAULT, align="none", controller=PID),
    "warm-start-dual": replace(DEFAULT, align="none", controller=DUAL),
    "warm-start-apid-paper": replace(DEFAULT, align="none", controller=APID_PAPER),
    "warm-start-fixed": replace(DEFAULT, align="none", controller=FIXED),
    "pid": replace(DEFAULT, controller=PID),
    "dual": replace(DEFAULT, controller=DUAL),
    "apid-paper": replace(DEFAULT, controller=APID_PAPER),
    "fqe": replace(DEFAULT, entropy_weight=0.0, cost_entropy_weight=0.0),
    "measured-unit": replace(DEFAULT, multiplier_scale=None),
    "warm-start-measured-unit": replace(DEFAULT, align="none", multiplier_scale=None),
    "random-critics": replace(DEFAULT, critics="random"),
    "reward-only": replace(DEFAULT, align="reward"),
    "cost-only": replace(DEFAULT, align="cost"),
    "fixed": replace(DEFAULT, controller=FIXED),
    "pid-head-start": replace(DEFAULT, controller=replace(PID, initial=FIXED.initial)),
    "masked-cpq": replace(DEFAULT, base_preset="masked"),  # after critics that are wrong
    "masked-cpq-warm-start": replace(DEFAULT, base_preset="masked", align="none"),
    "masked-cpq-more-steps": replace(
        DEFAULT, base_preset="masked", align="none", gradient_steps=250
    ),
    "bearl": replace(DEFAULT, base="bearl"),
    "bearl-warm-start": replace(DEFAULT, base="bearl", align="none"),
    **{f"limit{n}": replace(DEFAULT, cost_limits=(float(n),)) for n in (0, 2, 5)},
}


class State(NamedTuple):
    """What training carries: SAC-Lag's state, and the base as it was."""

    params: sac_lag.Params
    target_critic: Any
    target_cost_critic: Any
    opt_state: sac_lag.Params
    multiplier: multipliers.State
    replay: sac_lag.Replay
    normaliser: Any
    step: jax.Array
    base: Any


# --- The hand-over ---

NETWORKS = ("actor", "critic", "cost_critic")


def begin(fresh: sac_lag.State, params: sac_lag.Params, base_state) -> State:
    """The state at the beginning of the online phase, with these parameters."""
    targets = {"target_critic": params.critic, "target_cost_critic": params.cost_critic}
    return State(**fresh._replace(params=params, **targets)._asdict(), base=base_state)


def align(config: Config, state, data, rng):
    """`vpa_updates` steps of fitted Q evaluation, with entropy, on both critics or one."""
    if config.align == "none" or config.vpa_updates == 0:
        return state
    scalar = MLP(config.hidden, 1)
    actor = SquashedActor(config.hidden, data.action.shape[-1])
    rate = optax.adam(config.vpa_rate)
    optimise = sac_lag.Params(rate, rate, rate, rate)

    def one(carry, key):
        params, targets, opt_state = carry
        keys = jax.random.split(key)
        batch = sample_batch(keys[0], data, config.batch_size)
        action = to_unit(config.action_unit, batch.action, state.normaliser.action_std)
        mean, log_std = actor.apply(params.actor, batch.next_obs)
        following, log_density = squashed_sample(mean, log_std, keys[1])
        ended = batch.terminated
        if config.timeouts == "terminal":
            ended = ended | batch.truncated
        goes_on = config.discount * (1.0 - ended)
        value = twin_values(scalar, targets[0], batch.next_obs, following).min(axis=0)
        backup = batch.reward + goes_on * (value - config.entropy_weight * log_density)
        cost = twin_values(scalar, targets[1], batch.next_obs, following)
        cost = reduce_heads(config.cost_target, cost)
        backup_cost = batch.cost + goes_on * (cost - config.cost_entropy_weight * log_density)

        def loss(target):
            def of(part):
                found = twin_values(scalar, part, batch.obs, action)
                return jnp.mean(jnp.sum((found - target[None]) ** 2, axis=0)), ()

            return of

        if config.align in ("both", "reward"):
            params, opt_state, _, _ = descend(optimise, "critic", loss(backup), params, opt_state)
        if config.align in ("both", "cost"):
            params, opt_state, _, _ = descend(
                optimise, "cost_critic", loss(backup_cost), params, opt_state
            )
        own = (params.critic, params.cost_critic)
        targets = optax.incremental_update(own, targets, config.target_rate)
        return (params, targets, opt_state), None

    params = state.params
    opt_state = sac_lag.Params(*(rate.init(part) for part in params))
    carry = (params, (params.critic, params.cost_critic), opt_state)
    (params, targets, _), _ = jax.lax.scan(one, carry, jax.random.split(rng, config.vpa_updates))
    return state._replace(params=params, target_critic=targets[0], target_cost_critic=targets[1])


def unit_of_lambda(config: Config, state, data):
    """Median of |Q| over that of |Q_c|, at least 0.01, over some 4,096 of the data's: ()."""
    stride = max(1, data.obs.shape[0] // 4_096)
    scalar, obs = MLP(config.hidden, 1), data.obs[::stride]
    std = state.normaliser.action_std
    action = to_unit(config.action_unit, data.action[::stride], std)
    value = twin_values(scalar, state.params.critic, obs, action)
    cost = twin_values(scalar, state.params.cost_critic, obs, action)
    return jnp.median(jnp.abs(value)) / jnp.maximum(jnp.median(jnp.abs(cost)), 0.01)


# --- The algorithm ---


SAME = ("hidden", "discount", "timeouts", "action_unit")  # settings of base and layer


def make_base(config: Config) -> Algorithm:
    """The offline algorithm at the settings of `base_preset`, with the networks, the cost limit and
    what else has to be the same of the online phase. `ValueError` for an unknown preset."""
    module = {"cpq": cpq, "bearl": bearl}[config.base]
    if config.base_preset not in module.PRESETS:
        allowed = ", ".join(module.PRESETS)
        raise ValueError(f"base_preset = {config.base_preset}; allowed: {allowed}.")
    same = {name: getattr(config, name) for name in SAME}
    return module.make_train(
        replace(module.PRESETS[config.base_preset], cost_limit=config.cost_limits[0], **same)
    )


def check_config(config: Config, env_params) -> None:
    """`ValueError` naming the setting, its value and what is allowed."""
    one = "one number: the offline algorithms know one cost"
    check_range(config, ("cost_limits",), one, lambda x: len(x) == 1)
    sac_lag.check_config(online_config(config), env_params)
    check_range(config, ("entropy_weight",), "0 or more", lambda x: x >= 0.0)
    check_range(config, ("cost_entropy_weight",), "a finite number", np.isfinite)
    check_range(config, ("vpa_updates",), "0 or more", lambda x: x >= 0)
    check_range(config, ("vpa_rate",), "above 0", lambda x: x > 0.0)


def online_config(config: Config) -> Config:
    """With a unit of lambda, which the hand-over replaces where none is given."""
    scale = config.multiplier_scale
    return replace(config, multiplier_scale=1.0 if scale is None else scale)


def check_base(config: Config, base: Algorithm) -> None:
    """`ValueError` naming a setting of the base that the online phase does not share."""
    pairs = [(name, getattr(base.config, name), getattr(config, name)) for name in SAME]
    pairs.append(("cost_limit", base.config.cost_limit, config.cost_limits[0]))
    for name, given, expected in pairs:
        if name != "hidden" and given != expected:  # leaves of another form are named by `init`
            raise ValueError(f"base.config.{name} = {given}; allowed: the layer's, {expected}.")


def make_train(config: Config, env=None, env_params=None, base: Algorithm | None = None):
    """The pure functions around `base`, an algorithm with actor and critics of these networks;
    `config.base`'s if None. `ValueError` for bad settings."""
    check_config(config, env_params)
    base = make_base(config) if base is None else base
    check_base(config, base)
    start, control, improve = sac_lag.parts(online_config(config))
    update = sac_lag.make_update(config, env, env_params, control, improve)

    def init(rng, data, base_state):
        keys = jax.random.split(rng)
        fresh = start(keys[0], data)
        given = base_state.params
        taken = NETWORKS if config.critics == "offline" else ("actor",)
        params = fresh.params._replace(**{name: getattr(given, name) for name in taken})
        checkpoints.check_form(params, fresh.params, f"the offline state of {config.base}")
        state = begin(fresh, params, base_state)
        state = align(config, state, data, keys[1])
        if config.multiplier_scale is None:
            scale = unit_of_lambda(config, state, data)
            state = state._replace(multiplier=multipliers.init(config.controller, 1, scale))
        return state

    def policy(state):
        return sac_lag.mean_policy(config, state)

    def run(state, data, rng, num_updates):
        return sac_lag.scan_online(update, state, rng, num_updates)

    def train(rng, data):
        base_state, _ = base.train(rng, data)
        init_key, run_key = jax.random.split(jax.random.fold_in(rng, LAYER_KEY))
        return run(init(init_key, data, base_state), data, run_key, config.num_updates)

    return Algorithm(init, run, policy, train, config, base)


if __name__ == "__main__":
    command_line("marvel", PRESETS, make_train)
