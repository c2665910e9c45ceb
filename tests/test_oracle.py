"""The oracle finds what other optimisers find, obeys every constraint, and says where it fails."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from polycstr_jax import evaluate, oracle, reactor, viability
from polycstr_jax.controllers import SAFEST
from polycstr_jax.env import PolyCSTR, scenario_params
from polycstr_jax.rollout import rollout
from tests.exact import exact_interval

HORIZON = 24
FEASIBLE, DOOMED = 5, 40  # hot starts of grade_up


# --- Accelerators ---


def test_no_product_of_matrices_is_rounded_as_accelerators_do():
    """They take 10 of 23 bits unless told otherwise: neither plant nor oracle can do with that."""
    params = scenario_params("startup")
    with jax.enable_x64(False):
        state, controls = jnp.asarray(params.start_mean, jnp.float32), jnp.zeros(2)
        plan = jnp.zeros((2, 2))

        def end(state):
            control = jnp.asarray(params.initial_control, jnp.float32)
            return reactor.simulate_interval(state, jnp.float32(1.0), control)[0].sum()

        texts = [
            jax.jit(oracle.optimise).lower(state, controls, plan, params, 356.0).as_text(),
            jax.jit(jax.grad(end)).lower(state).as_text(),
        ]
    for text in texts:
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("[HIGHEST, HIGHEST]" in line for line in products)


# --- The quadratic programme ---


def random_stages(seed, horizon=5, n=3, m=2, rows=3):
    """A programme whose inequalities hold strictly at 0."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    root = normal((n, n))
    return oracle.Stages(
        a=0.6 * normal((horizon, n, n)),
        b=normal((horizon, n, m)),
        q_matrix=root.T @ root,
        q=2.0 * normal((horizon, n)),
        r_matrix=0.1 * np.eye(m),
        r=normal((horizon, m)),
        e=normal((horizon, rows, n)),
        f=normal((horizon, rows, m)),
        d=rng.uniform(0.1, 1.0, (horizon, rows)),
    )


def unroll(stages, v):
    """z (H + 1, n) from v (H, m)."""
    z = [np.zeros(stages.a.shape[-1])]
    for a, b, action in zip(stages.a, stages.b, v, strict=True):
        z.append(a @ z[-1] + b @ action)
    return np.array(z)


def objective(stages, v):
    z = unroll(stages, v)[1:]
    of_z = 0.5 * np.einsum("ki,ij,kj", z, stages.q_matrix, z) + np.sum(stages.q * z)
    return of_z + 0.5 * np.einsum("ki,ij,kj", v, stages.r_matrix, v) + np.sum(stages.r * v)


def slack(stages, v):
    z = unroll(stages, v)[:-1]
    return stages.d - np.einsum("kpn,kn->kp", stages.e, z) - np.einsum("kpm,km->kp", stages.f, v)


def slope(function, x):
    """Derivative (..., N) by central differences of step 1: exact for quadratic functions."""
    steps = [(function(x + e) - function(x - e)) / 2.0 for e in np.eye(x.size)]
    return np.stack(steps, axis=-1)


