"""HiPPO state matrices and their normal plus low-rank form, in float64 on the host.

A HiPPO matrix makes the state of `x' = A x + B u` the coefficients of the past input in a basis of functions: scaled
Legendre polynomials (LegS), Legendre polynomials (LegT) or a Fourier series (FouT) on a sliding window. The matrices
are not normal, and their eigenvectors are useless in floating point; `A + P P^T` is normal, so that in its eigenbasis A
is diagonal less a term of low rank.

HiPPO (https://arxiv.org/abs/2008.07669), S4 (appendix C, https://arxiv.org/abs/2111.00396) and "How to Train Your
HiPPO" (https://arxiv.org/abs/2206.12037).
"""

from typing import NamedTuple

import numpy as np

from ssmjax import errors

__all__ = ["MEASURES", "NPLR", "hippo_matrix", "low_rank_part", "normal_modes", "nplr"]

MEASURES = ("legs", "legt", "fout")


class NPLR(NamedTuple):
    """A HiPPO system in the eigenbasis of its normal part; one mode of each conjugate pair.

    Attributes:
        A: Eigenvalues of the normal part, (n), with negative imaginary parts, ascending.
        P: Low-rank part, (r n): the state matrix is diag(A) - sum_r P_r P_r*.
        B: Input vector, (n).
        V: Eigenvectors, (2n n), of unit length; the first entry of each that is not zero is real and positive.
    """

    A: np.ndarray
    P: np.ndarray
    B: np.ndarray
    V: np.ndarray


def hippo_matrix(measure: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The state matrix and input vector of a HiPPO measure.

    LegS is theorem 2 of HiPPO; LegT and FouT are those of "How to Train Your HiPPO" (section 4.2 and appendix), scaled
    as S4 scales them.

    Args:
        measure: "legs", "legt" or "fout".
        size: The state size N; even for "fout".

    Returns:
        A, (N N), and B, (N), float64.

    Raises:
        ValueError: The measure is unknown or the size does not fit it.

    >>> A, B = hippo_matrix("legs", 2)
    >>> A.round(3).tolist(), B.round(3).tolist()
    ([[-1.0, 0.0], [-1.732, -2.0]], [1.0, 1.732])
    """
    _check(measure, size, even=measure == "fout")
    if measure == "fout":
        return _fout(size)
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    if measure == "legs":
        return -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0), root
    sign = np.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
    return -0.5 * np.outer(root, root) * sign, 0.5 * root


def low_rank_part(measure: str, size: int, rank: int | None = None) -> np.ndarray:
    """The vectors P with which `A + sum_r P_r P_r^T` is normal: a multiple of the identity plus a skew matrix.

    Args:
        measure: "legs", "legt" or "fout".
        size: The state size N.
        rank: How many vectors; the least possible by default (1, and 2 for "legt"). Vectors beyond that are zero.

    Returns:
        P, (r N), float64.

    Raises:
        ValueError: The measure is unknown, or the rank is below the least.

    >>> low_rank_part("legs", 2).round(3).tolist()
    [[0.707, 1.225]]
    """
    _check(measure, size, even=measure == "fout")
    n = np.arange(size)
    if measure == "legs":
        P = np.sqrt(n + 0.5)[None]
    elif measure == "legt":
        P = np.sqrt(n + 0.5) * (n % 2 == np.array([[1], [0]]))
    else:
        P = _fout(size)[1][None]
    least = len(P)
    if rank is not None and rank < least:
        raise errors.bad_argument("low_rank_part", "rank", rank, f"at least {least} for {measure!r}")
    return np.concatenate([P, np.zeros(((rank or least) - least, size))])


def nplr(measure: str, size: int, *, rank: int | None = None, clip: float | None = None) -> NPLR:
    """A HiPPO system in the basis in which its normal part is diagonal: what S4, S4D and S5 start from.

    The eigenvectors are those of a Hermitian matrix, in float64, sorted, and with their phases fixed, so that the
    result does not depend on the linear algebra library.

    Args:
        measure: "legs", "legt" or "fout".
        size: The state size N, even; the result holds N / 2 modes.
        rank: See `low_rank_part`.
        clip: A bound on the magnitude of the imaginary part of B. The S4 authors' code uses 2, which changes a third of
            the entries of LegS (of magnitudes up to 41 at N = 64); S5 does not clip. None: no bound.

    Returns:
        The modes; see `NPLR`.

    Raises:
        ValueError: The measure is unknown, the size is odd, or the rank is too small.

    >>> modes = nplr("legs", 64)
    >>> modes.A[[0, -1]].round(2).tolist()
    [(-0.5-1303.27j), (-0.5-0.26j)]
    """
    _check(measure, size, even=True)
    A, V = normal_modes(measure, size)
    A, V = A[: size // 2], V[:, : size // 2]
    B = V.conj().T @ hippo_matrix(measure, size)[1]
    if clip is not None:
        B = B.real + 1j * np.clip(B.imag, -clip, clip)
    return NPLR(A, low_rank_part(measure, size, rank) @ V.conj(), B, V)


def normal_modes(measure: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues of the normal part `A + P P^T`, ascending by their imaginary parts, and the eigenvectors.

    Args:
        measure: "legs", "legt" or "fout".
        size: The state size N.

    Returns:
        (N) and (N N), complex128; phases as in `NPLR.V`.

    >>> normal_modes("legs", 2)[0].round(3).tolist()
    [(-0.5-0.866j), (-0.5+0.866j)]
    """
    P = low_rank_part(measure, size)
    normal = hippo_matrix(measure, size)[0] + P.T @ P
    real = np.mean(np.diag(normal))
    imag, V = np.linalg.eigh(-0.5j * (normal - normal.T))
    if (zero := abs(imag) < 1e-6).sum() == 2:
        # FouT's constant and the row beside it: any basis of the two is an eigenbasis, and LAPACK's is arbitrary.
        imag[zero] = 0
        V[:, zero] = 0
        V[:2, zero] = np.array([[1, 1], [1j, -1j]]) / np.sqrt(2)
    leading = V[np.argmax(abs(V) > 1e-6, axis=0), np.arange(size)]
    return real + 1j * imag, V * (leading.conj() / abs(leading))


def _fout(size: int) -> tuple[np.ndarray, np.ndarray]:
    A, B = np.zeros((size, size)), np.zeros(size)
    even = np.arange(0, size, 2)
    A[even, even + 1], A[even + 1, even] = -np.pi * even / 2, np.pi * even / 2
    B[even] = np.sqrt(2)
    B[0] = 1
    return A - np.outer(B, B), B


def _check(measure: str, size: int, *, even: bool) -> None:
    errors.require_known("HiPPO measure", measure, MEASURES)
    if size < 1 or (even and size % 2):
        wanted = "a positive even number" if even else "a positive number"
        raise errors.bad_argument("hippo", "size", size, wanted, "Modes come in conjugate pairs." if even else "")
