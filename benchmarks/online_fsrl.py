"""SAC-Lag of FSRL, a part of an update at a time; a script for its own virtual environment.

    .venv-fsrl/bin/python -I benchmarks/online_fsrl.py

`benchmarks/online_speed.py` starts it and talks to it in lines of JSON: first the job, then which
part of an update to do, and with how many threads. Whoever asks steps the reactor, too: while
this plays, it asks for each interval in return. It knows FSRL and what comes with it, and nothing
of ours.
"""

import json
import os
import sys
import warnings

import gymnasium
import numpy as np
import torch
from fsrl.agent import SACLagAgent
from fsrl.data import FastCollector
from fsrl.trainer import OffpolicyTrainer
from tianshou.data import ReplayBuffer


class Wire:
    """Lines of JSON from standard input and to standard output."""

    def __init__(self):
        self._output = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print is no answer

    def send(self, message):
        self._output.write(json.dumps(message) + "\n")

    def receive(self):
        """None when there is no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def ask(self, message):
        self.send(message)
        answer = self.receive()
        if answer is None:
            sys.exit("nobody answers")
        return answer


class Reactor(gymnasium.Env):
    """The reactor at the other end, observations and actions as networks see them."""

    def __init__(self, wire, obs_size, action_size):
        self.wire = wire
        self.observation_space = gymnasium.spaces.Box(-10.0, 10.0, (obs_size,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.asarray(self.wire.ask({"reset": None}), np.float32), {}

    def step(self, action):
        obs, reward, cost, terminated, truncated = self.wire.ask({"step": action.tolist()})
        return np.asarray(obs, np.float32), reward, terminated, truncated, {"cost": cost}


def make_trainer(job, env):
    """FSRL's agent and its off-policy trainer, of which only the inner loop is used."""
    agent = SACLagAgent(
        env,
        cost_limit=job["cost_limit"],
        seed=0,
        actor_lr=job["actor_rate"],
        critic_lr=job["critic_rate"],
        alpha_lr=job["temperature_rate"],
        hidden_sizes=tuple(job["hidden"]),
        tau=job["target_rate"],
        gamma=job["discount"],
        n_step=1,
        lagrangian_pid=tuple(job["gains"]),
    )
    agent.policy.train()
    buffer = ReplayBuffer(job["capacity"])
    return OffpolicyTrainer(
        agent.policy,
        FastCollector(agent.policy, env, buffer, exploration_noise=True),
        batch_size=job["batch_size"],
        cost_limit=job["cost_limit"],
        update_per_step=job["gradient_steps"] / job["intervals"],
        episode_per_collect=job["num_episodes"],
        episode_per_test=1,  # it wants a number, and does not test
        verbose=False,
        show_progress=False,
    )


def main():
    warnings.simplefilter("ignore")
    wire, threads = Wire(), torch.get_num_threads()
    job = wire.receive()
    trainer = make_trainer(job, Reactor(wire, job["obs_size"], job["action_size"]))
    wire.send({"done": {"threads": threads}})
    played = None
    while request := wire.receive():
        torch.set_num_threads(request["threads"])
        before = trainer.gradient_steps
        if request["part"] != "gradient steps" or played is None:
            played = trainer.train_step()
        if request["part"] != "roll-out":
            trainer.policy_update_fn(played)
        steps = trainer.gradient_steps - before
        wire.send({"done": {"intervals": int(played["n/st"]), "gradient_steps": steps}})


if __name__ == "__main__":
    main()
