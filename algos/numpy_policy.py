"""A trained policy in NumPy alone. `algos/export.py` copies this file as policy.py, beside
policy.npz (its numbers) and policy.json (what they are of: plant, units, versions).

    import policy
    action = policy.act(obs)

`obs` (9,) or (N, 9), as the environment shows it: monomer, initiator [kg/m3], radicals x 1e6
[mol/m3], polymer [kg/m3], temperature [K], P_set - P [kg/m3], T_set - T [K], and what is in force,
initiator feed [kg/h] and coolant temperature [K]. `action` (2,) or (N, 2) in [-1, 1]: increments of
feed and coolant temperature, in units of those that policy.json names.

The mathematics is that of the algorithm's file in polycstr-jax, in float32, written out. Three
forms of a policy: `linear` (BC, IQL), `squashed` (a Gaussian's mean through tanh: CPQ, BEAR-Lag,
COptiDICE, SAC-Lag, Marvel and its baselines), `perturbed` (BCQ-Lag); and the correction of arXiv
2507.22640 on top, by gradient steps down a cost model, which is convex in the action.
"""

import functools
from pathlib import Path

import numpy as np

OBS_CLIP = 10.0  # standardised observations


def act(obs, path=None):
    """Actions of raw observations; shapes above. `path`: other numbers than those beside this file.

    `ValueError` for another shape. An observation that is not finite gives an action that is not.
    """
    numbers = load(str(path or Path(__file__).with_name("policy.npz")))
    obs = np.asarray(obs, np.float32)
    if obs.ndim not in (1, 2) or obs.shape[-1] != 9:
        raise ValueError(f"obs has shape {obs.shape}; allowed: (9,) or (N, 9).")
    raw = np.atleast_2d(obs)
    seen = np.clip((raw - numbers["obs_mean"]) / numbers["obs_std"], -OBS_CLIP, OBS_CLIP)
    action = FORMS[str(numbers["form"])](numbers, seen[:, numbers["first_obs"] :])
    if "cost_eta" in numbers:
        action = corrected(numbers, raw, seen[:, numbers["cost_first_obs"] :], action)
    return action.reshape(*obs.shape[:-1], 2)


@functools.cache
def load(path):
    """The numbers of a policy by name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def mlp(numbers, name, x):
    """ReLU layers and a linear head: (N, S) -> (N, M)."""
    last = int(numbers[f"{name}_layers"]) - 1
    for layer in range(last + 1):
        x = x @ numbers[f"{name}_kernel_{layer}"] + numbers[f"{name}_bias_{layer}"]
        x = np.maximum(x, 0.0) if layer < last else x
    return x


# --- Forms: standardised observations (N, S) -> actions (N, 2) ---


def linear(numbers, seen):
    """A network in units of the data's actions."""
    output = mlp(numbers, "actor", seen)
    output = np.tanh(output) if numbers["tanh"] else output
    return np.clip(numbers["shift"] + numbers["scale"] * output, -1.0, 1.0)


def squashed(numbers, seen):
    """The mean of a Gaussian, through tanh."""
    return from_unit(numbers, np.tanh(mlp(numbers, "actor", seen)))


def perturbed(numbers, seen):
    """A VAE's action of the code 0, moved by at most `phi`."""
    code = np.zeros((len(seen), 4), np.float32)
    action = np.tanh(mlp(numbers, "decoder", np.concatenate([seen, code], axis=1)))
    move = np.tanh(mlp(numbers, "actor", np.concatenate([seen, action], axis=1)))
    return from_unit(numbers, np.clip(action + numbers["phi"] * move, -1.0, 1.0))


FORMS = {"linear": linear, "squashed": squashed, "perturbed": perturbed}


def from_unit(numbers, inner):
    """std sinh(inner asinh(1 / std)): most actions are a few hundredths, and a boost is 1."""
    if "action_std" not in numbers:  # the network's are the plant's
        return inner
    std = numbers["action_std"]
    return np.clip(std * np.sinh(inner * np.arcsinh(1.0 / std)), -1.0, 1.0)


# --- The correction: b <- clip(b - rate grad c(b)), where the errors are large ---


def corrected(numbers, raw, seen, action):
    """Actions (N, 2) moved down the cost model, except where |e_P| + |e_T| is at most the gate."""
    shift, scale = numbers["cost_shift"], numbers["cost_scale"]
    low, high, rate = (numbers[f"cost_{name}"] for name in ("low", "high", "eta"))
    given = [states(numbers, seen, member) for member in range(int(numbers["cost_members"]))]
    b = (action - shift) / scale
    for _ in range(int(numbers["cost_steps"])):
        b = np.clip(b - rate * cost_gradient(numbers, given, b), low, high)
    moved = np.clip(shift + scale * b, -1.0, 1.0)
    far = np.abs(raw[:, 5]) + np.abs(raw[:, 6]) > numbers["cost_gate"]
    return np.where(far[:, None], moved, action)


def states(numbers, u, member):
    """What the observations add to each layer of a member: a list of (N, width)."""
    given = []
    for layer in range(int(numbers["cost_layers"])):
        kernel, bias = (numbers[f"cost_state_{x}_{layer}"][member] for x in ("kernel", "bias"))
        given.append(u @ kernel + bias)
        if f"cost_path_kernel_{layer}" in numbers:
            path = (numbers[f"cost_path_{x}_{layer}"][member] for x in ("kernel", "bias"))
            u = softplus(u @ next(path) + next(path))
    return given


def cost_gradient(numbers, given, b):
    """The gradient (N, 2), by the action, of mean + k std over the members' costs."""
    costs, gradients = zip(*(of_member(numbers, x, b, m) for m, x in enumerate(given)), strict=True)
    costs, gradients = np.stack(costs), np.stack(gradients)  # (M, N), (M, N, 2)
    if len(given) == 1:
        return gradients[0]
    std = np.sqrt(costs.var(axis=0) + 1e-12)
    weight = 1.0 + numbers["cost_uncertainty"] * (costs - costs.mean(axis=0)) / std
    return np.mean(weight[..., None] * gradients, axis=0)


def of_member(numbers, given, b, member):
    """Cost (N,) of one member, and its gradient (N, 2) by the action: forwards, then backwards."""

    def kernel(kind, layer):
        return numbers[f"cost_{kind}_kernel_{layer}"][member]

    activation, slope = ACTIVATIONS[str(numbers["cost_activation"])]
    last, outputs = len(given) - 1, []
    for layer, out in enumerate(given):
        out = out + b @ kernel("action", layer)
        if layer > 0:
            out = out + activation(outputs[-1]) @ kernel("inner", layer)
        outputs.append(out)
    back, gradient = np.ones_like(outputs[-1]), 0.0
    for layer in range(last, -1, -1):
        if layer < last:
            back = (back @ kernel("inner", layer + 1).T) * slope(outputs[layer])
        gradient = gradient + back @ kernel("action", layer).T
    return outputs[-1][:, 0], gradient


def softplus(x):
    """log(1 + e^x)."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


ACTIVATIONS = {  # and their derivatives
    "softplus": (softplus, lambda x: 0.5 * (1.0 + np.tanh(0.5 * x))),
    "relu": (lambda x: np.maximum(x, 0.0), lambda x: (x > 0.0).astype(x.dtype)),
    "elu": (
        lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
        lambda x: np.exp(np.minimum(x, 0.0)),
    ),
}
