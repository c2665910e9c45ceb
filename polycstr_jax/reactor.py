"""The polymerisation reactor: a continuous stirred tank that can run away thermally.

Free-radical polymerisation of one monomer with a thermally decomposing initiator, as in the
simulator that the authors of arXiv 2507.22640 published. The state is
`(A, I, R, P, T)`: monomer, initiator [kg/m3], radicals [mol/m3], polymer [kg/m3], temperature
[K]. The controls, held over an interval of 1800 s, are the initiator feed F [kg/h] and the
coolant temperature Tc [K]. With Arrhenius constants k(T) = k0 exp(-E / (R_gas T)),

    r_d = k_d I / M_I        r_p = k_p R A / M_A        r_t = k_t R^2             [mol/m3/s]
    q   = (F_flow + monomer feed + solvent feed) / density / 3600                     [m3/s]
    dA/dt = monomer feed / 3600 / V - q A / V - r_p M_A
    dI/dt = F / 3600 / V - q I / V - r_d M_I
    dR/dt = 2 r_d - 2 r_t                              (radicals do not leave with the flow)
    dP/dt = r_p M_A - q P / V
    dT/dt = (H r_p V - UA (T - Tc) + q rho c_p (T_feed - T)) / (rho c_p V)

F_flow is the feed of the *previous* interval, a quirk of the published simulator that is kept
for parity; `ReactorParams.current_feed_in_flow = 1` uses the current feed.

Integration: the L-stable Rosenbrock method RODAS4P (see `rosenbrock.py`) with an analytic
Jacobian, one scalar per state so that `vmap` vectorises over lanes. Radicals are scaled by 1e6
inside. A step is accepted if its error is within rtol (1 + |y0|) in these units *and* its end
is physical; the scale leaves out |y1| because a near-singular step in an ignition can produce
an enormous y1 that would otherwise approve itself.
"""

import functools
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from polycstr_jax.rosenbrock import RODAS4P, Rosenbrock, Tableau

NUM_STATES = 5
RADICAL_SCALE = 1e6  # internal radicals are R x 1e6, which is of order 1
FIRST_STEP = 60.0  # s
MAX_INTERNAL_STEPS = 2_000  # in one interval; more is a failure
PHYSICAL_TEMPERATURE = (250.0, 1000.0)  # K; a candidate step outside is rejected
DEFAULT_RTOL = 1e-5

SAFETY_FACTOR, SHRINK_LIMIT, GROWTH_LIMIT = 0.9, 0.1, 5.0


@struct.dataclass
class ReactorParams:
    """Physical constants of the plant; every field may be changed, vmapped and differentiated,
    except that nothing flows through `interval`: step sizes are constants to derivatives."""

    gas_constant: float = 8.314  # J/mol/K
    density: float = 1000.0  # kg/m3
    heat_capacity: float = 2000.0  # J/kg/K
    heat_transfer: float = 500.0  # UA, J/s/K
    heat_of_reaction: float = 100e3  # J/mol released
    decomposition_rate: float = 1e9  # 1/s
    decomposition_energy: float = 125e3  # J/mol
    propagation_rate: float = 4e4  # m3/mol/s
    propagation_energy: float = 25e3  # J/mol
    termination_rate: float = 1e6  # m3/mol/s
    termination_energy: float = 15e3  # J/mol
    monomer_feed: float = 100.0  # kg/h
    solvent_feed: float = 80.0  # kg/h
    feed_temperature: float = 350.0  # K
    volume: float = 1.0  # m3
    monomer_molar_mass: float = 0.100  # kg/mol
    initiator_molar_mass: float = 0.165  # kg/mol
    feed_min: float = 0.0  # kg/h, bounds of the initiator feed
    feed_max: float = 2.5
    coolant_min: float = 300.0  # K, bounds of the coolant temperature
    coolant_max: float = 350.0
    interval: float = 1800.0  # s, over which the controls are held
    current_feed_in_flow: float = 0.0  # 0: previous feed sets the flow (published); 1: current


def control_bounds(params: ReactorParams, arrays=jnp):
    """Lowest and highest control, (2,) each: kg/h, K. `arrays` is jax.numpy or numpy."""
    low = arrays.stack([arrays.asarray(x) for x in (params.feed_min, params.coolant_min)])
    high = arrays.stack([arrays.asarray(x) for x in (params.feed_max, params.coolant_max)])
    return low, high


