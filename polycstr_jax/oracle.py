"""What is possible: nonlinear optimal control of the nominal plant, by single shooting.

Decision: the increments of both controls, v in [-1, 1]^2, over a horizon of H intervals. Each
iteration of sequential quadratic programming linearises the plant exactly, by forward
differentiation through the integrator, and solves

    min  sum_k |C z_{k+1} + r_{k+1}|^2 + w sigma_k + (mu/2) |v_k|^2        (Gauss-Newton)
    s.t. z_{k+1} = A_k z_k + B_k v_k,     |increment| <= 1,     controls within their bounds,
         linearised peak temperature <= limit - 0.05 K + sigma_k,     sigma_k >= 0

for a change of the plan, z = (reactor state, controls in force), by a primal-dual interior point
method whose Newton step is a Riccati recursion, so that the work grows with H and not with its
cube. The slack sigma carries an exact penalty: from a start that cannot be saved, the least
violating plan comes back. The step is then shortened until the plant itself, integrated again,
agrees that it is an improvement.

With H = 200 this is the oracle: the best return that a controller could have, knowing the plant.
With H = 10 and replanning at each interval it is a strong controller, with H = 2 or 3 a myopic
one. The oracle wants float64.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from polycstr_jax import reactor
from polycstr_jax.env import EnvParams, plant, state_from_obs

BACK_OFF = 0.05  # K below the limit, so that the plan's replay has cost 0
PENALTY = 1e4  # w, (kg/m3)^2 + K^2 for each K above the limit and interval
COST_SCALE = 1e-2  # of the quadratic programme, to bring its multipliers near 1
NO_LIMIT = 1e4  # K
MAX_ITERATIONS = 40
MAX_DAMPING = 1e-2  # of the programme whose promise decides on convergence
CAUTION = 2.0  # K above the set-point
GUESS_RTOL = 1e-4
STEPS = 2.0 ** -np.arange(0.0, 8.0)  # shares of a step that are tried
NUM_Z, NUM_V = 7, 3  # reactor state and controls in force; increments and slack
NUM_ROWS = 11  # inequalities of a stage


class Stages(NamedTuple):
    """A quadratic programme in stages k = 0 .. H-1; z_0 = 0.

    min  sum_k  z_{k+1}' Q z_{k+1} / 2 + q_k' z_{k+1} + v_k' R v_k / 2 + r_k' v_k
    s.t. z_{k+1} = A_k z_k + B_k v_k,   E_k z_k + F_k v_k <= d_k
    """

    a: Float[Array, "H n n"]
    b: Float[Array, "H n m"]
    q_matrix: Float[Array, "n n"]
    q: Float[Array, "H n"]
    r_matrix: Float[Array, "m m"]
    r: Float[Array, "H m"]
    e: Float[Array, "H p n"]
    f: Float[Array, "H p m"]
    d: Float[Array, "H p"]


class Plan(NamedTuple):
    """An optimised plan of H intervals and what the plant makes of it."""

    action: Float[Array, "H 2"]  # increments in units of the largest allowed
    state: Float[Array, "H 5"]  # reactor state at the end of each interval, public units
    peak: Float[Array, "H"]  # K, within each interval
    cost: Float[Array, ""]  # sum of e_P^2 + e_T^2, minus the return
    excess: Float[Array, ""]  # K, largest peak above the limit; <= 0: the limit is kept
    converged: Bool[Array, ""]
    num_iterations: Int[Array, ""]


# --- The quadratic programme ---


@jax.default_matmul_precision("float32")  # accelerators round products to 10 bits by default
def solve_qp(stages: Stages, tolerance: float, max_iterations: int = 60):
    """(z (H, n) after each stage, v (H, m), whether it is solved: complementarity, residuals of
    the inequalities and of stationarity below `tolerance`); jittable, vmappable.

    A primal-dual interior point method. Where a step is not finite, it ends at the iterate before.

    With slacks s and multipliers l of the inequalities, a Newton step of
    `s l = sigma mu` solves an unconstrained problem in stages with the added cost
    `(l/s) |E z + F v|^2 / 2 + (l + sigma mu / s - (l/s) d)' (E z + F v)`.
    """
    dtype = stages.d.dtype
    horizon = stages.d.shape[0]

    def rows(z, v):
        before = jnp.concatenate([jnp.zeros((1, z.shape[1]), dtype), z[:-1]])
        return jnp.einsum("kpn,kn->kp", stages.e, before) + jnp.einsum("kpm,km->kp", stages.f, v)

    def iterate(carry):
        z, v, s, l, _, dual, count = carry
        mu = jnp.mean(s * l)
        weight = l / s
        linear = l + 0.1 * mu / s - weight * stages.d
        new_z, new_v = riccati(stages, weight, linear)
        slope = rows(new_z, new_v) - stages.d
        ds = -slope - s
        dl = 0.1 * mu / s + weight * slope
        # One length for both: then a step of 1 - dual leaves that much of stationarity's residual.
        step = jnp.minimum(longest_step(s, ds), longest_step(l, dl))
        z, v = (old + step * (new - old) for old, new in ((z, new_z), (v, new_v)))
        new_s, new_l = s + step * ds, l + step * dl
        residual = jnp.max(jnp.abs(rows(z, v) + new_s - stages.d))
        dual = dual * (1.0 - step)
        residual = jnp.maximum(jnp.maximum(jnp.mean(new_s * new_l), residual), dual)
        new = (z, v, new_s, new_l, residual, dual, count + 1)
        finite = jnp.all(jnp.isfinite(v)) & jnp.isfinite(residual)
        stop = (*carry[:6], max_iterations)
        return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, stop)

    def unfinished(carry):
        return (carry[4] > tolerance) & (carry[6] < max_iterations)

    s = jnp.maximum(stages.d, 1.0)
    z = jnp.zeros((horizon, stages.a.shape[-1]), dtype)
    v = jnp.zeros((horizon, stages.b.shape[-1]), dtype)
    large = jnp.asarray(jnp.inf, dtype)
    start = (z, v, s, jnp.ones_like(s), large, jnp.ones((), dtype), 0)
    z, v, _, _, residual, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    return z, v, residual <= tolerance


def longest_step(x, dx):
    """At most 1, and 0.99 of the way to where an entry of x + step dx reaches 0."""
    return jnp.minimum(1.0, 0.99 * jnp.min(jnp.where(dx < 0.0, -x / dx, jnp.inf)))


def riccati(stages: Stages, weight, linear):
    """The minimiser (z, v) of a programme in stages without its inequalities.

    Cost added to stage k: sum over rows of weight y^2 / 2 + linear y, y = E z_k + F v_k.
    """

    def backward(carry, stage):
        p_matrix, p = carry
        a, b, q, r, e, f, weight, linear = stage
        # The cost of z_{k+1}, its own and to go.
        p_matrix, p = p_matrix + stages.q_matrix, p + q
        e_weighted, f_weighted = e * weight[:, None], f * weight[:, None]
        pb = p_matrix @ b
        vv = stages.r_matrix + f.T @ f_weighted + b.T @ pb
        vz = f.T @ e_weighted + pb.T @ a
        zz = e.T @ e_weighted + a.T @ p_matrix @ a
        hv = r + f.T @ linear + b.T @ p
        hz = e.T @ linear + a.T @ p
        gains = -solve_positive(vv, jnp.concatenate([vz, hv[:, None]], axis=1))
        gain, offset = gains[:, :-1], gains[:, -1]
        new = zz + vz.T @ gain
        return (0.5 * (new + new.T), hz + vz.T @ offset), (gain, offset)

    def forward(z, stage):
        a, b, gain, offset = stage
        v = gain @ z + offset
        z = a @ z + b @ v
        return z, (z, v)

    zero = jnp.zeros((stages.a.shape[-1],), stages.d.dtype)
    cost_to_go = (jnp.zeros_like(stages.q_matrix), zero)
    given = (stages.a, stages.b, stages.q, stages.r, stages.e, stages.f, weight, linear)
    _, (gain, offset) = jax.lax.scan(backward, cost_to_go, given, reverse=True)
    return jax.lax.scan(forward, zero, (stages.a, stages.b, gain, offset))[1]


def solve_positive(matrix, right):
    """matrix^-1 right for a small positive definite matrix, by an unrolled Cholesky recursion."""
    n = matrix.shape[0]
    lower = [[None] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, n):
            x = matrix[i, j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = jnp.sqrt(x) if i == j else x / lower[j][j]
    y = []
    for i in range(n):
        y.append((right[i] - sum(lower[i][k] * y[k] for k in range(i))) / lower[i][i])
    x = [None] * n
    for i in reversed(range(n)):
        x[i] = (y[i] - sum(lower[k][i] * x[k] for k in range(i + 1, n))) / lower[i][i]
    return jnp.stack(x)


# --- The plant ---


def step_plant(z, v, disturbance, params: EnvParams, rtol: float):
    """z (7) after one interval with increments v (2), and the interval's peak [K].

    z: reactor state in internal units (radicals x 1e6) and the controls in force. `disturbance`
    (2,): of feed temperature [K] and monomer feed [kg/h].
    """
    controls = z[5:] + v * jnp.asarray(params.max_increment, z.dtype)
    disturbed = plant(jnp.ones((3,), z.dtype), disturbance, params)
    inputs = reactor.hold_inputs(controls, z[5], disturbed)
    step_size = jnp.asarray(reactor.FIRST_STEP, z.dtype)
    state = reactor.from_internal(tuple(z[:5]))
    result = reactor.integrate_interval(state, step_size, inputs, disturbed, rtol)
    nan = jnp.asarray(jnp.nan, z.dtype)
    end = jnp.concatenate([jnp.stack(reactor.to_internal(result.state)), controls])
    return jnp.where(result.failed, nan, end), jnp.where(result.failed, nan, result.peak)


def control_limits(params: EnvParams, dtype):
    """Largest increment, lowest and highest control, (2,) each: kg/h, K."""
    increment = jnp.asarray(params.max_increment, dtype)
    return increment, *(x.astype(dtype) for x in reactor.control_bounds(params.reactor))


def simulate(z, plan, disturbances, params: EnvParams, rtol: float):
    """z (H, 7) after each interval of a plan (H, 2), and peaks (H,)."""

    def interval(z, given):
        z, peak = step_plant(z, *given, params, rtol)
        return z, (z, peak)

    return jax.lax.scan(interval, z, (plan, disturbances))[1]


def linearise(z, plan, disturbances, params: EnvParams, rtol: float):
    """As `simulate`, and the derivatives of z after each interval and of its peak by z and v."""

    def interval(z, given):
        v, disturbance = given

        def both(x):
            end, peak = step_plant(x[:NUM_Z], x[NUM_Z:], disturbance, params, rtol)
            found = jnp.append(end, peak)
            return found, found

        slopes, end = jax.jacfwd(both, has_aux=True)(jnp.concatenate([z, v]))
        return end[:NUM_Z], (end[:NUM_Z], end[NUM_Z], slopes)

    return jax.lax.scan(interval, z, (plan, disturbances))[1]


@jax.default_matmul_precision("float32")
def make_stages(plan, ends, peaks, slopes, params, limit, damping) -> Stages:
    """The quadratic programme around a plan; `ends`, `peaks`, `slopes` from `linearise`."""
    dtype, horizon = plan.dtype, plan.shape[0]
    increment, low, high = control_limits(params, dtype)
    setpoint = jnp.asarray([params.polymer_setpoint, params.temperature_setpoint], dtype)
    pick = jnp.zeros((2, NUM_Z), dtype).at[0, 3].set(1.0).at[1, 4].set(1.0)
    error = ends @ pick.T - setpoint[None]
    b = jnp.concatenate([slopes[:, :NUM_Z, NUM_Z:], jnp.zeros((horizon, NUM_Z, 1), dtype)], 2)

    # Rows: +-v, +-controls after the increment, peak - slack, temperature at the end - slack,
    # -slack. Where an interval's temperature dips, its peak is the larger end, and jumps from one
    # to the other: a row for the peak alone would promise what the plant does not keep.
    v_rows, z_rows = jnp.zeros((NUM_ROWS, NUM_V), dtype), jnp.zeros((NUM_ROWS, NUM_Z), dtype)
    eye = jnp.eye(2, dtype=dtype)
    v_rows = v_rows.at[0:2, :2].set(eye).at[2:4, :2].set(-eye)
    v_rows = v_rows.at[4:6, :2].set(eye).at[6:8, :2].set(-eye)
    v_rows = v_rows.at[8:11, 2].set(-1.0)
    z_rows = z_rows.at[4:6, 5:].set(eye / increment[:, None])
    z_rows = z_rows.at[6:8, 5:].set(-eye / increment[:, None])
    e = jnp.tile(z_rows[None], (horizon, 1, 1)).at[:, 8].set(slopes[:, NUM_Z, :NUM_Z])
    e = e.at[:, 9].set(slopes[:, 4, :NUM_Z])
    f = jnp.tile(v_rows[None], (horizon, 1, 1)).at[:, 8, :2].set(slopes[:, NUM_Z, NUM_Z:])
    f = f.at[:, 9, :2].set(slopes[:, 4, NUM_Z:])
    controls = ends[:, 5:]
    d = jnp.concatenate(
        [
            1.0 - plan,
            1.0 + plan,
            (high[None] - controls) / increment[None],
            (controls - low[None]) / increment[None],
            (limit - BACK_OFF - peaks)[:, None],
            (limit - BACK_OFF - ends[:, 4:5]),
            jnp.zeros((horizon, 1), dtype),
        ],
        axis=1,
    )
    slack_cost = jnp.asarray([0.0, 0.0, COST_SCALE * PENALTY], dtype)
    return Stages(
        a=slopes[:, :NUM_Z, :NUM_Z],
        b=b,
        q_matrix=2.0 * COST_SCALE * pick.T @ pick,
        q=2.0 * COST_SCALE * error @ pick,
        r_matrix=jnp.diag(jnp.stack([damping, damping, jnp.asarray(1e-3, dtype)])),
        r=jnp.tile(slack_cost[None], (horizon, 1)),
        e=e,
        f=f,
        d=d,
    )


# --- The plan ---


def optimise(
    state: Float[Array, "5"],
    controls: Float[Array, "2"],
    guess: Float[Array, "H 2"],
    params: EnvParams,
    limit: Float[Array, ""],
    max_iterations: Int[ArrayLike, ""] = MAX_ITERATIONS,
    other_guess: Float[Array, "H 2"] | None = None,
    disturbances: Float[Array, "H 2"] | None = None,
) -> Plan:
    """The best plan from a start, improving a guess; jittable, vmappable, in either precision.

    Of two guesses the better is taken. `limit` [K] on the peak temperature. `disturbances` of
    feed temperature [K] and monomer feed [kg/h] in each interval: none if None. Converged: the
    quadratic programme was solved, and promises an improvement of less than 1e-8 of the penalised
    cost (float32: 1e-4).
    """
    dtype = state.dtype
    rtol, tolerance, small = (1e-7, 1e-9, 1e-8) if dtype == jnp.float64 else (1e-5, 1e-4, 1e-4)
    z0 = jnp.concatenate([jnp.stack(reactor.to_internal(state)), controls])
    setpoint = jnp.asarray([params.polymer_setpoint, params.temperature_setpoint], dtype)
    disturbances = jnp.zeros_like(guess) if disturbances is None else disturbances

    def merits(ends, peaks):
        cost = jnp.sum((ends[:, 3:5] - setpoint[None]) ** 2)
        over = jnp.sum(jnp.maximum(peaks - (limit - BACK_OFF), 0.0))
        merit = cost + PENALTY * over
        return jnp.where(jnp.isfinite(merit), merit, jnp.inf), cost

    def try_share(plan, change, share):
        new = within_bounds(controls, plan + share * change, params)
        return merits(*simulate(z0, new, disturbances, params, rtol))[0], new

    def iterate(carry):
        plan, merit, damping, _, count = carry
        ends, peaks, slopes = linearise(z0, plan, disturbances, params, rtol)
        stages = make_stages(plan, ends, peaks, slopes, params, limit, damping)
        moves, v, solved = solve_qp(stages, tolerance)
        change = jnp.where(jnp.all(jnp.isfinite(v)), v[:, :2], 0.0)
        shares = jnp.asarray(STEPS, dtype)
        found, plans = jax.vmap(try_share, (None, None, 0))(plan, change, shares)
        best = jnp.argmin(found)
        improved = found[best] < merit
        # What the linearised plant would gain: zero where the plan is optimal.
        new_peaks = peaks + jnp.sum(slopes[:, NUM_Z, NUM_Z:] * change, axis=1)
        before = jnp.concatenate([jnp.zeros_like(moves[:1]), moves[:-1]])
        new_peaks = new_peaks + jnp.sum(slopes[:, NUM_Z, :NUM_Z] * before, axis=1)
        promised = merit - merits(ends + moves, new_peaks)[0]
        # A programme damped heavily promises little wherever it is.
        converged = (
            solved & (damping <= MAX_DAMPING) & (promised <= small * jnp.maximum(merit, 1.0))
        )
        factor = jnp.where(improved, jnp.where(best == 0, 0.2, 5.0), 25.0)
        damping = jnp.clip(factor * damping, 1e-6, 1e4)
        plan = jnp.where(improved, plans[best], plan)
        return plan, jnp.minimum(merit, found[best]), damping, converged, count + 1

    def unfinished(carry):
        return ~carry[3] & (carry[4] < max_iterations)

    guess = within_bounds(controls, guess, params)
    merit, _ = merits(*simulate(z0, guess, disturbances, params, rtol))
    if other_guess is not None:
        other_guess = within_bounds(controls, other_guess, params)
        other = merits(*simulate(z0, other_guess, disturbances, params, rtol))[0]
        guess = jnp.where(other < merit, other_guess, guess)
        merit = jnp.minimum(other, merit)
    start = (guess, merit, jnp.asarray(1e-2, dtype), jnp.asarray(False), 0)
    plan, _, _, converged, count = jax.lax.while_loop(unfinished, iterate, start)
    ends, peaks = simulate(z0, plan, disturbances, params, rtol)
    return Plan(
        action=plan,
        state=jax.vmap(lambda z: reactor.from_internal(tuple(z[:5])))(ends),
        peak=peaks,
        cost=merits(ends, peaks)[1],
        excess=jnp.max(peaks) - limit,
        converged=converged,
        num_iterations=count,
    )


def within_bounds(controls, plan, params: EnvParams):
    """A plan (H, 2) with the increments that its controls' bounds leave of it."""
    increment, low, high = control_limits(params, plan.dtype)

    def interval(controls, v):
        new = jnp.clip(controls + jnp.clip(v, -1.0, 1.0) * increment, low, high)
        return new, (new - controls) / increment

    return jax.lax.scan(interval, controls, plan)[1]


