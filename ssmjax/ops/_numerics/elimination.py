"""Small complex linear systems, one for every feature and frequency, written out in elementwise arithmetic."""

import jax

__all__ = ["solve"]


def solve(matrix: list[list[jax.Array]], right: list[jax.Array]) -> list[jax.Array]:
    """The unknowns, (h m k) each, by elimination, for the entries (h k) of a matrix and right-hand sides (h m k).

    No pivot is sought, which is stable where the Hermitian part of the matrix is positive definite, up to a positive
    factor of every row.
    """
    size = len(right)
    rows, right = [list(row) for row in matrix], list(right)
    for p in range(size):
        for q in range(p + 1, size):
            factor = rows[q][p] / rows[p][p]
            rows[q] = [*rows[q][: p + 1], *(rows[q][i] - factor * rows[p][i] for i in range(p + 1, size))]
            right[q] = right[q] - factor[:, None] * right[p]
    unknowns = []
    for p in reversed(range(size)):
        known = zip(rows[p][p + 1 :], unknowns, strict=True)
        rest = right[p] - sum(entry[:, None] * unknown for entry, unknown in known)
        unknowns = [rest / rows[p][p][:, None], *unknowns]
    return unknowns
