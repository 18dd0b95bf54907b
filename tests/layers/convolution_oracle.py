"""S4, S4D and DSS as loops over time in float64 numpy, straight from the equations; nothing shared with the library.

Each is `x_t = A x_(t-1) + B u_t`, `y_t = Re C x_t + D u_t` for every feature, with a dense A (h m m).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.layers import quick
from tests.layers.oracle import parameters


def lively(make, seed=1):
    """A layer with random numbers in every parameter, in the range of trained ones; `make` is only traced."""
    definition, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        noise, name = rng.standard_normal(spec.shape), jax.tree_util.keystr(path)
        if "dt" in name:
            noise = np.log(0.2) + 0.5 * noise
        elif "A_real" in name or "neg_re" in name:
            noise = np.log(0.3) + 0.5 * noise
        elif "Lambda'" in name:
            noise = np.stack([-0.5 - 0.3 * abs(noise[..., 0]), 3 * abs(noise[..., 1])], axis=-1)
        elif "A_imag" in name or "Lambda_im" in name:
            noise = 3 * abs(noise)
        elif "P'" in name:
            noise = 0.5 * noise
        return jnp.asarray(noise, spec.dtype)

    return nnx.merge(definition, jax.tree_util.tree_map_with_path(draw, state))


def call(layer, u, *, mask=None, state=None, **options):
    """Calls a layer under `jit`."""
    definition, parameters = nnx.split(layer)

    def run(parameters, u, mask, state):
        return nnx.merge(definition, parameters)(u, mask=mask, state=state, **options)

    return quick.jit(run)(parameters, u, mask, state)


def taps(kernel, length):
    """Calls a kernel under `jit`."""
    definition, parameters = nnx.split(kernel)
    return quick.jit(lambda parameters: nnx.merge(definition, parameters)(length))(parameters)


def numbers(pairs):
    return pairs[..., 0] + 1j * pairs[..., 1]


def transition(A, dt, rule, nominal):
    """A_bar and the gain of B, elementwise."""
    x = dt * A
    if rule == "bilinear":
        return (1 + x / 2) / (1 - x / 2), dt / (1 - x / 2)
    if rule == "euler":
        return 1 + x, dt
    held = (np.exp(nominal * A) - 1) / A
    gain = {"zoh": (np.exp(x) - 1) / A, "impulse": dt, "dirac": np.ones_like(x), "async": held}[rule]
    return np.exp(x), gain


def diagonal(A_bar, B_bar, C):
    return np.einsum("hn,nm->hnm", A_bar, np.eye(A_bar.shape[-1])), B_bar, C


def s4d(layer, rate=1.0, rule="zoh", conj_sym=True):
    """With exponential transforms of dt and Re A."""
    p = {name.removeprefix("kernel."): x for name, x in parameters(layer).items()}
    h = p["inv_dt"].shape[0]
    copy = np.arange(h) % p["A_real"].shape[0]
    real = "A_imag" not in p
    A = (-np.exp(p["A_real"]) - (0 if real else 1j * p["A_imag"]))[copy]
    B, C = (p[name] if real else numbers(p[name]) for name in ("B", "C"))
    nominal = np.exp(p["inv_dt"])
    A_bar, gain = transition(A, rate * nominal, rule, nominal)
    return diagonal(A_bar, gain * B[0, copy], (2 if conj_sym else 1) * C)


def s4(layer, rate=1.0, conj_sym=True):
    """With exponential transforms; C from the stored C~."""
    p = {name.removeprefix("kernel."): x for name, x in parameters(layer).items()}
    h = p["inv_dt"].shape[0]
    copy = np.arange(h) % p["A_real"].shape[0]
    A = (-np.exp(p["A_real"]) - 1j * p["A_imag"])[copy]
    P, B, C = numbers(p["P"])[:, copy], numbers(p["B"])[0, copy], numbers(p["C"])
    if conj_sym:
        A, P, B, C = (np.concatenate([x, x.conj()], axis=-1) for x in (A, P, B, C))
    A = np.einsum("hn,nm->hnm", A, np.eye(A.shape[-1])) - np.einsum("rhn,rhm->hnm", P, P.conj())
    dt = rate * np.exp(p["inv_dt"])
    eye = np.eye(A.shape[-1])
    inverse = np.linalg.inv(eye - dt[..., None] / 2 * A)
    A_bar, B_bar = inverse @ (eye + dt[..., None] / 2 * A), (inverse @ (dt * B)[..., None])[..., 0]
    length = round(layer.kernel.l_kernel / rate)
    recovery = [np.linalg.inv(eye - np.linalg.matrix_power(a, length)) for a in A_bar]
    return A_bar, B_bar, np.einsum("chi,hij->chj", C, recovery)


def dss(layer, rate=1.0, length=None, rule=None):
    """The softmax over `length` steps, or a rule."""
    p = {name.removeprefix("kernel."): x for name, x in parameters(layer).items()}
    if "Lambda" in p:
        modes = np.minimum(p["Lambda"][:, 0], -1e-4) + 1j * p["Lambda"][:, 1]
    else:
        modes = -np.exp(p["Lambda_log_neg_re"]) + 1j * p.get("Lambda_im", np.exp(p.get("Lambda_log_im", 0)))
    dt = rate * np.exp(p["log_dt"]).reshape(len(p["log_dt"]), -1)
    x = dt[:, :1] * modes.real + 1j * dt[:, -1:] * modes.imag
    W = numbers(p["W"])
    if rule is None:
        gain = 1 / modes / np.exp(x[..., None] * np.arange(length)).sum(-1)
        return diagonal(np.exp(x), gain, W)
    A_bar, gain = transition(x, 1.0, rule, 1 / rate)
    return diagonal(A_bar, gain if rule == "dirac" else gain * x / modes, W)


def run(system, D, u, bidirectional="none"):
    """(b l h) to (b l c*h), without padding."""
    A, B, C = system
    u, D = np.asarray(u, np.float64), np.asarray(D, np.float64)

    def one_way(u, C):
        x, ys = np.zeros((u.shape[0], *B.shape), complex), []
        for t in range(u.shape[1]):
            x = np.einsum("hij,bhj->bhi", A, x) + B * u[:, t, :, None]
            ys.append(np.einsum("chi,bhi->bch", C, x).real)
        return np.stack(ys, axis=1)

    C, *backward = [C] if bidirectional == "none" else np.split(C, 2)
    y = one_way(u, C) + D * u[:, :, None]
    for C in backward:
        more = one_way(u[:, ::-1], C)[:, ::-1]
        y = y + (more if bidirectional == "inclusive" else np.pad(more[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0))))
    return y.reshape(*u.shape[:2], -1)


def masked(system, D, u, mask, bidirectional="none"):
    """Every row without its padding, put back in place; zeros at the padding."""
    y = np.zeros((*u.shape[:2], D.size))
    for row, real in enumerate(np.asarray(mask)):
        if real.any():
            y[row, real] = run(system, D, np.asarray(u)[row : row + 1, real], bidirectional)[0]
    return y


def close(ours, theirs, tolerance=1e-5):
    """Asserts that the largest error is at most `tolerance` of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    error = np.max(np.abs(ours - theirs), initial=0.0) / max(1e-6, np.max(np.abs(theirs), initial=0.0))
    assert error <= tolerance, f"relative error {error:.1e} > {tolerance:.0e}"