@pytest.mark.parametrize("seed", range(5))
def test_the_programme_has_the_solution_that_scipy_finds(seed, double):
    stages = random_stages(seed)
    z, v, solved = jax.jit(oracle.solve_qp, static_argnums=(1, 2))(stages, 1e-10, 60)
    shape = stages.r.shape

    def cost(x):
        return objective(stages, x.reshape(shape))

    def room(x):
        return slack(stages, x.reshape(shape)).ravel()

    reference = scipy.optimize.minimize(
        cost,
        np.zeros(shape).ravel(),
        jac=lambda x: slope(cost, x),
        method="SLSQP",
        constraints={"type": "ineq", "fun": room, "jac": lambda x: slope(room, x)},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert bool(solved) and reference.success
    assert slack(stages, np.asarray(v)).min() > -1e-8
    assert slack(stages, np.asarray(v)).min() < 1e-5  # some inequality is active
    np.testing.assert_allclose(v, reference.x.reshape(shape), atol=2e-5)
    np.testing.assert_allclose(objective(stages, np.asarray(v)), reference.fun, rtol=1e-7)
    np.testing.assert_allclose(z, unroll(stages, np.asarray(v))[1:], atol=1e-9)


def test_a_programme_without_a_solution_is_not_called_solved(double):
    stages = random_stages(0)
    contradiction = stages.f.copy()
    contradiction[:, 1] = -contradiction[:, 0]
    e = stages.e.copy()
    e[:, 1] = -e[:, 0]
    d = stages.d.copy()
    d[:, :2] = -1.0  # y <= -1 and -y <= -1
    *_, solved = oracle.solve_qp(stages._replace(e=e, f=contradiction, d=d), 1e-8)
    assert not bool(solved)


def test_a_programme_that_is_not_convex_ends_finite_and_is_not_called_solved(double):
    stages = random_stages(0)
    stages = stages._replace(r_matrix=-50.0 * stages.r_matrix)
    z, v, solved = oracle.solve_qp(stages, 1e-8)
    assert not bool(solved) and np.isfinite(z).all() and np.isfinite(v).all()


def test_small_systems_are_solved(double):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 3, 3))
    matrix, right = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(3), rng.standard_normal((4, 3, 5))
    found = jax.vmap(oracle.solve_positive)(jnp.asarray(matrix), jnp.asarray(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9)


# --- The plant ---


@functools.cache
def of_scenario(scenario, kind, *which):
    starts = evaluate.starts(scenario, kind)
    chosen = list(which)
    return starts.state[chosen], starts.control[chosen], scenario_params(scenario)


def test_derivatives_through_the_plant_are_exact(double):
    state, control, params = of_scenario("grade_up", "hot", 0)
    z = np.concatenate([state[0] * [1.0, 1.0, 1e6, 1.0, 1.0], control[0]])
    plan = np.array([[0.3, 0.5], [-0.2, 0.1]])
    calm = jnp.zeros(plan.shape)
    linearise = jax.jit(lambda z, plan: oracle.linearise(z, plan, calm, params, 1e-10))
    simulate = jax.jit(lambda z, plan: oracle.simulate(z, plan, calm, params, 1e-10))
    ends, peaks, slopes = linearise(jnp.asarray(z), jnp.asarray(plan))
    again = simulate(jnp.asarray(z), jnp.asarray(plan))
    np.testing.assert_allclose(ends, again[0], rtol=1e-9)
    np.testing.assert_allclose(peaks, again[1], rtol=1e-9)
    for column, (size, dz, dv) in enumerate(
        [(1e-4, np.eye(7)[n], np.zeros(2)) for n in range(7)]
        + [(1e-4, np.zeros(7), np.eye(2)[n]) for n in range(2)]
    ):
        pairs = [
            simulate(jnp.asarray(z + sign * size * dz), jnp.asarray(plan + sign * size * dv[None]))
            for sign in (1.0, -1.0)
        ]
        by_end = (pairs[0][0][0] - pairs[1][0][0]) / (2.0 * size)
        by_peak = (pairs[0][1][0] - pairs[1][1][0]) / (2.0 * size)
        np.testing.assert_allclose(slopes[0, :7, column], by_end, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(slopes[0, 7, column], by_peak, rtol=1e-4, atol=1e-5)


@functools.cache
def four_starts():
    """Three times one hot, feasible start, then a doomed one."""
    chosen = [FEASIBLE, FEASIBLE, FEASIBLE, DOOMED]
    assert (evaluate.starts("grade_up", "hot").doomed[chosen] == [0, 0, 0, 1]).all()
    return of_scenario("grade_up", "hot", *chosen)


def solve(params=None, **settings):
    """From the four starts and different guesses; all calls compile the same program."""
    state, control, nominal = four_starts()
    params = nominal if params is None else params
    guesses = np.array(oracle.guess_all(state, control, params, HORIZON))
    guesses[1] = 0.5 * np.array(SAFEST)
    guesses[2] = np.where(np.arange(HORIZON)[:, None] < 3, -1.0, 0.0)
    return oracle.solve(state, control, params, horizon=HORIZON, guesses=guesses, **settings)


@functools.cache
def constrained():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return solve()


def test_scipy_finds_the_same_plan(double):
    """Another optimiser, on the true plant, with the limit active."""
    state, control, params = four_starts()
    z0 = jnp.asarray(np.concatenate([state[0] * [1.0, 1.0, 1e6, 1.0, 1.0], control[0]]))
    calm = jnp.zeros((HORIZON, 2))
    simulate = jax.jit(lambda plan: oracle.simulate(z0, plan, calm, params, 1e-8))
    slopes = jax.jit(jax.jacfwd(lambda plan: oracle.simulate(z0, plan, calm, params, 1e-8)))
    sums = np.tril(np.ones((HORIZON, HORIZON)))
    cumulative = np.kron(sums, np.diag(params.max_increment))
    low, high = np.tile([0.0, 300.0], HORIZON), np.tile([2.5, 350.0], HORIZON)
    in_force = np.tile(control[0], HORIZON)
    setpoint, bound = np.array([100.0, 350.0]), 356.0 - oracle.BACK_OFF

    def error(x):
        return np.asarray(simulate(x.reshape(HORIZON, 2))[0][:, 3:5]) - setpoint

    def cost_slope(x):
        by_end = np.asarray(slopes(x.reshape(HORIZON, 2))[0])[:, 3:5]
        return np.einsum("ki,kijl->jl", 2.0 * error(x), by_end).ravel()

    reference = scipy.optimize.minimize(
        lambda x: np.sum(error(x) ** 2),
        oracle.guess_all(state[:1], control[:1], params, HORIZON)[0].ravel(),
        jac=cost_slope,
        method="SLSQP",
        bounds=[(-1.0, 1.0)] * (2 * HORIZON),
        constraints=[
            {
                "type": "ineq",
                "fun": lambda x: bound - np.asarray(simulate(x.reshape(HORIZON, 2))[1]),
                "jac": lambda x: -np.asarray(slopes(x.reshape(HORIZON, 2))[1]).reshape(HORIZON, -1),
            },
            scipy.optimize.LinearConstraint(cumulative, low - in_force, high - in_force),
        ],
        # Of a cost of 3,600; finer than what is asked below, coarser than the integrator's noise.
        options={"ftol": 1e-5, "maxiter": 300},
    )
    assert reference.success
    np.testing.assert_allclose(constrained().cost[0], reference.fun, rtol=1e-4)
    assert constrained().cost[0] <= reference.fun * (1.0 + 1e-5)


def test_three_guesses_agree_and_keep_the_limit():
    plan = constrained()
    assert plan.converged[:3].all()
    np.testing.assert_allclose(plan.cost[1:3], plan.cost[0], rtol=1e-5)
    assert (plan.excess[:3] <= 0.0).all()
    assert plan.peak[0].max() == pytest.approx(356.0 - oracle.BACK_OFF, abs=1e-3)  # active
    assert np.abs(plan.action).max() <= 1.0


def test_the_environment_replays_the_plan_without_cost(double):
    plan, (state, control, params) = constrained(), four_starts()
    initial = evaluate.start_states(evaluate.Starts(state[:1], control[:1], np.zeros(1, bool)))

    def controller(_, step):
        return jnp.asarray(plan.action[0])[step], step + 1

    keys, memory = jax.random.split(jax.random.key(0), 1), jnp.zeros((1,), int)
    trajectory = rollout(PolyCSTR(), params, controller, memory, initial, keys, HORIZON)
    np.testing.assert_allclose(-trajectory.reward.sum(), plan.cost[0], rtol=1e-4)
    assert trajectory.cost.sum() == 0.0
    np.testing.assert_allclose(trajectory.peak_temperature[:, 0], plan.peak[0], atol=0.01)


def test_scipy_replays_the_plan():
    plan, (states, controls, params) = constrained(), four_starts()
    cost, peaks = 0.0, []
    state, control = states[0].astype(float), controls[0].astype(float)
    for action in plan.action[0]:
        feed, control = control[0], control + action * params.max_increment
        state, peak = exact_interval(state, feed, control)
        cost += (100.0 - state[3]) ** 2 + (350.0 - state[4]) ** 2
        peaks.append(peak)
    np.testing.assert_allclose(cost, plan.cost[0], rtol=2e-4)
    np.testing.assert_allclose(peaks, plan.peak[0], atol=0.02)


def test_without_a_limit_it_is_better_and_hotter():
    free = solve(limit=np.inf)
    assert free.converged[0] and free.cost[0] < 0.999 * constrained().cost[0]
    assert free.peak[0].max() > 357.0


def test_a_doomed_start_is_named_and_gets_the_least_violating_plan():
    with pytest.warns(
        UserWarning, match=r"1 of 4 starts no plan was found that keeps 356.0 K.* by up"
    ):
        plan = solve()
    state, control, params = four_starts()
    peak = float(
        viability.peak_under_safest(jnp.asarray(state[3]), jnp.asarray(control[3]), params)
    )
    assert peak > 356.0 and plan.excess[3] > 0.0
    # Nothing is known to stay below the safest policy. The plan's penalty sums over intervals.
    assert peak - 0.01 <= plan.peak[3].max() <= peak + 0.5


def test_controls_keep_their_bounds_where_these_bind():
    _, control, params = four_starts()
    lowest = 339.5  # K; without this bound the plan goes below
    free = control[0, 1] + np.cumsum(constrained().action[0, :, 1])
    assert free.min() < lowest - 1.0
    tight = params.replace(reactor=params.reactor.replace(coolant_min=lowest))
    with pytest.warns(UserWarning, match="no plan was found"):
        plan = solve(tight)
    controls = control[:, None] + np.cumsum(plan.action, axis=1) * params.max_increment
    assert (controls[..., 0] >= -1e-6).all() and (controls[..., 0] <= 2.5 + 1e-6).all()
    assert (controls[..., 1] >= lowest - 1e-6).all() and (controls[..., 1] <= 350.0 + 1e-6).all()
    assert controls[0, :, 1].min() == pytest.approx(lowest, abs=1e-3)
    assert controls[0, :, 0].max() == pytest.approx(2.5, abs=1e-3)


def test_what_did_not_converge_is_said():
    with pytest.warns(UserWarning, match="4 of 4 starts did not converge in 1 iterations"):
        plan = solve(max_iterations=1)
    assert not plan.converged.any()


# --- Replanning at each interval ---


def test_replanning_over_the_whole_horizon_follows_the_plan():
    """In float32, as in a roll-out, from a start that needs foresight."""
    plan, (state, control, params) = constrained(), four_starts()
    initial = evaluate.start_states(evaluate.Starts(state[:1], control[:1], np.zeros(1, bool)))
    controller = oracle.receding_horizon(params, HORIZON)
    keys, memory = jax.random.split(jax.random.key(0), 1), jnp.zeros((1, HORIZON, 2))
    run = jax.jit(lambda: rollout(PolyCSTR(), params, controller, memory, initial, keys, 12))
    trajectory = jax.device_get(run())
    assert trajectory.cost.sum() == 0.0
    expected = plan.state[0, :12]
    np.testing.assert_allclose(trajectory.state[:, 0, 4], expected[:, 4], atol=0.3)
    np.testing.assert_allclose(trajectory.state[:, 0, 3], expected[:, 3], atol=0.5)


def test_a_noisy_measurement_below_zero_does_not_stop_replanning():
    """Start-up begins without initiator, radicals and polymer."""
    params = scenario_params("startup")
    obs = jnp.asarray([440.0, 0.0, 0.0, 0.0, 350.0, 100.0, 0.0, 1.0, 345.0])
    noise = jnp.asarray([0.0, -0.04, -0.006, -0.4, 0.0, 0.4, 0.0, 0.0, 0.0])
    controller = jax.jit(oracle.receding_horizon(params, 2))
    actions = [controller(x, jnp.zeros((2, 2)))[0] for x in (obs, obs + noise)]
    np.testing.assert_allclose(*actions, atol=1e-6)
    assert jnp.abs(actions[0]).max() > 0.5
    for limit in (340.0, 700.0):
        with pytest.raises(ValueError, match=f"limit = {limit} K; allowed"):
            oracle.receding_horizon(params.replace(temperature_limit=limit), 2)


def test_a_replanned_plan_moves_on_by_an_interval(monkeypatch):
    seen = {}

    def optimise(state, controls, guess, params, limit, max_iterations, plan):
        seen.update(state=state, controls=controls, limit=limit, plan=plan)
        seen["setpoints"] = params.polymer_setpoint, params.temperature_setpoint
        return oracle.Plan(plan + 0.1, *[None] * 6)

    monkeypatch.setattr(oracle, "optimise", optimise)
    state, control, params = four_starts()
    start = evaluate.start_states(evaluate.Starts(state[:1], control[:1], np.zeros(1, bool)))
    goal = params.replace(polymer_setpoint=80.0, temperature_setpoint=351.0)
    obs = PolyCSTR().observation(jax.tree.map(lambda x: x[0], start), jnp.zeros((7,)), goal)
    plan = jnp.asarray([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    action, memory = oracle.receding_horizon(params, 3)(obs, plan)
    np.testing.assert_allclose(action, [0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(memory, [[0.4, 0.5], [0.6, 0.7], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(seen["state"], state[0], rtol=1e-6)
    np.testing.assert_allclose(seen["controls"], control[0], rtol=1e-6)
    np.testing.assert_allclose(seen["setpoints"], [80.0, 351.0], rtol=1e-6)  # what obs shows
    assert seen["limit"] == 356.0


# --- Bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon = 0; allowed: an integer, 1 or more"),
        ({"horizon": 2.5}, "horizon = 2.5; allowed: an integer"),
        ({"limit": 350.0}, r"limit = 350.0 K; allowed: above the set-point of 350.0 K"),
        ({"limit": 600.0}, "limit = 600.0 K; allowed: .* below 600 K"),
        ({"limit": np.nan}, "limit = nan K"),
        ({"horizon": 3, "guesses": np.zeros((1, 2, 2))}, r"guesses have shape \(1, 2, 2\)"),
        ({"states": np.zeros((1, 4))}, r"shapes \(1, 4\) and \(1, 2\); allowed"),
    ],
)
def test_bad_input_is_named(changes, message, unchecked):
    state, control, params = of_scenario("grade_up", "nominal", 0)
    given = {"states": state, "controls": control} | changes
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("error")
        oracle.solve(given.pop("states"), given.pop("controls"), params, **given)
    if "horizon" in changes and "guesses" not in changes:
        with pytest.raises(ValueError, match=message):
            oracle.receding_horizon(params, changes["horizon"])


def test_the_open_loop_step_arrives_at_the_steady_inputs():
    _, control, params = of_scenario("grade_up", "nominal", 0)
    step = oracle.step_to_setpoint(control[0], params, 50)
    arrived = control[0] + step.sum(axis=0) * params.max_increment
    np.testing.assert_allclose(
        arrived, [1.788, 339.90], atol=5e-3
    )  # the published plant at 100 kg/m3 and 350 K
    assert np.abs(step).max() <= 1.0 + 1e-12 and (step[-1] == 0.0).all()