class Inputs(NamedTuple):
    """What acts on the reactor during one interval, scalars."""

    feed: Array  # initiator feed, kg/h
    coolant: Array  # coolant temperature, K
    flow_feed: Array  # the initiator feed that sets the outflow, kg/h


def hold_inputs(control, previous_feed, params: ReactorParams) -> Inputs:
    """What a control (2,) held over an interval does, after one with `previous_feed` [kg/h]."""
    flow_feed = previous_feed + params.current_feed_in_flow * (control[0] - previous_feed)
    return Inputs(control[0], control[1], jnp.asarray(flow_feed, control.dtype))


class IntervalProgress(NamedTuple):
    """Where the integration of one interval stands; scalars, and y a tuple of 5 scalars."""

    time: Array  # s since the start of the interval
    y: tuple[Array, ...]  # internal units
    step_size: Array  # s, proposal for the next internal step
    peak: Array  # K, highest temperature so far
    num_steps: Array  # internal steps tried, accepted or not
    failed: Array  # bool


def to_internal(state):
    """State (..., 5) in public units -> tuple of 5 arrays in internal units."""
    a, i, r, p, t = (state[..., n] for n in range(NUM_STATES))
    return (a, i, r * RADICAL_SCALE, p, t)


def from_internal(y):
    """Tuple of 5 arrays in internal units -> state (..., 5) in public units."""
    a, i, r, p, t = y
    return jnp.stack([a, i, r * (1.0 / RADICAL_SCALE), p, t], axis=-1)


def _rate_constants(temperature, params, arrays=jnp):
    x = -1.0 / (params.gas_constant * temperature)
    return (
        params.decomposition_rate * arrays.exp(params.decomposition_energy * x),
        params.propagation_rate * arrays.exp(params.propagation_energy * x),
        params.termination_rate * arrays.exp(params.termination_energy * x),
    )


def _flow(inputs: Inputs, params):
    """Volumetric flow over volume, 1/s."""
    mass_flow = inputs.flow_feed + params.monomer_feed + params.solvent_feed
    return mass_flow / (params.density * 3600.0 * params.volume)


def _heat_coefficients(params):
    """Kelvin per mol/m3 reacted, and UA / (rho c_p V) in 1/s."""
    capacity = params.density * params.heat_capacity
    return params.heat_of_reaction / capacity, params.heat_transfer / (capacity * params.volume)


def _rhs(time, y, args):
    """dy/dt in internal units; scalars."""
    del time
    inputs, params = args
    a, i, r, p, t = y
    k_d, k_p, k_t = _rate_constants(t, params)
    q = _flow(inputs, params)
    heating, cooling = _heat_coefficients(params)
    decomposed = k_d * i  # kg/m3/s
    polymerised = k_p * r * a * (1.0 / RADICAL_SCALE)  # kg/m3/s: r_p M_A
    r_p = polymerised / params.monomer_molar_mass
    return (
        params.monomer_feed / (3600.0 * params.volume) - q * a - polymerised,
        inputs.feed / (3600.0 * params.volume) - q * i - decomposed,
        (2.0 * RADICAL_SCALE / params.initiator_molar_mass) * decomposed
        - (2.0 / RADICAL_SCALE) * k_t * r * r,
        polymerised - q * p,
        heating * r_p - cooling * (t - inputs.coolant) + q * (params.feed_temperature - t),
    )


def _jacobian(time, y, args):
    """d(dy/dt)/dy in internal units; structural zeros are the Python number 0."""
    del time
    inputs, params = args
    a, i, r, _, t = y
    k_d, k_p, k_t = _rate_constants(t, params)
    q = _flow(inputs, params)
    heating, cooling = _heat_coefficients(params)
    heating = heating / params.monomer_molar_mass
    inverse_rt2 = 1.0 / (params.gas_constant * t * t)
    by_a = k_p * r * (1.0 / RADICAL_SCALE)  # of the polymerised mass, by A, R and T
    by_r = k_p * a * (1.0 / RADICAL_SCALE)
    by_t = by_a * a * params.propagation_energy * inverse_rt2
    decomposed_by_t = k_d * i * params.decomposition_energy * inverse_rt2
    initiation = 2.0 * RADICAL_SCALE / params.initiator_molar_mass
    termination = (2.0 / RADICAL_SCALE) * k_t * r
    return (
        (-q - by_a, 0, -by_r, 0, -by_t),
        (0, -q - k_d, 0, 0, -decomposed_by_t),
        (
            0,
            initiation * k_d,
            -2.0 * termination,
            0,
            initiation * decomposed_by_t
            - termination * r * params.termination_energy * inverse_rt2,
        ),
        (by_a, 0, by_r, -q, by_t),
        (heating * by_a, 0, heating * by_r, 0, heating * by_t - cooling - q),
    )


