"""How far a discretized state space model is from the exact solution, and where Euler's rule turns unstable."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax.init.diagonal import diagonal_modes
from ssmjax.ops import discretize, linear_scan

__all__ = ["RULES", "errors", "order_text", "stability"]

RULES = ("euler", "bilinear", "zoh", "impulse")

_TIME = 4.0
_FREQUENCIES, _AMPLITUDES = np.array([0.7, 2.1, 4.4]), np.array([1.0, 0.5, 0.25])
_FLOOR = 2e-5  # below it float32 shows, in which an A_bar is rounded once and raised to the power 2,000, and no order


def errors(modes: int = 4, steps: tuple[float, ...] = tuple(2.0**-k for k in range(9, 0, -1))) -> dict[str, Any]:
    """The relative error of `y = sum Re x` for S4D-Lin's modes, -1/2 + i pi k, from rest, as dt grows.

    Args:
        modes: How many modes.
        steps: The step sizes dt.

    Returns:
        For the inputs "held" (white noise, held over each step) and "smooth" (a sum of sines, read in the middle of
        each step): `dt`, and `error` by rule, the root mean square over time, over that of the exact solution.
    """
    A = np.conj(diagonal_modes("lin", 2 * modes)[0])
    found: dict[str, Any] = {}
    for kind in ("held", "smooth"):
        by_rule: dict[str, list[float]] = {rule: [] for rule in RULES}
        for dt in steps:
            u, exact = _problem(A, dt, kind)
            for rule in RULES:
                error = np.sqrt(np.mean((_run(A, dt, u, rule) - exact) ** 2) / np.mean(exact**2))
                by_rule[rule].append(float(min(error, 1e30)))
        found[kind] = {"dt": list(steps), "error": by_rule}
    return found


def order_text(found: dict[str, Any], rule: str) -> str:
    """How a table shows the order of a rule, of one kind of input in the result of `errors`.

    That is the slope of log error against log dt over the smallest steps.

    >>> steps = [0.1, 0.2, 0.4]
    >>> found = {"dt": steps, "error": {"bilinear": [dt**2 for dt in steps], "zoh": [1e-6, 1e-6, 1e-7]}}
    >>> order_text(found, "bilinear"), order_text(found, "zoh")
    ('2.0', 'exact')
    """
    error = found["error"][rule]
    if max(error) < _FLOOR:
        return "exact"
    order = _order(found["dt"], error)
    return "none" if order is None else f"{order:.1f}"


def stability(modes: int = 8, length: int = 4096) -> dict[str, Any]:
    """Where Euler's rule turns unstable, mode by mode, and the largest |A_bar| of each rule as dt grows.

    Args:
        modes: How many of S4D-Lin's modes.
        length: The steps that the recurrence is run for; one that grows is unstable.

    Returns:
        `imag`, the modes' imaginary parts; `predicted`, the bound dt = -2 Re A / |A|^2, where |1 + dt A| = 1;
        `measured`, where the recurrence begins to grow, by bisection; `dt` and `radius`, the largest |A_bar| by rule.
    """
    A = np.conj(diagonal_modes("lin", 2 * modes)[0])
    predicted = -2 * A.real / np.abs(A) ** 2
    low, high = np.zeros(modes), 4 * predicted
    for _ in range(20):
        middle = (low + high) / 2
        grows = _grows(A, middle, length)
        low, high = np.where(grows, low, middle), np.where(grows, middle, high)
    steps = np.logspace(-4, 1, 51)
    radius = {}
    for rule in RULES:
        A_bar, _ = discretize(jnp.asarray(A, jnp.complex64)[None], jnp.asarray(steps, jnp.float32)[:, None], rule)
        radius[rule] = np.abs(np.asarray(A_bar)).max(1).tolist()
    return {
        "imag": A.imag.tolist(),
        "predicted": predicted.tolist(),
        "measured": ((low + high) / 2).tolist(),
        "dt": steps.tolist(),
        "radius": radius,
    }


def _problem(A: np.ndarray, dt: float, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The input of each step, and the exact output at its end."""
    count = round(_TIME / dt)
    ends = dt * np.arange(1, count + 1)
    if kind == "held":
        u = np.random.default_rng(0).standard_normal(count)
        x, outputs = np.zeros(len(A), complex), []
        for value in u:
            x = np.exp(dt * A) * x + np.expm1(dt * A) / A * value
            outputs.append(x.real.sum())
        return u, np.array(outputs)
    waves = 1j * np.concatenate([_FREQUENCIES, -_FREQUENCIES])
    weights = np.concatenate([_AMPLITUDES, -_AMPLITUDES]) / 2j  # sin(w t) = (exp(i w t) - exp(-i w t)) / 2i
    u = (weights * np.exp((ends - dt / 2)[:, None] * waves)).sum(1).real
    # The integral of exp(A (t - s)) exp(w s) over s from 0 to t.
    response = (np.exp(ends[:, None, None] * waves[:, None]) - np.exp(ends[:, None, None] * A)) / (waves[:, None] - A)
    return u, np.einsum("w,twn->t", weights, response).real


def _run(A: np.ndarray, dt: float, u: np.ndarray, rule: str) -> np.ndarray:
    """The output of the recurrence under a rule, in the library's own arithmetic."""
    A_bar, gain = discretize(jnp.asarray(A, jnp.complex64), jnp.full(A.shape, dt, jnp.float32), rule)
    inputs = gain[None, None] * jnp.asarray(u, jnp.complex64)[None, :, None]
    states = _scan(A_bar, inputs)
    return np.nan_to_num(np.asarray(states[0].real.sum(-1), np.float64), nan=1e30, posinf=1e30, neginf=-1e30)


@jax.jit
def _scan(A_bar: jax.Array, inputs: jax.Array) -> jax.Array:
    return linear_scan(jnp.broadcast_to(A_bar[None, None], inputs.shape), inputs)


def _grows(A: np.ndarray, dt: np.ndarray, length: int) -> np.ndarray:
    """Whether the answer to an impulse grows under Euler's rule, for each mode at its own step."""
    A_bar, _ = discretize(jnp.asarray(A, jnp.complex64), jnp.asarray(dt, jnp.float32), "euler")
    impulse = jnp.zeros((1, length, len(A)), jnp.complex64).at[:, 0].set(1.0)
    size = np.abs(np.asarray(_scan(A_bar, impulse)[0]))
    return ~(size[-1] < size[0])  # not a number counts as grown


def _order(steps: list[float], found: list[float]) -> float | None:
    """The median slope over the four smallest steps whose error is neither rounding nor of the solution's own size."""
    pairs = [(dt, error) for dt, error in zip(steps, found, strict=True) if _FLOOR < error < 0.5][:4]
    if len(pairs) < 2:
        return None
    dt, error = np.log(np.array(pairs)).T
    return float(np.median(np.diff(error) / np.diff(dt)))
