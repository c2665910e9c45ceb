"""Make the committed constants again: score limits, evaluation starts, checksums of the data.

    python -m benchmarks.constants

Changing any of them changes every score: do it only together with a new version of the
environment. Checksums of this platform are added to those of other platforms.
"""

import datetime
import json
from pathlib import Path

import jax
import numpy as np

import polycstr_jax
from polycstr_jax import data, evaluate, viability
from polycstr_jax.data import EPISODE_LENGTH, write_atomically
from polycstr_jax.env import EnvParams, scenario_params
from polycstr_jax.evaluate import NUM_STARTS, START_SETS, Starts

PACKAGE = Path(polycstr_jax.__file__).parent
REFERENCE = Path(__file__).parent.parent / "tests/data/mixed_reference.npz"
START_SEED = 2_507
NUM_HOT_CANDIDATES = 8_000


def make_score_limits() -> dict:
    limits = {}
    for scenario in polycstr_jax.SCENARIOS:
        trajectory, _ = data.generate_trajectory(scenario, "pi", evaluate.SCORE_EPISODES)
        returns = trajectory.reward.sum(axis=0, dtype=np.float64)
        limits[scenario] = [float(x) for x in np.percentile(returns, evaluate.SCORE_PERCENTILES)]
    return {
        "what": "10th and 99th percentile of the returns of 10,000 `pi` episodes, data seed 0",
        "command": "python -m benchmarks.constants",
        "date": datetime.date.today().isoformat(),
        "platform": data.platform_key(),
        "limits": limits,
    }


def draw_starts(scenario: str, kind: str) -> Starts:
    """`nominal`, `wide` or `tune` starts: the scenario's distribution, widened for `wide`."""
    params = scenario_params(scenario)
    scenario_index = list(polycstr_jax.SCENARIOS).index(scenario)
    rng = np.random.default_rng([START_SEED, scenario_index, START_SETS.index(kind)])
    state = params.start_mean + params.start_width * rng.uniform(-1.0, 1.0, (NUM_STARTS, 5))
    if kind == "wide":
        state[:, [0, 3]] *= rng.uniform(0.9, 1.1, (NUM_STARTS, 2))
        state[:, 4] += rng.uniform(-3.0, 3.0, NUM_STARTS)
    control = np.tile(params.initial_control, (NUM_STARTS, 1))
    starts = Starts(
        state.astype(np.float32), control.astype(np.float32), np.zeros(NUM_STARTS, bool)
    )
    return starts._replace(doomed=is_doomed(starts, params))


def draw_hot_starts(scenario: str) -> Starts:
    """States around the end of a boost, with no violation so far; half of them doomed.

    The candidates are `pi` episodes interrupted by 3 to 15 intervals of action (+1, +1).
    """
    params = scenario_params(scenario)
    scenario_index = list(polycstr_jax.SCENARIOS).index(scenario)
    rng = np.random.default_rng([START_SEED, scenario_index, START_SETS.index("hot")])
    num = NUM_HOT_CANDIDATES
    plan = data.draw_behaviour(scenario, "pi", num, seed=START_SEED)
    boost_start = rng.integers(0, 61, num)
    boost_end = boost_start + rng.integers(3, 16, num)
    plan = plan._replace(
        boost_start=boost_start.astype(np.int32), boost_end=boost_end.astype(np.int32)
    )
    trajectory = data.simulate_behaviour(scenario, plan)
    when = np.minimum(boost_end + rng.integers(-2, 4, num), EPISODE_LENGTH - 1)
    lanes = np.arange(num)
    so_far = np.arange(EPISODE_LENGTH)[:, None] <= when
    unviolated = ~((trajectory.cost > 0) & so_far).any(axis=0)
    candidates = Starts(
        trajectory.state[when, lanes], trajectory.control[when, lanes], np.zeros(num, bool)
    )
    doomed = is_doomed(candidates, params)
    halves = [np.flatnonzero(unviolated & (doomed == x))[: NUM_STARTS // 2] for x in (False, True)]
    chosen = np.concatenate(halves)
    if chosen.size != NUM_STARTS:
        raise RuntimeError(f"{scenario}: only {chosen.size} hot starts; raise NUM_HOT_CANDIDATES.")
    return Starts(candidates.state[chosen], candidates.control[chosen], doomed[chosen])


def is_doomed(starts: Starts, params: EnvParams) -> np.ndarray:
    """Whether lowering feed and coolant at full rate for 24 intervals still violates the limit."""
    peak = jax.jit(jax.vmap(lambda *x: viability.peak_under_safest(*x, params)))
    return np.asarray(peak(starts.state, starts.control)) > params.temperature_limit


def make_checksums() -> dict:
    try:
        arrays = data.committed_checksums()["arrays"]
    except FileNotFoundError:
        arrays = {}
    inputs, here = {}, {}
    for scenario in polycstr_jax.SCENARIOS:
        for dataset in data.DATASETS:
            name = f"{scenario}/{dataset}"
            inputs[name] = data.sha256(
                data.draw_behaviour(scenario, dataset, data.NUM_EPISODES[dataset])
            )
            here[name] = data.sha256(data.generate(scenario, dataset))
    return {"inputs": inputs, "arrays": {**arrays, data.platform_key(): here}}


def make_reference() -> dict[str, np.ndarray]:
    """Returns and peaks of the `mixed` episodes, by which other platforms are compared."""
    arrays = {}
    for scenario in polycstr_jax.SCENARIOS:
        trajectory, _ = data.generate_trajectory(scenario, "mixed")
        arrays[f"{scenario}_return"] = trajectory.reward.sum(axis=0, dtype=np.float64)
        arrays[f"{scenario}_peak"] = trajectory.peak_temperature.max(axis=0)
    return arrays


def write_json(name: str, content: dict) -> None:
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(PACKAGE / name, lambda file: file.write(text.encode()))


def main() -> None:
    write_json("score_limits.json", make_score_limits())
    arrays = {}
    for scenario in polycstr_jax.SCENARIOS:
        for kind in START_SETS:
            drawn = draw_hot_starts(scenario) if kind == "hot" else draw_starts(scenario, kind)
            print(f"{scenario} {kind}: {drawn.doomed.sum()} of {drawn.doomed.size} doomed")
            arrays |= {f"{scenario}_{kind}_{field}": v for field, v in drawn._asdict().items()}
    write_atomically(PACKAGE / "starts.npz", lambda file: np.savez(file, **arrays))
    write_json("checksums.json", make_checksums())
    write_atomically(REFERENCE, lambda file: np.savez(file, **make_reference()))
    print(f"wrote score_limits.json, starts.npz and checksums.json to {PACKAGE}")


if __name__ == "__main__":
    main()
