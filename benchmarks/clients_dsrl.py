"""Read one of our HDF5 files by DSRL's and OSRL's own loaders, in an environment of theirs.

    python -m polycstr_jax dataset --scenario startup --format hdf5 --out startup-pi.hdf5
    python -m venv .venv-dsrl
    .venv-dsrl/bin/python -m pip install gymnasium h5py oapackage pyrallis scipy torch tqdm
    .venv-dsrl/bin/python -m pip install --no-deps dsrl==0.1.0 osrl-lib==0.1.0
    .venv-dsrl/bin/python -I benchmarks/clients_dsrl.py startup-pi.hdf5

Without their other dependencies, which do not go together with NumPy 2. It prints one JSON object:
what the loaders find, and how far that is from the file itself, read by h5py. It knows nothing of
our package. Exit code 1 if an episode, a return or a cost comes out otherwise.
"""

import argparse
import contextlib
import copy
import json
import sys
from importlib.metadata import version

SAFE_LIMIT, RISKY_LIMIT = 5, 10  # violating intervals an episode


def of_file(path):
    """Lengths, undiscounted returns and costs (E,) of the episodes of a file, cut at its ends."""
    import h5py
    import numpy as np

    with h5py.File(path) as file:
        done = file["terminals"][:].astype(bool) | file["timeouts"][:].astype(bool)
        rewards, costs = (file[name][:].astype(np.float64) for name in ("rewards", "costs"))
    if not done.size or not done[-1]:
        raise ValueError(f"{path}: its last transition ends no episode")
    ends = np.flatnonzero(done) + 1
    starts = np.concatenate([[0], ends[:-1]])
    sums = (np.add.reduceat(column, starts) for column in (rewards, costs))
    return ends - starts, *sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="of a file that python -m polycstr_jax dataset has written")
    path = parser.parse_args().path

    with contextlib.redirect_stdout(sys.stderr):  # the loaders speak of what they do
        report = loaded(path)
    print(json.dumps(report, indent=1))
    right = (
        report["lengths_equal"]
        and report["costs_equal"]
        and report["largest_relative_difference_of_returns"] < 1e-5
        and all(report[mode]["kept"] == report[mode]["due"] for mode in ("safe", "risky"))
    )
    sys.exit(0 if right else 1)


def loaded(path: str) -> dict:
    """What DSRL's and OSRL's loaders find in a file, against the file itself."""
    import gymnasium
    import numpy as np
    from dsrl.offline_env import OfflineEnvWrapper
    from osrl.common.dataset import SequenceDataset, TransitionDataset, process_bc_dataset

    class Spaces(gymnasium.Env):
        """What DSRL checks columns against."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (9,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    lengths, returns, costs = of_file(path)
    columns = OfflineEnvWrapper(Spaces()).get_dataset(h5path=path)
    sequences = SequenceDataset(copy.deepcopy(columns), seq_len=10, cost_reverse=False)
    found = [
        (len(x["rewards"]), float(x["returns"][0]), float(x["cost_returns"][0]))
        for x in sequences.dataset
    ]
    transitions = TransitionDataset(copy.deepcopy(columns))

    def kept(mode: str, limit: int) -> int:
        """Episodes that are left."""
        chosen = copy.deepcopy(columns)
        process_bc_dataset(chosen, cost_limit=limit, gamma=1.0, bc_mode=mode)
        return int((chosen["terminals"].astype(bool) | chosen["timeouts"].astype(bool)).sum())

    return {
        "episodes": len(found),
        "transitions": int(transitions.dataset_size),
        "lengths_equal": [x[0] for x in found] == lengths.tolist(),
        "largest_relative_difference_of_returns": float(
            np.max(np.abs(np.array([x[1] for x in found]) / returns - 1.0))
        ),
        "costs_equal": [x[2] for x in found] == costs.tolist(),
        "safe": {"kept": kept("safe", SAFE_LIMIT), "due": int((costs <= SAFE_LIMIT).sum())},
        "risky": {
            "kept": kept("risky", SAFE_LIMIT),
            "due": int((costs >= RISKY_LIMIT).sum()),
        },
        "versions": {name: version(name) for name in ("dsrl", "osrl-lib", "gymnasium", "numpy")},
    }


if __name__ == "__main__":
    main()