def cautious(state, controls, params: EnvParams, horizon: int) -> Float[Array, "H 2"]:
    """A guess that does not ignite: as fast as allowed to the steady inputs of the set-points,
    but the safest action while the temperature is 2 K above its set-point; jittable."""
    dtype = state.dtype
    increment, low, high = control_limits(params, dtype)
    setpoints = jnp.asarray(params.polymer_setpoint), jnp.asarray(params.temperature_setpoint)
    # Under vmap and jit: set-points that cannot be held end at a bound.
    wanted = jnp.clip(jnp.stack(reactor.steady_inputs(*setpoints, params.reactor)), low, high)

    def interval(z, _):
        target = jnp.where(z[4] > setpoints[1] + CAUTION, low, wanted.astype(dtype))
        v = jnp.clip((target - z[5:]) / increment, -1.0, 1.0)
        return step_plant(z, v, jnp.zeros((2,), dtype), params, GUESS_RTOL)[0], v

    z = jnp.concatenate([jnp.stack(reactor.to_internal(state)), controls])
    return jax.lax.scan(interval, z, None, horizon)[1]


def steady_inputs(params: EnvParams) -> np.ndarray:
    """The controls (2,) [kg/h, K] that hold the set-points; `ValueError` if none does."""
    setpoints = float(params.polymer_setpoint), float(params.temperature_setpoint)
    return reactor.nominal_steady_state(*setpoints, params.reactor)[1]


