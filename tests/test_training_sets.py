"""Changed versions of the `mixed` data: what is missing is missing, and noise is noise."""

import functools

import numpy as np
import pytest

from benchmarks import training_sets
from benchmarks.conditions import NOISE
from polycstr_jax import data


@functools.cache
def mixed():
    return data.generate("startup", "mixed")


@functools.cache
def changed(name):
    return training_sets.change(mixed(), "startup", name)


def test_less_data_are_the_first_episodes_of_each_behaviour():
    kinds = data.draw_behaviour("startup", "mixed", 500).kind
    for name, share in (("mixed50", 0.5), ("mixed10", 0.1)):
        kept = np.unique(changed(name).episode)
        for kind in range(5):
            all_of_kind = np.flatnonzero(kinds == kind)
            mine = np.intersect1d(kept, all_of_kind)
            np.testing.assert_array_equal(mine, all_of_kind[: len(mine)])
            assert abs(len(mine) - share * len(all_of_kind)) <= 0.5
        first = changed(name).episode == kept[0]
        np.testing.assert_array_equal(
            changed(name).obs[first], mixed().obs[mixed().episode == kept[0]]
        )


@pytest.mark.parametrize(("name", "kind"), [("mixed_noboost", data.BOOST), ("mixed_norandom", 4)])
def test_a_behaviour_is_left_out(name, kind):
    kinds = data.draw_behaviour("startup", "mixed", 500).kind
    kept = np.unique(changed(name).episode)
    np.testing.assert_array_equal(kept, np.flatnonzero(kinds != kind))
    assert 0 < len(kept) < 500


def test_noise_is_measured_once_and_makes_the_constraint_stochastic():
    noisy, true = changed("mixed_noisy"), mixed()
    noise = noisy.obs - true.obs
    level = training_sets.NOISE_LEVEL["mixed_noisy"]
    np.testing.assert_allclose(noise[:, :5].std(axis=0), level * np.asarray(NOISE), rtol=0.05)
    np.testing.assert_allclose(noise[:, 5:7], -noise[:, 3:5], atol=1e-3)
    np.testing.assert_array_equal(noise[:, 7:], 0.0)
    within = true.episode[:-1] == true.episode[1:]
    np.testing.assert_array_equal(noisy.next_obs[:-1][within], noisy.obs[1:][within])
    np.testing.assert_allclose(
        noisy.constraint - true.constraint, (noisy.next_obs - true.next_obs)[:, 4], atol=1e-3
    )
    np.testing.assert_array_equal(noisy.cost, noisy.constraint > 0.0)
    assert (noisy.cost != true.cost).any()
    np.testing.assert_array_equal(noisy.reward, true.reward)


def test_names_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="dataset = 'x'; allowed: pi, mixed, mixed50"):
        training_sets.load("startup", "x")
