"""Rounding errors of the kernels of S4 and S4D, and of their gradients: `python -m benchmarks.kernel_error`.

The kernels are computed in float32 and compared with the recurrence `K_l = 2 Re C A_bar^l B_bar` in float64, which has
no other step in common with them; the gradients are those of `sum(K w)` with a random w. An error is relative to the
largest value of the same feature, and that of the worst feature is given. LegS, LegT and FouT are tried: the last two
are undamped before their low-rank part is taken off, so that poles lie on top of the nodes. Beside them S4's kernel in
the form that is usual, whose roots of unity are powers of a float32 number. Results go to
`benchmarks/results/kernel_error.json`. Five minutes on two cores.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.ops import stamp
from ssmjax import ops
from ssmjax.init import hippo
from ssmjax.layers.lti.state_space import INITIAL_LEAST
from ssmjax.paths import LocalPaths

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to compare.

    Attributes:
        lengths: Lengths of the kernels.
        states: Full state sizes N; all of them at the first length, and the last at every length.
        features: How many kernels, with step sizes from 1e-3 to 1.
        gradients: Whether to compare gradients too.
        out: Results file.
    """

    lengths: tuple[int, ...] = (1024, 4096, 16384)
    states: tuple[int, ...] = (4, 20, 64)
    features: int = 8
    gradients: bool = True
    out: pathlib.Path = pathlib.Path(__file__).parent / "results" / "kernel_error.json"


def main(config: Config) -> list[dict]:
    """Prints the table and writes the records; returns them."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)  # arrays keep their own dtypes: float32 stays float32
    try:
        tries = [(config.lengths[0], state) for state in config.states[:-1]]
        tries += [(length, config.states[-1]) for length in config.lengths]
        records = [r | stamp() for length, state in tries for r in _compare(length, state, config)]
    finally:
        jax.config.update("jax_enable_x64", before)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(records, indent=1) + "\n")
    print(f"\nWrote {config.out}")
    return records


def _compare(length: int, state: int, config: Config) -> list[dict]:
    """The records of one length, printed as they come."""
    systems = {name: _system(name, state, config.features) for name in ("LegS", "LegT", "FouT")}
    legs = systems["LegS"]
    A, dt = legs["A"], legs["dt"]
    diagonal = {"C": legs["C"] * ops.discretize(A, dt[:, None], "zoh")[1], "A": A, "dt": dt}
    cases = {f"dplr, {name}": (system, ops.dplr_kernel, _by_steps) for name, system in systems.items()}
    cases |= {
        "dplr, LegS, powers of a root of unity": (legs, _by_powers, _by_steps),
        "diagonal, LegS": (diagonal, _diagonal, functools.partial(_diagonal, implementation="reference")),
    }
    records = []
    for name, (named, kernel, exact) in cases.items():
        args = [np.asarray(v).astype(np.complex64 if np.iscomplexobj(v) else np.float32) for v in named.values()]
        w = np.random.default_rng(1).normal(size=(length, config.features))
        got, wanted = (
            _values(function, length, [v.astype(np.promote_types(v.dtype, least)) for v in args], w.astype(least))
            for function, least in ((kernel, np.float32), (exact, np.float64))
        )
        if not config.gradients:
            got, wanted = got[:1], wanted[:1]
        errors = [_error(a, b, config.features) for a, b in zip(got, wanted, strict=True)]
        of_gradients = {f"d{letter}": e for letter, e in zip(named, errors[1:], strict=False)}
        record = {"kernel": name, "l": length, "n": state, "h": config.features, "error": errors[0]}
        records.append(record | {"gradients": of_gradients})
        gradients = "  ".join(f"{name} {e:.1e}" for name, e in of_gradients.items())
        print(f"L = {length:6d}  N = {state:3d}  {name:40s} K {errors[0]:.1e}  {gradients}", flush=True)
    return records


def _system(measure: str, size: int, features: int) -> dict[str, np.ndarray]:
    """A, P, B (h n), C~ and dt in complex128; the real part of A as the layers begin with it."""
    rng = np.random.default_rng(0)
    modes = hippo.nplr(measure.lower(), size, clip=2.0)
    A = np.minimum(modes.A.real, -INITIAL_LEAST) + 1j * modes.A.imag
    A, P, B = (np.repeat(v[..., None, :], features, axis=-2) for v in (A, modes.P, modes.B))
    C = rng.normal(size=(2, features, size // 2))
    return {"A": A, "P": P, "B": B, "C": C[0] + 1j * C[1], "dt": np.geomspace(1e-3, 1, features)}


def _values(function: Callable, length: int, args: list[np.ndarray], w: np.ndarray) -> list[np.ndarray]:
    """The kernel, and the gradients of `sum(K w)`."""

    @jax.jit
    def run(args, w):
        def loss(args):
            K = function(*args, length=length)
            return jnp.sum(K * w), K

        gradients, K = jax.grad(loss, has_aux=True)(args)
        return [K, *gradients]

    return [np.asarray(v) for v in run([jnp.asarray(v) for v in args], jnp.asarray(w))]


def _diagonal(C, A, dt, length, implementation="xla"):
    return ops.vandermonde(C, A, length, dt=dt, implementation=implementation)


def _by_steps(A, P, B, C, dt, length):
    """The kernel (l h) by the recurrence with dense matrices; C is recovered from `C~ = C (1 - A_bar^length)`."""
    A_bar, B_bar = ops.dplr_matrices(A, P, B, dt)
    eye = jnp.eye(A_bar.shape[-1], dtype=A_bar.dtype)[None]
    power = jnp.linalg.matrix_power(A_bar, length)
    C = jnp.concatenate([C, C.conj()], axis=-1)
    C = jnp.linalg.solve(jnp.swapaxes(eye - power, -1, -2), C[..., None])[..., 0]

    def step(x, _):
        return jnp.einsum("hij,hj->hi", A_bar, x), jnp.einsum("hi,hi->h", C, x).real

    return jax.lax.scan(jax.checkpoint(step), B_bar, length=length)[1]


def _by_powers(A, P, B, C, dt, length):
    """The kernel (l h) with `omega^k` and `2 (1 - omega) / (1 + omega)` in the dtype of A."""
    omega = jnp.exp(jnp.asarray(-2j * np.pi / length, A.dtype)) ** jnp.arange(length // 2 + 1)
    z = (2 * (1 - omega) / (1 + omega))[None, None]
    poles = (dt[:, None] * A)[:, :, None]
    plus, minus = 1 / (z - poles), 1 / (z - poles.conj())

    def product(u, v):
        weight = dt[:, None] * u * v
        return jnp.einsum("hn,hnk->hk", weight, plus) + jnp.einsum("hn,hnk->hk", weight.conj(), minus)

    P = P[0]
    low_rank = product(C, P) * product(P.conj(), B) / (1 + product(P.conj(), P))
    return jnp.fft.irfft((product(C, B) - low_rank) * (2 / (1 + omega))[None], n=length).T


def _error(got: np.ndarray, wanted: np.ndarray, features: int) -> float:
    """The worst feature's; features are the last axis of a kernel and of dt, else the last but one."""
    axis = -1 if got.shape[-1] == features and got.ndim != 3 and not np.iscomplexobj(got) else -2
    others = tuple(i for i in range(got.ndim) if i != got.ndim + axis)
    return float(np.max(np.abs(got - wanted).max(others) / np.abs(wanted).max(others)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