def step_to_setpoint(controls, params: EnvParams, horizon: int = 200):
    """The open-loop step (H, 2): as fast as allowed to the steady inputs of the set-points.

    `controls` (2,) in force. Gap closed 0 in every table. Raises `ValueError` for set-points that
    no admissible control holds.
    """
    away = (steady_inputs(params) - np.asarray(controls, np.float64)) / params.max_increment
    done = np.clip(away, -np.arange(horizon + 1.0)[:, None], np.arange(horizon + 1.0)[:, None])
    return np.diff(done, axis=0)


@functools.partial(jax.jit, static_argnums=3)
def _guess_all(states, controls, params, horizon):
    return jax.vmap(lambda s, u: cautious(s, u, params, horizon))(states, controls)


def guess_all(states, controls, params: EnvParams, horizon: int) -> np.ndarray:
    """`cautious` from N starts, (N, H, 2), in float64."""
    steady_inputs(params)  # raises where the set-points cannot be held
    with jax.enable_x64(True):
        states, controls = (jnp.asarray(x, jnp.float64) for x in (states, controls))
        return np.asarray(_guess_all(states, controls, params, horizon))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None, None, None))
def _optimise_all(state, controls, guess, disturbances, params, limit, max_iterations):
    return optimise(
        state, controls, guess, params, limit, max_iterations, disturbances=disturbances
    )