def _solver(tableau: Tableau) -> Rosenbrock:
    return Rosenbrock(tableau, jacobian=_jacobian, autonomous=True)


_TERM = diffrax.ODETerm(_rhs)


def start_interval(y, step_size) -> IntervalProgress:
    """The beginning of an interval from internal state y (5 scalars), proposing step_size [s]."""
    dtype = y[4].dtype
    finite = functools.reduce(jnp.logical_and, [jnp.isfinite(value) for value in y])
    return IntervalProgress(
        time=jnp.zeros((), dtype),
        y=y,
        step_size=jnp.asarray(step_size, dtype),
        peak=y[4],
        num_steps=jnp.zeros((), jnp.int32),
        failed=~finite,
    )


def unfinished(progress: IntervalProgress, params: ReactorParams) -> Bool[Array, "..."]:
    """Whether this interval still has to be integrated further."""
    return (progress.time < params.interval) & ~progress.failed


def hermite_maximum(y0, y1, k0, k1):
    """The largest value on [0, 1] of the cubic with values y0, y1 and slopes k0, k1 at the ends."""
    a = k0 + k1 + 2.0 * y0 - 2.0 * y1
    b = -2.0 * k0 - k1 - 3.0 * y0 + 3.0 * y1
    # The maximum of a s^3 + b s^2 + k0 s + y0 is the root of its derivative with a negative
    # curvature: s = k0 / (root - b), free of cancellation where k0 > 0 and the cubic rises first.
    discriminant = b * b - 3.0 * a * k0
    has_root = discriminant > 0.0
    root = jnp.sqrt(jnp.where(has_root, discriminant, 1.0))
    denominator = root - b
    has_root = has_root & (jnp.abs(denominator) > 1e-30)
    s = jnp.clip(k0 / jnp.where(has_root, denominator, 1.0), 0.0, 1.0)
    inside = y0 + s * (k0 + s * (b + s * a))
    return jnp.maximum(jnp.maximum(y0, y1), jnp.where(has_root, inside, y0))


def internal_step(
    progress: IntervalProgress,
    inputs: Inputs,
    params: ReactorParams,
    rtol: float,
    tableau: Tableau = RODAS4P,
) -> IntervalProgress:
    """Try one step of the adaptive integration; a finished interval is returned unchanged."""
    active = unfinished(progress, params)
    y, dtype = progress.y, progress.time.dtype
    remaining = jnp.where(active, params.interval - progress.time, params.interval)
    is_last = remaining < 1.01 * progress.step_size
    h = jax.lax.stop_gradient(jnp.where(is_last, remaining, progress.step_size))

    y1, y_error, dense, _, _ = _solver(tableau).step(
        _TERM, jnp.zeros((), dtype), h, y, (inputs, params), None, made_jump=False
    )

    error = functools.reduce(
        jnp.maximum,
        [jnp.abs(e) / (rtol + rtol * jnp.abs(v)) for e, v in zip(y_error, y, strict=True)],
    )
    low, high = PHYSICAL_TEMPERATURE
    physical = (y1[4] > low) & (y1[4] < high)
    for concentration in y1[:4]:
        physical = physical & (concentration > -10.0 * rtol)
    error = jax.lax.stop_gradient(jnp.where(physical & (error < 1e10), error, 1e10))
    accepted = (error <= 1.0) & active

    factor = SAFETY_FACTOR * _inverse_root(jnp.maximum(error, 1e-12), tableau.order)
    proposal = h * jnp.clip(factor, SHRINK_LIMIT, GROWTH_LIMIT)
    # A last step is short because the interval ends, not because the problem is hard.
    proposal = jnp.where(accepted & is_last, jnp.maximum(progress.step_size, proposal), proposal)
    proposal = jnp.minimum(proposal, params.interval)

    top = hermite_maximum(y[4], y1[4], dense["k0"][4], dense["k1"][4])
    num_steps = progress.num_steps + active
    # A step that hardly changes the time is a failure; at the beginning much less is needed.
    smallest = 4.0 * jnp.finfo(dtype).eps * jnp.maximum(progress.time, 1e-3 * params.interval)
    failed = active & ~accepted & ((num_steps >= MAX_INTERNAL_STEPS) | (proposal < smallest))
    failed = failed | (accepted & ~is_last & (num_steps >= MAX_INTERNAL_STEPS))
    non_negative = (*(jnp.maximum(value, 0.0) for value in y1[:4]), y1[4])
    end = jnp.where(is_last, jnp.asarray(params.interval, dtype), progress.time + h)
    return IntervalProgress(
        time=jnp.where(accepted, end, progress.time),
        y=tuple(jnp.where(accepted, new, old) for new, old in zip(non_negative, y, strict=True)),
        step_size=jnp.where(active, proposal, progress.step_size),
        peak=jnp.where(accepted, jnp.maximum(progress.peak, top), progress.peak),
        num_steps=num_steps,
        failed=progress.failed | failed,
    )


