"""The published equations once more, in plain numbers, integrated by SciPy."""

import numpy as np
import scipy.integrate

INTERVAL = 1800.0  # s


def published_rhs(t, y, feed, coolant, flow_feed):
    """The published equations once more, in plain numbers."""
    a, i, r, p, temperature = y
    rt = 8.314 * temperature
    r_d = 1e9 * np.exp(-125e3 / rt) * i / 0.165
    r_p = 4e4 * np.exp(-25e3 / rt) * r * a / 0.1
    r_t = 1e6 * np.exp(-15e3 / rt) * r**2
    q = (flow_feed + 180.0) / 1000.0 / 3600.0
    heat = 1e5 * r_p - 500.0 * (temperature - coolant) + q * 2e6 * (350.0 - temperature)
    return np.array(
        [
            100.0 / 3600.0 - q * a - r_p * 0.1,
            feed / 3600.0 - q * i - r_d * 0.165,
            2.0 * r_d - 2.0 * r_t,
            r_p * 0.1 - q * p,
            heat / 2e6,
        ]
    )


def exact_interval(state, previous_feed, control):
    """End and peak temperature by SciPy; radicals scaled for its finite differences."""
    scale = np.array([1.0, 1.0, 1e-6, 1.0, 1.0])
    solution = scipy.integrate.solve_ivp(
        lambda t, z: published_rhs(t, z * scale, *control, previous_feed) / scale,
        (0.0, INTERVAL),
        state / scale,
        method="Radau",
        rtol=1e-8,
        atol=1e-8,
        dense_output=True,
    )
    steps = np.linspace(solution.t[:-1], solution.t[1:], 20).ravel()
    return solution.y[:, -1] * scale, solution.sol(steps)[4].max()