def solve(
    states,
    controls,
    params: EnvParams,
    *,
    horizon: int = 200,
    limit: float | None = None,
    guesses=None,
    disturbances=None,
    max_iterations: int = MAX_ITERATIONS,
) -> Plan:
    """The oracle: optimal plans from N starts, NumPy arrays (N, ...), in float64.

    `states` (N, 5) in public units, `controls` (N, 2) in force. `limit` [K]: that of `params` if
    None; infinity leaves the temperature free. `guesses` (N, H, 2): `cautious` if None. `params`
    must be those of the true plant; of its hooks, only `disturbances` (N, H, 2), of feed
    temperature [K] and monomer feed [kg/h], are foreseen.

    Warns, with numbers, of starts from which the limit is exceeded, where the plan is the least
    violating one, and of starts that did not converge. Raises `ValueError` for shapes, a horizon
    or a limit out of range, an input delay, set-points that no control holds.
    """
    states, controls = (np.asarray(x, np.float64) for x in (states, controls))
    if states.ndim != 2 or states.shape[1] != 5 or controls.shape != (len(states), 2):
        raise ValueError(
            f"states and controls have shapes {states.shape} and {controls.shape}; allowed: (N, 5) "
            "and (N, 2)."
        )
    check_horizon(horizon)
    limit = float(params.temperature_limit if limit is None else limit)
    check_limit(limit, params)
    if params.action_delay != 0:
        raise ValueError(f"action_delay = {params.action_delay}; allowed: 0 (the oracle has none).")
    shape = (len(states), horizon, 2)
    if guesses is None:
        guesses = guess_all(states, controls, params, horizon)
    disturbances = np.zeros(shape) if disturbances is None else disturbances
    for name, array in (("guesses", guesses), ("disturbances", disturbances)):
        if np.shape(array) != shape:
            raise ValueError(f"{name} have shape {np.shape(array)}; allowed: {shape}.")
    with jax.enable_x64(True):
        arrays = (jnp.asarray(x, jnp.float64) for x in (states, controls, guesses, disturbances))
        bound = jnp.asarray(min(limit, NO_LIMIT), jnp.float64)
        plan = jax.device_get(_optimise_all(*arrays, params, bound, max_iterations))
    over = ~(plan.excess <= 0.0)
    if over.any():
        most = np.nanmax(plan.excess[over], initial=0.0)
        warnings.warn(
            f"from {over.sum()} of {len(states)} starts no plan was found that keeps {limit} K; "
            f"the least violating ones exceed it by up to {most:.2f} K.",
            stacklevel=2,
        )
    if not plan.converged.all():
        warnings.warn(
            f"{(~plan.converged).sum()} of {len(states)} starts did not converge in "
            f"{max_iterations} iterations; see `converged`.",
            stacklevel=2,
        )
    return plan