def _inverse_root(x, order):
    """x ** (-1 / order); for the default order 4 by two square roots, which vectorise on CPU."""
    return 1.0 / jnp.sqrt(jnp.sqrt(x)) if order == 4 else x ** (-1.0 / order)


class IntervalResult(NamedTuple):
    """The end of an interval."""

    state: Float[Array, "5"]  # public units; the last accepted state if failed
    peak: Float[Array, ""]  # K
    step_size: Float[Array, ""]  # s, proposal for the next interval
    num_steps: Int[Array, ""]
    failed: Bool[Array, ""]


def interval_result(progress: IntervalProgress) -> IntervalResult:
    """What a finished or failed `progress` comes to; any batch axes lead."""
    return IntervalResult(
        state=from_internal(progress.y),
        peak=progress.peak,
        step_size=progress.step_size,
        num_steps=progress.num_steps,
        failed=progress.failed,
    )


def integrate_interval(
    state: Float[Array, "5"],
    step_size: Float[Array, ""],
    inputs: Inputs,
    params: ReactorParams,
    rtol: float,
    tableau: Tableau = RODAS4P,
) -> IntervalResult:
    """One interval from `state`, proposing `step_size` [s]; forward-mode differentiable.

    This is what `simulate_interval` and the environment's `step` share.
    """
    final = jax.lax.while_loop(
        lambda progress: unfinished(progress, params),
        lambda progress: internal_step(progress, inputs, params, rtol, tableau),
        start_interval(to_internal(state), step_size),
    )
    return interval_result(final)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _simulate(state, previous_feed, control, params, rtol):
    result = integrate_interval(
        state,
        jnp.asarray(FIRST_STEP, state.dtype),
        hold_inputs(control, previous_feed, params),
        params,
        rtol,
    )
    nan = jnp.asarray(jnp.nan, state.dtype)
    return jnp.where(result.failed, nan, result.state), jnp.where(result.failed, nan, result.peak)


@functools.partial(_simulate.defjvp, symbolic_zeros=True)
def _simulate_jvp(rtol, primals, tangents):
    # The while loop has no reverse mode. So the rule computes the Jacobian by forward mode
    # through the loop, and is linear in the tangents: JAX transposes that for reverse mode.
    leaves, structure = jax.tree.flatten(primals)
    tangent_leaves = jax.tree.leaves(tangents, is_leaf=lambda x: isinstance(x, SymbolicZero))
    moving = [n for n, t in enumerate(tangent_leaves) if not isinstance(t, SymbolicZero)]

    def function_of_moving(values):
        filled = list(leaves)
        for n, value in zip(moving, values, strict=True):
            filled[n] = value
        return _simulate.fun(*jax.tree.unflatten(structure, filled), rtol)

    values = [leaves[n] for n in moving]
    outputs = function_of_moving(values)
    jacobians = jax.jacfwd(function_of_moving)(values)

    def apply(output, rows):
        products = [
            jnp.tensordot(row, tangent_leaves[n], jnp.ndim(tangent_leaves[n]), precision="highest")
            for n, row in zip(moving, rows, strict=True)
        ]
        return sum(products, jnp.zeros_like(output))

    return outputs, tuple(apply(out, rows) for out, rows in zip(outputs, jacobians, strict=True))


