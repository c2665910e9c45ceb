"""Rosenbrock methods for diffrax: linearly implicit, adaptive, and made for `jax.vmap`.

A Rosenbrock step needs one Jacobian and one LU factorisation, and no Newton iteration, so
under `vmap` no lane waits for another's nonlinear solver. In the transformed form (Hairer and
Wanner, "Solving ODEs II", section IV.7), with W = I / (gamma h) - J,

    W U_i = f(t + alpha_i h, y + sum_j a_ij U_j) + (1/h) sum_j c_ij U_j + d_i h df/dt
    y1    = y + sum_i m_i U_i,        error = sum_i e_i U_i

The systems here are small (the reactor has 5 states), so the elimination is unrolled at trace
time over scalars: entries of the Jacobian that are the Python number 0 cost nothing. There is
no pivoting: for a small enough h, W is diagonally dominant, and a step on which the elimination
breaks down yields a wild candidate that the step-size control has to reject (scale its error
test by |y0|, not by max(|y0|, |y1|), which a wild y1 passes).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

MAX_UNROLLED_STATES = 32


class Tableau(NamedTuple):
    """Coefficients of a Rosenbrock method in the transformed form above.

    `a` and `c` hold row i's entries for j < i; `weights` is m, `error_weights` is e.
    """

    name: str
    order: int
    gamma: float
    a: tuple[tuple[float, ...], ...]
    c: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error_weights: tuple[float, ...]
    alpha: tuple[float, ...]
    d: tuple[float, ...]


def _stiffly_accurate(name, order, gamma, a, c, alpha, d) -> Tableau:
    """The RODAS family: the last stages add their predecessor to the argument, the last U is
    the error estimate, and the embedded solution is the argument of the last stage."""
    rows = [tuple(row) for row in a]
    while len(rows) < len(c):
        rows.append((*rows[-1], 1.0))
    num_stages = len(c)
    pad = num_stages - len(alpha)
    return Tableau(
        name=name,
        order=order,
        gamma=gamma,
        a=tuple(rows),
        c=tuple(tuple(row) for row in c),
        weights=(*rows[-1], 1.0),
        error_weights=(0.0,) * (num_stages - 1) + (1.0,),
        alpha=(*alpha, *(1.0,) * pad),
        d=(*d, *(0.0,) * (num_stages - len(d))),
    )


# Lang and Verwer (2001), BIT 41. |R(inf)| = 0.73: A-stable but not L-stable.
ROS3P = Tableau(
    name="ROS3P",
    order=3,
    gamma=0.7886751345948129,
    a=((), (1.267949192431123,), (1.267949192431123, 0.0)),
    c=((), (-1.607695154586736,), (-3.464101615137755, -1.732050807568877)),
    weights=(2.0, 0.5773502691896258, 0.4226497308103742),
    error_weights=(2.0 - 2.113248654051871, 0.5773502691896258 - 1.0, 0.0),
    alpha=(0.0, 1.0, 1.0),
    d=(0.7886751345948129, -0.2113248654051871, -1.077350269189626),
)

# Hairer and Wanner (1996), "Solving ODEs II", the coefficients of their code RODAS. L-stable.
RODAS4 = _stiffly_accurate(
    "RODAS4",
    order=4,
    gamma=0.25,
    a=(
        (),
        (1.544,),
        (0.9466785280815826, 0.2557011698983284),
        (3.314825187068521, 2.896124015972201, 0.9986419139977817),
        (1.221224509226641, 6.019134481288629, 12.53708332932087, -0.6878860361058950),
    ),
    c=(
        (),
        (-5.6688,),
        (-2.430093356833875, -0.2063599157091915),
        (-0.1073529058151375, -9.594562251023355, -20.47028614809616),
        (7.496443313967647, -10.24680431464352, -33.99990352819905, 11.70890893206160),
        (
            8.083246795921522,
            -7.981132988064893,
            -31.52159432874371,
            16.31930543123136,
            -6.058818238834054,
        ),
    ),
    alpha=(0.0, 0.386, 0.21, 0.63),
    d=(0.25, -0.1043, 0.1035, -0.0362),
)

# Steinebach (1995), TH Darmstadt preprint 1741: RODAS without order reduction on parabolic and
# on forced stiff problems. L-stable.
RODAS4P = _stiffly_accurate(
    "RODAS4P",
    order=4,
    gamma=0.25,
    a=(
        (),
        (3.0,),
        (1.831036793486759, 0.4955183967433795),
        (2.304376582692669, -0.05249275245743001, -1.176798761832782),
        (-7.170454962423024, -4.741636671481785, -16.31002631330971, -1.062004044111401),
    ),
    c=(
        (),
        (-12.0,),
        (-8.791795173947035, -2.207865586973518),
        (10.81793056857153, 6.780270611428266, 19.53485944642410),
        (34.19095006749676, 15.49671153725963, 54.74760875964130, 14.16005392148534),
        (
            34.62605830930532,
            15.30084976114473,
            56.99955578662667,
            18.40807009793095,
            -5.714285714285717,
        ),
    ),
    alpha=(0.0, 0.75, 0.21, 0.63),
    d=(0.25, -0.5, -0.023504, -0.0362),
)

# Steinebach (2023), BIT 63, 27. L-stable.
RODAS5P = _stiffly_accurate(
    "RODAS5P",
    order=5,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (
            -7.502846399306121,
            2.561846144803919,
            -11.627539656261098,
            -0.18268767659942256,
            0.030198172008377946,
        ),
    ),
    c=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072,
            -3.0009227002832186,
            47.4931110020768,
            5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    ),
    alpha=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664),
    d=(
        0.21193756319429014,
        -0.42387512638858027,
        -0.3384627126235924,
        1.8046452872882734,
        2.325825639765069,
    ),
)


def _is_zero(entry) -> bool:
    """Whether a matrix entry is structurally zero (a Python number, not a traced value)."""
    return isinstance(entry, int | float) and entry == 0


def lu_factor(matrix: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """LU factors of a matrix of scalars, unrolled, without pivoting, skipping structural zeros.

    Returns L (below the unit diagonal) and U in one matrix. It divides where multiplying by
    reciprocals looks cheaper: XLA's CPU backend repeats cheap producers in each kernel that
    consumes them, so a chain of multiplications and additions is computed ten times over, but it
    never repeats a division. With divisions in `lu_factor` and `lu_solve` a step of the reactor
    is four times faster.
    """
    size = len(matrix)
    rows = [list(row) for row in matrix]
    for k in range(size):
        for i in range(k + 1, size):
            if _is_zero(rows[i][k]):
                continue
            factor = rows[i][k] / rows[k][k]
            rows[i][k] = factor
            for j in range(k + 1, size):
                if not _is_zero(rows[k][j]):
                    rows[i][j] = rows[i][j] - factor * rows[k][j]
    return rows


def lu_solve(rows: list[list[Any]], right_hand_side: Sequence[Any]) -> list[Any]:
    """Solve L U x = b with the factors of `lu_factor`."""
    size = len(rows)
    x = list(right_hand_side)
    for i in range(size):
        for j in range(i):
            if not _is_zero(rows[i][j]):
                x[i] = x[i] - rows[i][j] * x[j]
    for i in reversed(range(size)):
        for j in range(i + 1, size):
            if not _is_zero(rows[i][j]):
                x[i] = x[i] - rows[i][j] * x[j]
        x[i] = x[i] / rows[i][i]
    return x


def _combine(coefficients, stages, n):
    """sum_j coefficients[j] * stages[j][n], without the terms whose coefficient is zero."""
    terms = [
        stage[n] if coefficient == 1.0 else coefficient * stage[n]
        for coefficient, stage in zip(coefficients, stages, strict=False)
        if coefficient != 0.0
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class Rosenbrock(diffrax.AbstractAdaptiveSolver):
    """A Rosenbrock method as a diffrax solver; `diffeqsolve(terms, Rosenbrock(), ...)` works.

    Arguments:

    - `tableau`: the method; RODAS4P by default (L-stable, order 4, embedded order 3).
    - `jacobian`: optional `(t, y, args) -> rows`, the Jacobian of the vector field as nested
      sequences of scalars in the order of y's flattened entries; a structural zero is the
      Python number 0. Without it, forward-mode differentiation is used.
    - `autonomous`: whether the vector field ignores t; False adds the df/dt terms.

    Raises `ValueError` at trace time if y has more than 32 entries: the unrolled elimination
    is for small systems.
    """

    tableau: Tableau = eqx.field(static=True, default=RODAS4P)
    jacobian: Callable | None = eqx.field(static=True, default=None)
    autonomous: bool = eqx.field(static=True, default=False)

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def order(self, terms):
        return self.tableau.order

    def init(self, terms, t0, t1, y0, args):
        return None

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        tableau = self.tableau
        # Backwards in time diffrax negates t and not h, so the two are kept apart.
        h, dt = terms.contr(t0, t1), t1 - t0
        y, rebuild = _to_scalars(y0)
        size = len(y)

        def f(t, scalars):
            return _to_scalars(terms.vf(t, rebuild(scalars), args))[0]

        f0 = f(t0, y)
        if self.jacobian is None:
            columns = [jax.jvp(lambda z: f(t0, z), (y,), (_basis(y, j),))[1] for j in range(size)]
            jacobian = [[columns[j][i] for j in range(size)] for i in range(size)]
        else:
            jacobian = self.jacobian(t0, y0, args)
        if self.autonomous:
            f_t = None
        else:
            time = jnp.asarray(t0, jnp.result_type(float, t0))
            f_t = jax.jvp(lambda t: f(t, y), (time,), (jnp.ones_like(time),))[1]

        # A lane that has arrived takes steps of length 0 under vmap: no infinity to differentiate.
        inverse_h = 1.0 / jnp.where(h == 0.0, 1e-20, h)
        diagonal = inverse_h * (1.0 / tableau.gamma)
        w = [
            [0 if _is_zero(entry) else -entry for entry in row[:i]]
            + [diagonal - row[i]]
            + [0 if _is_zero(entry) else -entry for entry in row[i + 1 :]]
            for i, row in enumerate(jacobian)
        ]
        factors = lu_factor(w)

        stages: list[list[Any]] = []
        slope, slope_at = f0, None
        for a, c, alpha, d in zip(tableau.a, tableau.c, tableau.alpha, tableau.d, strict=True):
            nonzero = tuple((j, a_j) for j, a_j in enumerate(a) if a_j != 0.0)
            if nonzero and (nonzero, alpha) != slope_at:  # else: the previous stage's argument
                argument = tuple(y[n] + _combine(a, stages, n) for n in range(size))
                slope = f(t0 + alpha * dt, argument)
                slope_at = (nonzero, alpha)
            rhs = list(slope)
            if stages:
                rhs = [r + inverse_h * _combine(c, stages, n) for n, r in enumerate(rhs)]
            if f_t is not None and d != 0.0:
                rhs = [r + (d * dt) * f_t[n] for n, r in enumerate(rhs)]
            stages.append(lu_solve(factors, rhs))

        y1 = tuple(y[n] + _combine(tableau.weights, stages, n) for n in range(size))
        error = tuple(_combine(tableau.error_weights, stages, n) for n in range(size))
        f1 = f(t1, y1)
        dense_info = dict(
            y0=y0,
            y1=rebuild(y1),
            k0=rebuild(tuple(h * s for s in f0)),
            k1=rebuild(tuple(h * s for s in f1)),
        )
        return rebuild(y1), rebuild(error), dense_info, None, diffrax.RESULTS.successful


def _to_scalars(tree):
    """A pytree's entries as a flat tuple of scalars, and the function that puts them back."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    size = sum(leaf.size for leaf in leaves)
    if size > MAX_UNROLLED_STATES:
        raise ValueError(
            f"y has {size} entries, but Rosenbrock unrolls its linear algebra and takes at most "
            f"{MAX_UNROLLED_STATES}: use diffrax.Kvaerno3 or Kvaerno5 for larger systems."
        )
    scalars = tuple(
        leaf if leaf.ndim == 0 else leaf[index] for leaf in leaves for index in _indices(leaf)
    )

    def rebuild(values):
        values = list(values)
        rebuilt = []
        for leaf in leaves:
            taken, values = values[: leaf.size], values[leaf.size :]
            rebuilt.append(taken[0] if leaf.ndim == 0 else jnp.stack(taken).reshape(leaf.shape))
        return jax.tree.unflatten(structure, rebuilt)

    return scalars, rebuild


def _indices(leaf):
    return [()] if leaf.ndim == 0 else list(np.ndindex(leaf.shape))


def _basis(y, j):
    return tuple(jnp.ones_like(v) if i == j else jnp.zeros_like(v) for i, v in enumerate(y))
