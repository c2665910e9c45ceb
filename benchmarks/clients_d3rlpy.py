"""Train BC of d3rlpy on one of our Minari data sets; a script for the peers' virtual environment.

    python -m polycstr_jax dataset --format minari --out FOLDER
    .venv-peers/bin/python -I benchmarks/clients_d3rlpy.py FOLDER

What somebody does who has the data and not our package: it reads the data set through Minari's
interface, trains through d3rlpy's, and prints one JSON object: BC's loss over all the data, and the
root mean square error of both actions in units of their standard deviation (1: no better than the
mean action), before and after. It knows d3rlpy, Minari and NumPy, and nothing of ours.

It also says which share of the pairs of observation and action of the data d3rlpy's own
`get_minari` keeps. That function puts the T + 1 observations of the episodes end to end and cuts
them every T, so that from the second episode on they belong to other actions.
"""

import argparse
import json
import logging
import os
from importlib.metadata import version


def episodes_of(dataset):
    """Minari's episodes as d3rlpy's.

    d3rlpy takes an observation's successor from the next row and leaves out the last transition
    of an episode that timed out, so there is a row for the observation that it ends on, too.
    """
    import numpy as np
    from d3rlpy.dataset import Episode

    made = []
    for episode in dataset.iterate_episodes():
        observations, actions, rewards = episode.observations, episode.actions, episode.rewards
        terminated = bool(episode.terminations[-1])
        if terminated:
            observations = observations[:-1]
        else:
            actions = np.concatenate([actions, actions[-1:]])
            rewards = np.concatenate([rewards, rewards[-1:]])
        made.append(Episode(observations, actions, rewards[:, None], terminated))
    return made


def pairs(buffer):
    """Observations and actions of all transitions of a d3rlpy buffer."""
    import numpy as np

    found = [
        buffer.transition_picker(episode, index)
        for episode in buffer.episodes
        for index in range(episode.transition_count)
    ]
    return np.stack([x.observation for x in found]), np.stack([x.action for x in found])


def share_kept_by_get_minari(dataset_id, known):
    """The share of `known` pairs, as bytes, among those that d3rlpy's `get_minari` makes.

    It wants the environment, which is not here: an empty one stands in.
    """
    import d3rlpy
    import gymnasium
    import minari

    class Empty(gymnasium.Env):
        spec = gymnasium.envs.registration.EnvSpec("Empty-v0", max_episode_steps=1)

        def __init__(self, dataset):
            self.observation_space = dataset.observation_space
            self.action_space = dataset.action_space

    original = minari.MinariDataset.recover_environment
    minari.MinariDataset.recover_environment = lambda dataset: Empty(dataset)
    try:
        observations, actions = pairs(d3rlpy.datasets.get_minari(dataset_id)[0])
    finally:
        minari.MinariDataset.recover_environment = original
    made = as_bytes(observations, actions)
    return sum(pair in known for pair in made) / len(made)


def as_bytes(observations, actions):
    """Each pair as bytes."""
    return [o.tobytes() + a.tobytes() for o, a in zip(observations, actions, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of Minari's data sets, the --out of the first command")
    parser.add_argument("--dataset-id", default="polycstr/startup-pi-v0")
    parser.add_argument("--num-updates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.num_updates < 1:
        parser.error(f"--num-updates {args.num_updates}; allowed: 1 or more")
    os.environ["MINARI_DATASETS_PATH"] = args.folder  # before Minari is imported

    import d3rlpy
    import minari
    import numpy as np
    import structlog
    import torch
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    torch.set_num_threads(1)
    d3rlpy.seed(args.seed)
    try:
        dataset = minari.load_dataset(args.dataset_id)
    except FileNotFoundError as error:
        parser.error(
            f"{error} Make it with: python -m polycstr_jax dataset --format minari "
            f"--out {args.folder}"
        )
    buffer = ReplayBuffer(InfiniteBuffer(), episodes=episodes_of(dataset))
    observations, actions = pairs(buffer)
    # The tanh head of d3rlpy's policy needs actions that fill [-1, 1]: most increments are small.
    bc = d3rlpy.algos.BCConfig(
        batch_size=256,
        learning_rate=1e-3,
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(),
        action_scaler=d3rlpy.preprocessing.MinMaxActionScaler(),
    ).create(device=False)
    bc.build_with_dataset(buffer)
    # As d3rlpy's loop does; `build_with_dataset` leaves the scalers alone.
    bc.config.observation_scaler.fit_with_transition_picker(
        buffer.episodes, buffer.transition_picker
    )
    bc.config.action_scaler.fit_with_transition_picker(buffer.episodes, buffer.transition_picker)
    spread = actions.std(axis=0)

    def error_of_actions():
        wrong = (bc.predict(observations) - actions) / spread
        return np.sqrt(np.mean(wrong**2, axis=0)).tolist()

    def loss():
        """BC's loss over all the data, in the units of the action scaler."""
        low, high = actions.min(axis=0), actions.max(axis=0)
        wrong = (bc.predict(observations) - actions) * 2.0 / (high - low)
        return float(np.mean(wrong**2))

    before = {"loss": loss(), "action_error": error_of_actions()}
    bc.fit(
        buffer,
        n_steps=args.num_updates,
        n_steps_per_epoch=args.num_updates,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    after = {"loss": loss(), "action_error": error_of_actions()}
    report = {
        "dataset_id": dataset.id,
        "episodes": int(dataset.total_episodes),
        "transitions": int(observations.shape[0]),
        "num_updates": args.num_updates,
        "before": before,
        "after": after,
        "share_kept_by_get_minari": share_kept_by_get_minari(
            args.dataset_id, set(as_bytes(observations, actions))
        ),
        "versions": {name: version(name) for name in ("d3rlpy", "minari", "torch", "numpy")},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