_simulate_jitted = jax.jit(_simulate, static_argnums=4)


def simulate_interval(
    state: Num[ArrayLike, "5"],
    previous_feed: Num[ArrayLike, ""],
    control: Num[ArrayLike, "2"],
    params: ReactorParams | None = None,
    *,
    rtol: float = DEFAULT_RTOL,
) -> tuple[Float[Array, "5"], Float[Array, ""]]:
    """Integrate the reactor over one control interval (1800 s).

    Arguments:

    - `state`: (5,) A, I [kg/m3], R [mol/m3], P [kg/m3], T [K] at the start.
    - `previous_feed`: () initiator feed of the interval before [kg/h]; it sets the outflow.
    - `control`: (2,) initiator feed [kg/h] and coolant temperature [K].
    - `params`: physical constants; the published plant if None.
    - `rtol`: relative tolerance; the absolute one is rtol x (1, 1, 1e-6, 1, 1).

    Returns the state (5,) at the end and the highest temperature [K] within the interval. Both
    are NaN if the integration fails (more than 2,000 internal steps, or no acceptable step).
    Vmappable; differentiable in forward and reverse mode in all array arguments.

    Raises `ValueError` for a wrong shape, a complex or non-numeric dtype, or an rtol that is not
    positive or is below 10 eps of the dtype.
    """
    state, previous_feed, control = (
        _as_float(name, value, shape)
        for name, value, shape in (
            ("state", state, (NUM_STATES,)),
            ("previous_feed", previous_feed, ()),
            ("control", control, (2,)),
        )
    )
    dtype = jnp.result_type(state, previous_feed, control)
    rtol = check_rtol(rtol, dtype)
    params = ReactorParams() if params is None else params
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return _simulate_jitted(
        state.astype(dtype), previous_feed.astype(dtype), control.astype(dtype), params, rtol
    )


def vector_field(
    t: Num[ArrayLike, ""],
    state: Num[ArrayLike, "5"],
    control: Num[ArrayLike, " controls"],
    params: ReactorParams | None = None,
) -> Float[Array, "5"]:
    """d(state)/dt [kg/m3/s, mol/m3/s, K/s] in public units; t [s] is not used.

    `control` is (2,): feed [kg/h] and coolant temperature [K], or (3,): these and the feed that
    sets the outflow (the previous interval's, by default of the environment). With two entries
    the current feed sets the outflow. Raises `ValueError` for other shapes.
    """
    state = _as_float("state", state, (NUM_STATES,))
    control = jnp.asarray(control)
    if control.shape not in ((2,), (3,)):
        raise ValueError(f"control has shape {control.shape}; allowed: (2,) or (3,).")
    inputs = Inputs(control[0], control[1], control[-1] if control.size == 3 else control[0])
    params = ReactorParams() if params is None else params
    return from_internal(_rhs(t, to_internal(state), (inputs, params)))


def _solve_steady(polymer, temperature, params, arrays):
    """Closed-form steady state, and its control; `arrays` is numpy or jax.numpy."""
    k_d, k_p, k_t = _rate_constants(temperature, params, arrays)
    # The outflow depends on the feed sought, by at most 1.4 %: a fixed point that gains two
    # digits a turn.
    feed = 1.0
    for _ in range(12):
        q = _flow(Inputs(feed, temperature, feed), params)
        monomer = params.monomer_feed / (3600.0 * params.volume) / q - polymer
        radicals = q * polymer / (k_p * monomer)
        decomposed = k_t * radicals**2 * params.initiator_molar_mass
        initiator = decomposed / k_d
        feed = 3600.0 * params.volume * (q * initiator + decomposed)
    heating, cooling = _heat_coefficients(params)
    heat = heating * q * polymer / params.monomer_molar_mass
    coolant = temperature - (heat + q * (params.feed_temperature - temperature)) / cooling
    return (monomer, initiator, radicals, polymer, temperature), (feed, coolant)


def steady_inputs(polymer, temperature, params: ReactorParams):
    """The feed [kg/h] and the coolant temperature [K] that hold a polymer concentration and a
    temperature, whether they are admissible or not; traceable scalars."""
    return _solve_steady(polymer, temperature, params, jnp)[1]


