"""Initial state spaces of S4, S4D and S5, in float64 on the host, and of the LRU.

Modes are given with negative imaginary parts, one of each conjugate pair, as the eigenvalues of `hippo.nplr` are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.init.hippo import MEASURES, NPLR, normal_modes, nplr
from ssmjax.shapes import PRNGKey

__all__ = [
    "DIAGONALS",
    "INPUTS",
    "MIXTURES",
    "StateSpace",
    "block_diagonal_legs",
    "diagonal_modes",
    "input_vector",
    "lru_ring",
    "state_space",
]

DIAGONALS = ("lin", "inv", "inv2", "quad", "legs", "real", "rand")
INPUTS = ("constant", "random", "alternating", "unit-cw", "unit-ccw")
MIXTURES = {
    "diag": ("diag-inv", "diag-lin"),
    "hippo": ("legs", "fout"),
    "all": ("legs", "fout", "diag-inv", "diag-lin"),
}
"""Initializations whose copies start from different ones, in equal shares."""


class StateSpace(NamedTuple):
    """Independent copies of a diagonal plus low-rank system, diag(A) - sum_r P_r P_r*.

    Attributes:
        A: Diagonal, (h n) complex.
        P: Low-rank part, (r h n) complex; zero for a diagonal initialization.
        B: Input vector, (h n) complex.
    """

    A: np.ndarray
    P: np.ndarray
    B: np.ndarray


def diagonal_modes(
    name: str,
    size: int,
    *,
    copies: int = 1,
    real_scale: float = 1.0,
    imag_scale: float = 1.0,
    real_random: bool = False,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The diagonals of S4D by name, `A_k = -re_k - i im_k` for `k < n = size / 2`.

        lin    im_k = pi k                             S4D-Lin
        inv    im_k = N / pi (N / (2k + 1) - 1)        S4D-Inv
        inv2   im_k = N / pi (N / (k + 1) - 1)
        quad   im_k = (2k + 1)^2 / pi
        legs   the imaginary parts of HiPPO-LegS       S4D-LegS
        rand   im_k = exp(a standard normal)
        real   im_k = 0, re_k = k + 1                  S4D-Real

    with `re_k = 1/2` but for the last: section 4 of S4D (https://arxiv.org/abs/2206.11893).

    Args:
        name: One of those.
        size: The state size N, even.
        copies: How many independent copies h.
        real_scale: A factor on the real parts.
        imag_scale: A factor on the imaginary parts.
        real_random: Draws the real parts `re_k` uniformly from [0, 1), for "real" from [0, n).
        rng: Source of randomness, for "rand" and `real_random`.

    Returns:
        A, (h n) complex128.

    Raises:
        ValueError: The name is unknown, the size is odd, or `rng` is missing.

    >>> diagonal_modes("lin", 4).round(3).tolist()
    [[(-0.5+0j), (-0.5-3.142j)]]
    """
    errors.require_known("diagonal initialization", name, DIAGONALS)
    n = _modes(size)
    k = np.arange(n)
    if name == "legs":
        imag = -nplr("legs", size).A.imag
    elif name == "rand":
        imag = np.exp(_required(rng, "'rand'").standard_normal((copies, n)))
    else:
        imag = {
            "lin": np.pi * k,
            "inv": size / np.pi * (size / (2 * k + 1) - 1),
            "inv2": size / np.pi * (size / (k + 1) - 1),
            "quad": (2 * k + 1) ** 2 / np.pi,
            "real": 0.0 * k,
        }[name]
    if real_random:
        real = _required(rng, "real_random").random((copies, n)) * (n if name == "real" else 1)
    else:
        real = k + 1.0 if name == "real" else np.full(n, 0.5)
    return np.broadcast_to(-real_scale * real - 1j * imag_scale * imag, (copies, n)).copy()


