"""The copying task: remember the first tokens over a long gap (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016)."""

import numpy as np

from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int

__all__ = ["copying_batch"]


def copying_batch(
    seed: int, step: int, *, batch_size: int, gap: int = 100, memorized: int = 10, vocabulary: int = 10
) -> dict[str, np.ndarray]:
    """A batch of the copying task: M tokens, L blanks, M markers at which the M tokens are to be given back.

    Token 0 is the blank, token A - 1 the marker, and the tokens to remember are uniform on 1 .. A - 2. The target is
    that of the last M positions alone: compare it with `logits[:, -M:]`.

    Args:
        seed: The seed of the task.
        step: The number of the batch; (seed, step) determine it.
        batch_size: b.
        gap: L, the number of blanks.
        memorized: M, the number of tokens to remember.
        vocabulary: A, the number of token ids.

    Returns:
        `tokens` (b M+L+M) int32 and `target` (b M) int32.

    Raises:
        ValueError: If a size is not a whole number or is too small (A must be at least 3, or nothing is left between
            blank and marker), or the seed or the step is out of its range.

    >>> batch = copying_batch(0, 0, batch_size=2, gap=3, memorized=2, vocabulary=5)
    >>> batch["tokens"].shape, batch["tokens"][0, 2:].tolist()
    ((2, 7), [0, 0, 0, 4, 4])
    >>> bool((batch["tokens"][:, :2] == batch["target"]).all())
    True
    """
    where = "copying_batch"
    batch_size = as_int(where, "batch_size", batch_size, least=1)
    gap, memorized = as_int(where, "gap", gap, least=0), as_int(where, "memorized", memorized, least=1)
    vocabulary = as_int(where, "vocabulary", vocabulary, least=3, remedy="Blank and marker take two of the ids.")
    target = stream(where, seed, step).integers(1, vocabulary - 1, (batch_size, memorized), np.int32)
    blanks = np.zeros((batch_size, gap), np.int32)
    markers = np.full((batch_size, memorized), vocabulary - 1, np.int32)
    return {"tokens": np.concatenate([target, blanks, markers], axis=1), "target": target}