def steady_state(
    polymer: Num[ArrayLike, ""],
    temperature: Num[ArrayLike, ""],
    params: ReactorParams | None = None,
) -> tuple[Float[Array, "5"], Float[Array, "2"]]:
    """The state and the controls that hold a polymer concentration and a temperature.

    Arguments: `polymer` [kg/m3] and `temperature` [K], scalars (vmappable). Returns the state
    (5,) in public units and the control (2,): feed [kg/h], coolant temperature [K].

    Raises `ValueError` for concrete arguments that no admissible control can hold, naming the
    polymer range that is possible at that temperature. Under `jit` or `vmap` nothing can be
    raised: check the returned control against the bounds.
    """
    params = ReactorParams() if params is None else params
    traced = any(
        isinstance(leaf, jax.core.Tracer)
        for leaf in jax.tree.leaves((polymer, temperature, params))
    )
    if traced:
        state, control = _solve_steady(polymer, temperature, params, jnp)
    else:
        state, control = nominal_steady_state(float(polymer), float(temperature), params)
    return jnp.stack([*map(jnp.asarray, state)]), jnp.stack([*map(jnp.asarray, control)])


def nominal_steady_state(polymer: float, temperature: float, params: ReactorParams):
    """`steady_state` in numpy float64, for constants that must not move with JAX's precision."""
    check_holdable(polymer, temperature, params)
    state, control = _solve_steady(polymer, temperature, params, np)
    return np.asarray(state, np.float64), np.asarray(control, np.float64)


def holdable(polymer: float, temperature: float, params: ReactorParams | None = None) -> bool:
    """Whether admissible controls hold `polymer` [kg/m3] and `temperature` [K]; concrete values."""
    params = ReactorParams() if params is None else params
    if not polymer > 0.0:
        return False
    with np.errstate(all="ignore"):
        (monomer, *_), (feed, coolant) = _solve_steady(polymer, temperature, params, np)
    return bool(
        monomer > 0.0
        and params.feed_min <= feed <= params.feed_max
        and params.coolant_min <= coolant <= params.coolant_max
    )


def check_holdable(polymer: float, temperature: float, params: ReactorParams):
    """Raise `ValueError` unless admissible controls hold this polymer and temperature."""
    low, high = PHYSICAL_TEMPERATURE
    if not (low < temperature < high and np.isfinite(polymer)):
        raise ValueError(
            f"polymer = {polymer} kg/m3 at {temperature} K; allowed: a finite polymer "
            f"concentration, and a temperature between {low} and {high} K."
        )
    if holdable(polymer, temperature, params):
        return
    grid = np.linspace(0.1, 600.0, 6000)
    possible = grid[[holdable(p, temperature, params) for p in grid]]
    span = (
        f"at {temperature} K, polymer from {possible.min():.1f} to {possible.max():.1f} kg/m3 "
        "can be held"
        if possible.size
        else f"no polymer concentration can be held at {temperature} K"
    )
    raise ValueError(
        f"polymer = {polymer} kg/m3 at {temperature} K cannot be held by a feed within "
        f"{params.feed_min} to {params.feed_max} kg/h and a coolant within "
        f"{params.coolant_min} to {params.coolant_max} K: {span}."
    )


def check_rtol(rtol: float, dtype) -> float:
    """Return rtol as a float; `ValueError` unless it is at least 10 eps of the dtype."""
    smallest = 10.0 * float(jnp.finfo(dtype).eps)
    try:
        value = float(rtol)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rtol = {rtol!r}; allowed: a positive number, not an array.") from error
    if not value > 0.0 or not np.isfinite(value):
        raise ValueError(f"rtol = {rtol}; allowed: a positive number.")
    if value < smallest:
        raise ValueError(
            f"rtol = {rtol} is below 10 eps of {jnp.dtype(dtype).name} ({smallest:.2e}); use a "
            "larger rtol, or float64 (jax.config.update('jax_enable_x64', True))."
        )
    return value


def _as_float(name: str, value, shape: tuple[int, ...]) -> Array:
    try:
        array = jnp.asarray(value)
    except TypeError as error:
        raise ValueError(f"{name} = {value!r}; allowed: a float array of shape {shape}.") from error
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; allowed: {shape} (use jax.vmap).")
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} has dtype {array.dtype}; allowed: a floating-point array.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)