def check_horizon(horizon: int, name: str = "horizon") -> None:
    """Raise `ValueError` unless `horizon` is an integer of at least 1."""
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"{name} = {horizon}; allowed: an integer, 1 or more intervals.")


def check_limit(limit: float, params: EnvParams) -> None:
    """Raise `ValueError` unless `limit` [K] is above the set-point and below 600 K, or infinite."""
    setpoint = float(params.temperature_setpoint)
    if not (setpoint < limit < 600.0 or limit == np.inf):
        raise ValueError(
            f"limit = {limit} K; allowed: above the set-point of {setpoint} K and below 600 K, or "
            "infinity for none."
        )


def receding_horizon(params: EnvParams, horizon: int, max_iterations: int = 3):
    """A controller that replans over H intervals at each interval and takes the first action.

    `params`: the plant and the limit that it believes in; the set-points are those that the
    observation shows, so one controller serves all scenarios. Its state is the plan (H, 2), all
    zeros at first, which is improved by at most `max_iterations` quadratic programmes, converged
    or not: the next interval goes on with it. Raises `ValueError` for a horizon below 1 and for a
    limit that `solve` refuses.
    """
    check_horizon(horizon)
    check_limit(float(params.temperature_limit), params)

    def controller(obs, plan):
        state, controls = state_from_obs(obs)
        limit = jnp.asarray(min(params.temperature_limit, NO_LIMIT), obs.dtype)
        goal = params.replace(
            polymer_setpoint=obs[3] + obs[5], temperature_setpoint=obs[4] + obs[6]
        )
        guess = cautious(state, controls, goal, horizon)
        found = optimise(state, controls, guess, goal, limit, max_iterations, plan).action
        found = jnp.where(jnp.all(jnp.isfinite(found)), found, jnp.zeros_like(found))
        return found[0], jnp.concatenate([found[1:], jnp.zeros_like(found[:1])])

    return controller
