"""The data sets that suites train on: those of the package, and changed versions of `mixed`.

Less of it (`mixed50`, `mixed10`: the first half and tenth of the episodes of each behaviour),
without a part of its
coverage (`mixed_noboost`, `mixed_norandom`), and measured with noise (`mixed_noisy`): then
observations and the constraint are noisy, and the limit is a stochastic constraint. Rewards stay
on the true state. Normalised as always, by the scenario's `pi` set.
"""

import functools

import numpy as np

from algos.common import load_training_data
from benchmarks.conditions import NOISE
from polycstr_jax import data
from polycstr_jax.data import Dataset, TrainingData

SHARES = {"mixed50": 0.5, "mixed10": 0.1}
WITHOUT = {"mixed_noboost": data.BOOST, "mixed_norandom": data.RANDOM}
NOISE_LEVEL = {"mixed_noisy": 0.3}  # K std of the temperature measured, all else in proportion
NOISE_SEED = 356
NAMES = (*data.DATASETS, *SHARES, *WITHOUT, *NOISE_LEVEL)


@functools.lru_cache(maxsize=2)
def load(scenario: str, name: str) -> TrainingData:
    """A training set by name. Raises `ValueError` for an unknown scenario or name."""
    if name in data.DATASETS:
        return load_training_data(scenario, name)
    if name not in NAMES:
        raise ValueError(f"dataset = {name!r}; allowed: {', '.join(NAMES)}.")
    scales = data.normaliser(data.generate(scenario, "pi"))
    return data.training_data(change(data.generate(scenario, "mixed"), scenario, name), scales)


def change(mixed: Dataset, scenario: str, name: str) -> Dataset:
    """The changed version of `mixed`."""
    if name in NOISE_LEVEL:
        return with_noise(mixed, NOISE_LEVEL[name])
    kind = data.draw_behaviour(scenario, "mixed", data.NUM_EPISODES["mixed"]).kind
    if name in WITHOUT:
        keep = kind != WITHOUT[name]
    else:
        of_kind = kind[:, None] == np.arange(len(data.BEHAVIOURS))
        rank = (np.cumsum(of_kind, axis=0) * of_kind).sum(axis=1)  # 1, 2, ... within its kind
        keep = rank <= np.round(SHARES[name] * of_kind.sum(axis=0))[kind]
    return Dataset(*(column[keep[mixed.episode]] for column in mixed))


def with_noise(mixed: Dataset, level: float) -> Dataset:
    """As measured: noise on A, I, R, P, T, the same in an observation and as the next one."""
    steps = data.EPISODE_LENGTH
    num_episodes = len(mixed.episode) // steps
    rng = np.random.default_rng(NOISE_SEED)
    noise = level * np.asarray(NOISE) * rng.standard_normal((num_episodes, steps + 1, 5))
    zero = np.zeros((num_episodes, steps + 1, 2))
    # The errors of P and T carry the noise of both, with the other sign.
    whole = np.concatenate([noise, -noise[..., 3:5], zero], axis=-1).astype(np.float32)
    constraint = mixed.constraint + whole[:, 1:, 4].reshape(-1)
    return mixed._replace(
        obs=mixed.obs + whole[:, :-1].reshape(-1, 9),
        next_obs=mixed.next_obs + whole[:, 1:].reshape(-1, 9),
        constraint=constraint,
        cost=(constraint > 0.0).astype(np.float32),
    )
