"""HiPPO matrices, their normal plus low-rank form, and the diagonal initializations, against their definitions."""

import itertools

import jax
import numpy as np
import pytest

from ssmjax.init import diagonal, hippo

CASES = [(measure, size) for measure in hippo.MEASURES for size in (2, 8, 64)]


def test_legs_is_the_matrix_of_the_paper():
    A, B = hippo.hippo_matrix("legs", 5)
    for n, k in itertools.product(range(5), repeat=2):
        wanted = -np.sqrt((2 * n + 1) * (2 * k + 1)) if n > k else -(n + 1) if n == k else 0
        assert A[n, k] == pytest.approx(wanted)
    np.testing.assert_allclose(B, np.sqrt([1, 3, 5, 7, 9]))


def test_legs_state_holds_legendre_coefficients():
    """Theorem 2 of HiPPO: dc/dt = (A c + B f) / t keeps the coefficients of f on [0, t]; here f = s^2, t = 1."""
    A, B = hippo.hippo_matrix("legs", 3)
    grid, weights = np.polynomial.legendre.leggauss(8)
    basis = np.stack([np.sqrt(2 * n + 1) * np.polynomial.legendre.Legendre.basis(n)(grid) for n in range(3)])

    def coefficients(t):
        return basis @ (weights / 2 * (t * (grid + 1) / 2) ** 2)

    slope = (coefficients(1 + 1e-4) - coefficients(1 - 1e-4)) / 2e-4
    np.testing.assert_allclose(A @ coefficients(1) + B * 1.0, slope, atol=1e-6)


@pytest.mark.parametrize(("measure", "size"), CASES)
def test_low_rank_part_makes_the_matrix_normal(measure, size):
    A, _ = hippo.hippo_matrix(measure, size)
    P = hippo.low_rank_part(measure, size)
    skew = A + P.T @ P - (-0.5 if measure == "legs" else 0) * np.eye(size)
    np.testing.assert_allclose(skew, -skew.T, atol=1e-11)
    assert P.shape == (2 if measure == "legt" else 1, size)
    more = hippo.low_rank_part(measure, size, rank=4)
    np.testing.assert_array_equal(more[len(P) :], 0)