def input_vector(name: str, size: int, *, copies: int = 1, rng: np.random.Generator | None = None) -> np.ndarray:
    """Input vectors of a diagonal initialization, by name.

    Args:
        name: "constant" (ones), "random" (complex standard normal), "alternating" (1, -1, 1, ...), or "unit-cw" and
            "unit-ccw" (powers of exp(-2 pi i / N) and of exp(2 pi i / N)).
        size: The state size N, even.
        copies: How many independent copies h.
        rng: Source of randomness, for "random".

    Returns:
        B, (h n) complex128.

    Raises:
        ValueError: The name is unknown, the size is odd, or `rng` is missing.

    >>> input_vector("alternating", 6).real.tolist()
    [[1.0, -1.0, 1.0]]
    """
    errors.require_known("input vector", name, INPUTS)
    n = _modes(size)
    if name == "random":
        re, im = _required(rng, "'random'").standard_normal((2, copies, n)) / np.sqrt(2)
        return re + 1j * im
    base = {"constant": 1, "alternating": -1}.get(name) or np.exp((-2j if name == "unit-cw" else 2j) * np.pi / size)
    return np.broadcast_to(np.asarray(base, complex) ** np.arange(n), (copies, n)).copy()


def state_space(
    name: str,
    size: int,
    *,
    copies: int = 1,
    rank: int = 1,
    B: str = "constant",
    clip: float | None = 2.0,
    real_scale: float = 1.0,
    imag_scale: float = 1.0,
    real_random: bool = False,
    rng: np.random.Generator | None = None,
) -> StateSpace:
    """An initialization of S4 or S4D by the name that the S4 papers' configurations use.

    Args:
        name: A HiPPO measure "legs", "legt" or "fout"; "diag-X" with a diagonal X of `diagonal_modes` and no low-rank
            part; "dplr-X" with a random low-rank part (that of HiPPO for X = "legs"); or a mixture, "diag" (inv, lin),
            "hippo" (legs, fout), "all" (these four), of which every copy takes one, in equal shares.
        size: The state size N, even.
        copies: How many independent copies h; a multiple of the mixture's parts.
        rank: The rank of the low-rank part, r.
        B: The input vector of a diagonal initialization; see `input_vector`. HiPPO and "legs" have their own.
        clip: See `hippo.nplr`; by default 2, as published S4 checkpoints were made.
        real_scale: See `diagonal_modes`; not for HiPPO measures.
        imag_scale: See `diagonal_modes`; not for HiPPO measures.
        real_random: See `diagonal_modes`; not for HiPPO measures.
        rng: Source of randomness, where any is asked for.

    Returns:
        The copies; see `StateSpace`.

    Raises:
        ValueError: The name is unknown, the size is odd, the copies do not divide evenly, or `rng` is missing.

    >>> state_space("hippo", 8, copies=4).A.shape
    (4, 4)
    """
    if parts := MIXTURES.get(name):
        if copies % len(parts):
            raise errors.bad_argument("state_space", "copies", copies, f"a multiple of {len(parts)} for {name!r}")
        options = {"rank": rank, "B": B, "clip": clip, "real_scale": real_scale, "imag_scale": imag_scale}
        options |= {"real_random": real_random, "rng": rng, "copies": copies // len(parts)}
        A, P, vectors = zip(*(state_space(part, size, **options) for part in parts), strict=True)
        return StateSpace(np.concatenate(A), np.concatenate(P, axis=1), np.concatenate(vectors))
    if name in MEASURES:
        return _copies(nplr(name, size, rank=rank, clip=clip), copies)
    form, _, diagonal = name.partition("-")
    if form not in ("diag", "dplr") or diagonal not in DIAGONALS:
        known = [*MEASURES, *MIXTURES, *(f"{form}-{d}" for form in ("diag", "dplr") for d in DIAGONALS)]
        raise errors.unknown_name("initialization", name, known)
    scales = {"real_scale": real_scale, "imag_scale": imag_scale, "real_random": real_random, "rng": rng}
    A = diagonal_modes(diagonal, size, copies=copies, **scales)
    hippo = _copies(nplr("legs", size, rank=rank, clip=clip), copies) if diagonal == "legs" else None
    vector = input_vector(B, size, copies=copies, rng=rng) if hippo is None else hippo.B
    if form == "diag":
        P = np.zeros((rank, *A.shape), complex)
    elif hippo is not None:
        P = hippo.P
    else:
        re, im = _required(rng, f"'{name}'").standard_normal((2, rank, *A.shape)) / np.sqrt(2)
        P = re + 1j * im
    return StateSpace(A, P, vector)


def block_diagonal_legs(size: int, blocks: int, *, conj_sym: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S5's initialization: the normal part of HiPPO-LegS in `blocks` equal blocks, diagonalized.

    Appendix B.1 of S5 (https://arxiv.org/abs/2208.04933). Nothing is clipped.

    Args:
        size: The state size p, a multiple of `blocks`.
        blocks: How many blocks.
        conj_sym: Keeps one mode of each conjugate pair: half of every block, whose size must be even.

    Returns:
        A, (p' ) complex128 with p' = p / 2 under `conj_sym`, else p; V, (p p'), whose columns are the eigenvectors; and
        V*, (p' p), its (left) inverse.

    Raises:
        ValueError: The sizes do not divide.

    >>> A, V, V_inverse = block_diagonal_legs(8, 2)
    >>> A.shape, V.shape, bool(abs(V_inverse @ V - np.eye(4)).max() < 1e-12)
    ((4,), (8, 4), True)
    """
    unit = 2 * blocks if conj_sym else blocks
    if blocks < 1 or size < 1 or size % unit:
        wanted = f"a multiple of {unit}, {'twice ' if conj_sym else ''}the number of blocks"
        raise errors.bad_argument("block_diagonal_legs", "size", size, wanted)
    A, V = normal_modes("legs", size // blocks)
    if conj_sym:
        A, V = A[: len(A) // 2], V[:, : len(A) // 2]
    return np.tile(A, blocks), np.kron(np.eye(blocks), V), np.kron(np.eye(blocks), V.conj().T)


def lru_ring(
    modes: int, *, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * np.pi, key: PRNGKey
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The LRU's initialization: eigenvalues uniform on a ring in the complex plane.

    With `lambda = exp(-exp(nu_log) + i exp(theta_log))`, |lambda|^2 is uniform in [r_min^2, r_max^2] and the phase in
    [0, max_phase]; `exp(gamma_log) = sqrt(1 - |lambda|^2)` normalizes the input. Lemma 3.2 and section 3.4 of
    https://arxiv.org/abs/2303.06349.

    Args:
        modes: How many.
        r_min: Inner radius.
        r_max: Outer radius, at most 1.
        max_phase: Largest phase, in radians.
        key: Source of randomness. Drawn in JAX, since layers are built under `jax.vmap`.

    Returns:
        nu_log, theta_log and gamma_log, each (modes) float32.

    Raises:
        ValueError: The radii are not 0 <= r_min < r_max <= 1.

    >>> nu_log, _, gamma_log = lru_ring(100, r_min=0.9, r_max=0.99, key=jax.random.key(0))
    >>> radius = jnp.exp(-jnp.exp(nu_log))
    >>> bool(radius.min() > 0.9 and radius.max() < 0.99 and jnp.allclose(jnp.exp(2 * gamma_log), 1 - radius**2))
    True
    """
    for name, radius in {"r_min": r_min, "r_max": r_max}.items():
        errors.as_nonnegative("lru_ring", name, radius)
    if not r_min < r_max <= 1:
        raise errors.bad_argument("lru_ring", "r_min, r_max", (r_min, r_max), "0 <= r_min < r_max <= 1")
    errors.as_nonnegative("lru_ring", "max_phase", max_phase, positive=True, remedy="2 pi is the whole circle.")
    radius_key, phase_key = jax.random.split(key)
    least = np.finfo(np.float32).eps  # keeps every logarithm finite
    share = jax.random.uniform(radius_key, (modes,))
    decay = -jnp.log(jnp.clip(r_min**2 + (r_max**2 - r_min**2) * share, least**2, 1 - least))  # of the squared radius
    theta = max_phase * jax.random.uniform(phase_key, (modes,), minval=least)
    return jnp.log(0.5 * decay), jnp.log(theta), 0.5 * jnp.log(-jnp.expm1(-decay))


def _copies(modes: NPLR, copies: int) -> StateSpace:
    A, P, B = (np.repeat(v[..., None, :], copies, axis=-2) for v in (modes.A, modes.P, modes.B))
    return StateSpace(A, P, B)


def _modes(size: int) -> int:
    if size < 2 or size % 2:
        raise errors.bad_argument("init", "size", size, "a positive even number", "Modes come in conjugate pairs.")
    return size // 2


def _required(rng: np.random.Generator | None, what: str) -> np.random.Generator:
    if rng is None:
        raise errors.bad_argument("init", "rng", rng, f"a numpy Generator for {what}", "Pass np.random.default_rng(0).")
    return rng
