"""The Rosenbrock methods keep what their papers promise: order, stability, accuracy."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from polycstr_jax.rosenbrock import (
    RODAS4,
    RODAS4P,
    RODAS5P,
    ROS3P,
    Rosenbrock,
    lu_factor,
    lu_solve,
)

pytestmark = pytest.mark.usefixtures("double")

ALL = [ROS3P, RODAS4, RODAS4P, RODAS5P]
L_STABLE = [RODAS4, RODAS4P, RODAS5P]


def name_of(tableau):
    return tableau.name


def kaps(t, y, args):
    """Autonomous, nonlinear, coupled; y = (exp(-2t), exp(-t)) solves it for any stiffness."""
    return jnp.stack([-4.0 * y[0] + 2.0 * y[1] ** 2, y[0] - y[1] - y[1] ** 2])


def kaps_solution(t):
    return np.stack([np.exp(-2.0 * t), np.exp(-t)], axis=-1)


def kaps_jacobian(t, y, args):
    return ((-4.0, 4.0 * y[1]), (1.0, -1.0 - 2.0 * y[1]))


def forced(t, y, args):
    """Non-autonomous: 1 / (1 + t^2), and Prothero and Robinson's forced decay onto sin(t)."""
    return jnp.stack([-2.0 * t * y[0] ** 2, -2.0 * (y[1] - jnp.sin(t)) + jnp.cos(t)])


def forced_solution(t):
    return np.stack([1.0 / (1.0 + t**2), np.sin(t)], axis=-1)


PROBLEMS = {
    "autonomous": (kaps, kaps_solution),
    "non-autonomous": (forced, forced_solution),
}


def solve(vector_field, solver, y0, t1, *, t0=0.0, dt0=None, controller=None, **kwargs):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solver,
        t0,
        t1,
        dt0,
        y0,
        stepsize_controller=controller or diffrax.ConstantStepSize(),
        max_steps=4096,
        **kwargs,
    )


def one_step(solver, vector_field, t, h, y0):
    term = diffrax.ODETerm(vector_field)
    return solver.step(term, t, t + h, y0, None, None, made_jump=False)[:2]