@pytest.mark.parametrize(("measure", "size"), CASES)
def test_modes_give_the_matrix_back(measure, size):
    A, B = hippo.hippo_matrix(measure, size)
    modes = hippo.nplr(measure, size)
    assert np.all(modes.A.imag <= 0) and np.all(np.diff(modes.A.imag) >= 0)
    V, P = (np.concatenate([v, v.conj()], axis=-1) for v in (modes.V, modes.P))
    Lambda = np.diag(np.concatenate([modes.A, modes.A.conj()]))
    np.testing.assert_allclose(V.conj().T @ V, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(V @ (Lambda - P.T @ P.conj()) @ V.conj().T, A, atol=1e-9 * size)
    np.testing.assert_allclose(V @ np.concatenate([modes.B, modes.B.conj()]), B, atol=1e-10)
    leading = [column[np.argmax(abs(column) > 1e-6)] for column in modes.V.T]
    assert np.all(np.real(leading) > 0) and np.max(np.abs(np.imag(leading))) < 1e-14


def test_numbers_of_legs():
    modes = hippo.nplr("legs", 64)
    np.testing.assert_allclose(modes.A.imag[[0, -1]], [-1303.3, -0.264], rtol=1e-3)
    np.testing.assert_allclose(modes.A.real, -0.5, rtol=1e-12)
    np.testing.assert_allclose(modes.P[0] / modes.B, np.sqrt(0.5), rtol=1e-9)
    assert np.max(abs(modes.B.imag)) == pytest.approx(40.75, abs=0.01)


@pytest.mark.parametrize(
    ("measure", "size", "clipped"), [("legs", 16, 3), ("legs", 64, 11), ("legt", 64, 3), ("fout", 64, 0)]
)
def test_clip(measure, size, clipped):
    free, bounded = hippo.nplr(measure, size), hippo.nplr(measure, size, clip=2.0)
    assert np.sum(abs(free.B.imag) > 2) == clipped
    np.testing.assert_array_equal(bounded.B.real, free.B.real)
    np.testing.assert_array_equal(bounded.B.imag, np.clip(free.B.imag, -2, 2))


def test_the_pair_at_zero_of_fout():
    """The constant, and the row beside it that nothing drives: a basis of the two that is each other's conjugate."""
    modes = hippo.nplr("fout", 8)
    assert modes.A[-1] == 0
    np.testing.assert_allclose(modes.V[:, -1], [np.sqrt(0.5), 1j * np.sqrt(0.5), *[0] * 6])
    np.testing.assert_allclose(modes.B, [1, 1, 1, np.sqrt(0.5)])
    np.testing.assert_allclose(modes.A.imag, -np.pi * np.arange(3, -1, -1) * 1.0)


@pytest.mark.parametrize(
    ("name", "imag"),
    [
        ("lin", [0, np.pi, 2 * np.pi, 3 * np.pi]),
        ("inv", [8 / np.pi * 7, 8 / np.pi * (8 / 3 - 1), 8 / np.pi * (8 / 5 - 1), 8 / np.pi * (8 / 7 - 1)]),
        ("inv2", [8 / np.pi * 7, 8 / np.pi * 3, 8 / np.pi * (8 / 3 - 1), 8 / np.pi]),
        ("quad", [1 / np.pi, 9 / np.pi, 25 / np.pi, 49 / np.pi]),
        ("real", [0, 0, 0, 0]),
    ],
)
def test_diagonals(name, imag):
    A = diagonal.diagonal_modes(name, 8, copies=3, real_scale=2.0, imag_scale=0.5)
    assert A.shape == (3, 4)
    np.testing.assert_allclose(-A.imag, np.broadcast_to(0.5 * np.array(imag), (3, 4)), atol=1e-12)
    np.testing.assert_allclose(-A.real, np.broadcast_to([2, 4, 6, 8] if name == "real" else 1.0, (3, 4)))


def test_random_diagonals():
    A = diagonal.diagonal_modes("rand", 64, copies=50, rng=np.random.default_rng(0))
    assert abs(np.mean(np.log(-A.imag))) < 0.1 and abs(np.std(np.log(-A.imag)) - 1) < 0.1
    again = diagonal.diagonal_modes("rand", 64, copies=50, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(A, again)
    real = diagonal.diagonal_modes("lin", 64, copies=50, real_random=True, rng=np.random.default_rng(0)).real
    assert -1 <= real.min() < -0.9 and -0.1 < real.max() <= 0
    wide = diagonal.diagonal_modes("real", 64, copies=50, real_random=True, rng=np.random.default_rng(0)).real
    assert -32 <= wide.min() < -30


def test_input_vectors():
    np.testing.assert_array_equal(diagonal.input_vector("constant", 8, copies=2), np.ones((2, 4)))
    np.testing.assert_array_equal(diagonal.input_vector("alternating", 8)[0], [1, -1, 1, -1])
    clockwise = diagonal.input_vector("unit-cw", 8)[0]
    np.testing.assert_allclose(clockwise, np.exp(-2j * np.pi / 8 * np.arange(4)))
    np.testing.assert_allclose(diagonal.input_vector("unit-ccw", 8)[0], clockwise.conj())
    random = diagonal.input_vector("random", 64, copies=100, rng=np.random.default_rng(0))
    assert np.mean(abs(random) ** 2) == pytest.approx(1, abs=0.1)


def test_state_spaces():
    legs = diagonal.state_space("legs", 16, copies=3, rank=2)
    assert legs.A.shape == legs.B.shape == (3, 8) and legs.P.shape == (2, 3, 8)
    np.testing.assert_array_equal(legs.P[1], 0)
    assert np.max(abs(legs.B.imag)) == 2
    for name in ("diag-legs", "dplr-legs"):
        space = diagonal.state_space(name, 16, copies=3)
        np.testing.assert_allclose(space.A, legs.A)
        np.testing.assert_allclose(space.B, legs.B)
        np.testing.assert_allclose(space.P, 0 * legs.P[:1] if name == "diag-legs" else legs.P[:1])
    random = diagonal.state_space("dplr-lin", 16, copies=3, rng=np.random.default_rng(0))
    assert np.all(abs(random.P) > 0)
    alternating = diagonal.state_space("diag-lin", 16, B="alternating")
    np.testing.assert_array_equal(alternating.B[0, :2], [1, -1])


@pytest.mark.parametrize(("name", "parts"), diagonal.MIXTURES.items())
def test_mixtures_take_equal_shares(name, parts):
    mixed = diagonal.state_space(name, 8, copies=2 * len(parts))
    for i, part in enumerate(parts):
        for whole, one in zip(mixed, diagonal.state_space(part, 8, copies=2), strict=True):
            np.testing.assert_array_equal(whole[..., 2 * i : 2 * i + 2, :], one)


@pytest.mark.parametrize("conj_sym", [True, False])
def test_block_diagonal_legs(conj_sym):
    A, V, V_inverse = diagonal.block_diagonal_legs(12, 3, conj_sym=conj_sym)
    kept = 6 if conj_sym else 12
    assert A.shape == (kept,) and V.shape == (12, kept) and V_inverse.shape == (kept, 12)
    np.testing.assert_allclose(V_inverse @ V, np.eye(kept), atol=1e-12)
    normal = hippo.hippo_matrix("legs", 4)[0] + np.outer(*[hippo.low_rank_part("legs", 4)[0]] * 2)
    if not conj_sym:
        np.testing.assert_allclose(V @ np.diag(A) @ V_inverse, np.kron(np.eye(3), normal), atol=1e-12)
    else:
        assert np.all(A.imag < 0)
        np.testing.assert_allclose(np.kron(np.eye(3), normal) @ V, V * A, atol=1e-12)


def test_lru_ring():
    nu, theta, gamma = diagonal.lru_ring(20000, r_min=0.4, r_max=0.8, max_phase=1.0, key=jax.random.key(0))
    radius = np.exp(-np.exp(np.asarray(nu, np.float64)))
    assert radius.min() > 0.4 - 1e-6 and radius.max() < 0.8 + 1e-6
    shares, _ = np.histogram(radius**2, bins=4, range=(0.16, 0.64))
    np.testing.assert_allclose(shares / 20000, 0.25, atol=0.02)  # uniform in area
    assert 0 < np.exp(theta).min() and np.exp(theta).max() <= 1
    np.testing.assert_allclose(np.exp(gamma), np.sqrt(1 - radius**2), rtol=1e-5)
    assert np.all(np.isfinite(np.concatenate(diagonal.lru_ring(1000, key=jax.random.key(0)))))


def test_errors():
    with pytest.raises(ValueError, match="Unknown HiPPO measure 'leg'. Did you mean 'legt' or 'legs'"):
        hippo.hippo_matrix("leg", 4)
    with pytest.raises(ValueError, match="size must be a positive even number, got 5. Modes come in conjugate pairs"):
        hippo.nplr("legs", 5)
    with pytest.raises(ValueError, match="rank must be at least 2 for 'legt', got 1"):
        hippo.low_rank_part("legt", 4, rank=1)
    with pytest.raises(ValueError, match="size must be a positive even number, got 7"):
        diagonal.diagonal_modes("lin", 7)
    with pytest.raises(ValueError, match="Unknown diagonal initialization 'linear'"):
        diagonal.diagonal_modes("linear", 8)
    with pytest.raises(ValueError, match="rng must be a numpy Generator for 'rand', got None"):
        diagonal.diagonal_modes("rand", 8)
    with pytest.raises(ValueError, match="Unknown input vector 'ones'"):
        diagonal.input_vector("ones", 8)
    with pytest.raises(ValueError, match="Unknown initialization 'diag-lim'. Did you mean 'diag-lin'"):
        diagonal.state_space("diag-lim", 8)
    with pytest.raises(ValueError, match="copies must be a multiple of 2 for 'hippo', got 3"):
        diagonal.state_space("hippo", 8, copies=3)
    with pytest.raises(ValueError, match="size must be a multiple of 4, twice the number of blocks, got 6"):
        diagonal.block_diagonal_legs(6, 2)
    with pytest.raises(ValueError, match="must be 0 <= r_min < r_max <= 1"):
        diagonal.lru_ring(3, r_min=0.9, r_max=0.5, key=jax.random.key(0))