def slope(step_sizes, errors):
    return np.polyfit(np.log(step_sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tableau", ALL, ids=name_of)
def test_the_error_falls_with_the_order_of_the_method(tableau, problem):
    vector_field, solution = PROBLEMS[problem]
    solver = Rosenbrock(tableau, autonomous=problem == "autonomous")
    start, end = 0.5, 2.0
    run = jax.jit(
        lambda dt: solve(
            vector_field, solver, jnp.asarray(solution(start)), end, t0=start, dt0=dt
        ).ys[-1]
    )
    num_steps = np.array([16, 32, 64, 128])
    step_sizes = (end - start) / num_steps
    errors = [np.linalg.norm(run(h) - solution(end)) for h in step_sizes]
    assert slope(step_sizes, errors) == pytest.approx(tableau.order, abs=0.25)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tableau", ALL, ids=name_of)
def test_the_embedded_solution_is_one_order_lower(tableau, problem):
    vector_field, solution = PROBLEMS[problem]
    solver = Rosenbrock(tableau, autonomous=problem == "autonomous")
    y0 = jnp.asarray(solution(0.5))
    step_sizes = 0.02 / 2.0 ** np.arange(4)
    step = jax.jit(lambda h: one_step(solver, vector_field, 0.5, h, y0)[1])
    # A method of order p - 1 is wrong by O(h^p) after a single step.
    assert slope(step_sizes, [np.linalg.norm(step(h)) for h in step_sizes]) == pytest.approx(
        tableau.order, abs=0.25
    )


@pytest.mark.parametrize("tableau", ALL, ids=name_of)
def test_an_autonomous_problem_needs_no_time_derivative(tableau):
    y0 = jnp.asarray(kaps_solution(0.0))
    told = one_step(Rosenbrock(tableau, autonomous=True), kaps, 0.0, 0.1, y0)
    untold = one_step(Rosenbrock(tableau), kaps, 0.0, 0.1, y0)
    np.testing.assert_allclose(told, untold, rtol=1e-13, atol=1e-16)


def stability_function(tableau, z):
    return float(one_step(Rosenbrock(tableau), lambda t, y, args: z * y, 0.0, 1.0, 1.0)[0])


@pytest.mark.parametrize("tableau", L_STABLE, ids=name_of)
def test_rodas_forgets_infinitely_fast_modes_in_one_step(tableau):
    assert abs(stability_function(tableau, -1e8)) < 1e-6


def test_ros3p_does_not_forget_them():
    assert abs(stability_function(ROS3P, -1e8)) == pytest.approx(0.73, abs=0.005)


@pytest.mark.parametrize("tableau", ALL, ids=name_of)
def test_no_decay_is_amplified(tableau):
    rates = -np.logspace(-3, 8, 45)
    assert max(abs(stability_function(tableau, z)) for z in rates) < 1.0


@pytest.mark.parametrize("tableau", ALL, ids=name_of)
def test_a_given_jacobian_and_a_derived_one_give_the_same_step(tableau):
    y0 = jnp.asarray(kaps_solution(0.3))
    given = one_step(Rosenbrock(tableau, jacobian=kaps_jacobian), kaps, 0.3, 0.1, y0)
    derived = one_step(Rosenbrock(tableau), kaps, 0.3, 0.1, y0)
    np.testing.assert_allclose(given, derived, rtol=1e-12, atol=1e-15)


def test_the_state_may_be_any_pytree():
    def nested(t, y, args):
        fast, slow = kaps(t, jnp.stack([y["fast"], y["slow"][0][0, 0]]), args)
        return {"fast": fast, "slow": (slow[None, None],)}

    y0 = {"fast": jnp.asarray(1.0), "slow": (jnp.ones((1, 1)),)}
    end = solve(nested, Rosenbrock(), y0, 1.0, dt0=0.01).ys
    np.testing.assert_allclose(end["fast"], [np.exp(-2.0)], rtol=1e-8)
    np.testing.assert_allclose(end["slow"][0], [[[np.exp(-1.0)]]], rtol=1e-8)


def robertson(t, y, args):
    slow, medium, fast = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([-slow + medium, slow - medium - fast, fast])


def van_der_pol(t, y, args):
    return jnp.stack([y[1], 1e3 * ((1.0 - y[0] ** 2) * y[1]) - y[0]])


STIFF = {
    "robertson": (robertson, [1.0, 0.0, 0.0], 1e4, 1e-10),
    "van der pol": (van_der_pol, [2.0, 0.0], 1000.0, 1e-8),  # through one fast transition
}


@pytest.mark.parametrize("problem", STIFF)
@pytest.mark.parametrize("tableau", [RODAS4P, RODAS5P], ids=name_of)
def test_stiff_problems_agree_with_scipy_radau(tableau, problem):
    vector_field, y0, end, atol = STIFF[problem]
    reference = scipy.integrate.solve_ivp(
        jax.jit(lambda t, y: vector_field(t, y, None)),
        (0.0, end),
        y0,
        method="Radau",
        rtol=1e-9,
        atol=1e-13,
    ).y[:, -1]
    controller = diffrax.PIDController(rtol=1e-7, atol=atol)
    solution = solve(
        vector_field, Rosenbrock(tableau), jnp.asarray(y0), end, dt0=1e-5, controller=controller
    )
    np.testing.assert_allclose(solution.ys[-1], reference, rtol=1e-5)


def test_values_between_the_steps_are_accurate():
    times = np.linspace(0.0, 2.0, 41)
    solution = solve(
        kaps,
        Rosenbrock(),
        jnp.ones(2),
        2.0,
        dt0=0.01,
        controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
        saveat=diffrax.SaveAt(ts=times),
    )
    np.testing.assert_allclose(solution.ys, kaps_solution(times), rtol=1e-6)


def test_time_may_run_backwards():
    y1 = jnp.asarray(forced_solution(1.0))
    back = solve(lambda t, y, args: forced(t, y, args)[:1], Rosenbrock(), y1[:1], 0.0, t0=1.0,
                 dt0=-0.01)  # fmt: skip
    np.testing.assert_allclose(back.ys[-1], [1.0], rtol=1e-8)


def test_many_lanes_and_gradients_through_diffeqsolve():
    # y' = -k y^2 from y0 has y(1) = y0 / (1 + k y0), whose derivative by k is -y(1)^2.
    def decay(t, y, rate):
        return -rate * y**2

    def end(rate):
        controller = diffrax.PIDController(rtol=1e-9, atol=1e-9)
        return solve(decay, Rosenbrock(), 2.0, 1.0, dt0=0.1, controller=controller, args=rate).ys[0]

    rates = jnp.array([0.5, 1.0, 30.0])
    values, gradients = jax.vmap(jax.value_and_grad(end))(rates)
    exact = 2.0 / (1.0 + 2.0 * np.asarray(rates))
    np.testing.assert_allclose(values, exact, rtol=1e-7)
    np.testing.assert_allclose(gradients, -(exact**2), rtol=1e-6)


def test_large_systems_are_referred_to_another_solver():
    def decay(t, y, args):
        return -y

    solve(decay, Rosenbrock(ROS3P), jnp.ones(3), 1.0, dt0=0.5)
    with pytest.raises(ValueError, match=r"33 entries.*at most 32.*Kvaerno"):
        solve(decay, Rosenbrock(ROS3P), jnp.ones(33), 1.0, dt0=0.5)


@pytest.mark.parametrize("zeros", [0.0, 0.5], ids=["full", "sparse"])
def test_the_elimination_agrees_with_numpy(zeros):
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 8):
        matrix = rng.normal(size=(size, size)) * (rng.random((size, size)) >= zeros)
        matrix += 2.0 * size * np.eye(size)  # there is no pivoting
        rows = [[entry if entry != 0.0 else 0 for entry in row] for row in matrix.tolist()]
        right = rng.normal(size=size)
        x = lu_solve(lu_factor(rows), list(right))
        np.testing.assert_allclose(x, np.linalg.solve(matrix, right), rtol=1e-11)


def test_structural_zeros_cost_nothing():
    x = jax.ShapeDtypeStruct((), np.float64)

    def triangular(a, b, c):
        return lu_factor([[a, b, 0], [0, b, c], [0, 0, c]])

    operations = jax.make_jaxpr(triangular)(x, x, x).jaxpr.eqns
    assert {operation.primitive.name for operation in operations} <= {"div"}
