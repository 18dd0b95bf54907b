"""How arrays are compared: floats by relative error, integers exactly, and greedy tokens where the choice was clear.

A greedy token is the argmax of logits, and two implementations may choose differently where the two largest are nearly
equal. So the tokens of a row (`greedy`, `left_greedy`, `image.greedy_a`) are compared one by one while its margins are
clear; where they differ at an unclear one, the rest of the row has no counterpart, and the logits up to there decide.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["MARGIN", "TOLERANCES", "compare", "margins", "relative_error"]

TOLERANCES = {"out/": 1e-4, "grad/": 1e-3, "grad_in/": 1e-3}
"""What is compared, by the beginning of its name, and the largest relative error that passes."""

FLOOR = 1e-6
"""Arrays smaller than this are compared by absolute size: where a gradient is zero, ours may be noise of up to 1e-9."""

ZEROS = ("mixer.k_norm.bias",)
"""Endings of gradients that are zero for every input, so that both sides hold rounding noise of a sum of large terms.

A bias on the normalized keys adds the same to all logits of a query, which a softmax does not see. Both must be below
`FLOOR`, in place of an agreement between two noises.
"""

MARGIN = 1e-2
"""How much larger than the second the largest logit must be for a greedy token to be compared."""


def compare(
    theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], exempt: str | None = None
) -> tuple[dict[str, float], list[str]]:
    """Compares arrays by name.

    Args:
        theirs: Every output and gradient of the dump.
        ours: What our code computed. The margins of greedy tokens may be left out where their logits are given.
        exempt: The ending of names that are not to be compared, if there are such.

    Returns:
        The error of each array that was compared (relative; for integers the share of wrong ones), and what was wrong:
        too large an error, NaN, another integer, another shape, an array left uncompared, nothing compared at all.
    """
    errors, problems = {}, []
    ours = {**_derived_margins(theirs, ours), **ours}
    known = _comparable(theirs, ours)
    for name, want in theirs.items():
        if exempt and name.endswith(exempt):
            continue
        if name not in ours:
            problems.append(f"{name} was not compared")
            continue
        got = np.asarray(ours[name])
        if got.shape != want.shape:
            problems.append(f"{name}: shape {got.shape}, theirs {want.shape}")
            continue
        if name in known:
            got = np.where(known[name].reshape(known[name].shape + (1,) * (got.ndim - known[name].ndim)), got, want)
        errors[name], problem = _exact(got, want) if want.dtype.kind in "iub" else _near(name, got, want)
        problems += [f"{name}: {problem}"] if problem else []
    if not errors:
        problems.append("nothing was compared")
    return errors, problems


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|ours - theirs| / max(1e-6, max|theirs|), NaN if either holds one; 0 for an empty array."""
    kind = np.complex128 if np.iscomplexobj(ours) or np.iscomplexobj(theirs) else np.float64
    ours, theirs = np.asarray(ours, kind), np.asarray(theirs, kind)
    with np.errstate(invalid="ignore"):  # infinities make it NaN, which fails
        return float(np.max(np.abs(ours - theirs), initial=0.0) / max(FLOOR, np.max(np.abs(theirs), initial=0.0)))


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the largest logit exceeds the second: (... v) to (...)."""
    second, first = np.moveaxis(np.partition(np.asarray(logits), -2)[..., -2:], -1, 0)
    return first - second


def _near(name: str, got: np.ndarray, want: np.ndarray) -> tuple[float, str]:
    error = relative_error(got, want)
    if name.startswith("grad/") and name.endswith(ZEROS):
        largest = float(max(np.max(np.abs(got)), np.max(np.abs(want))))
        return 0.0 if largest <= FLOOR else largest, "" if largest <= FLOOR else f"{largest:.1e}, but it is zero"
    tolerance = next(limit for start, limit in TOLERANCES.items() if name.startswith(start))
    return error, "" if error <= tolerance else f"{error:.1e} > {tolerance:.0e}"  # so written, NaN fails


def _exact(got: np.ndarray, want: np.ndarray) -> tuple[float, str]:
    wrong = np.argwhere(got != want)
    if not len(wrong):
        return 0.0, ""
    place = tuple(int(i) for i in wrong[0])
    return len(wrong) / want.size, f"{len(wrong)} of {want.size} differ, first {place}: {got[place]}, not {want[place]}"


def _companion(greedy: str, what: str) -> str:
    """The name of the logits or margins of greedy tokens: `greedy_a` to `greedy_logits_a`."""
    return f"_{what}".join(_split(greedy))


def _split(greedy: str) -> tuple[str, str]:
    before, _, after = greedy.rpartition("greedy")
    return before + "greedy", after


def _greedy_names(theirs: Mapping[str, np.ndarray]) -> list[str]:
    last = {name: name.split("/")[-1] for name in theirs}
    return [
        name
        for name, x in theirs.items()
        if "greedy" in last[name] and not any(what in last[name] for what in ("greedy_logits", "greedy_margin"))
        if x.dtype.kind in "iu"
    ]


def _derived_margins(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [(_companion(name, "margin"), _companion(name, "logits")) for name in _greedy_names(theirs)]
    return {margin: margins(ours[logits]) for margin, logits in names if margin in theirs and logits in ours}


def _comparable(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks of what has a counterpart, for greedy tokens and their logits and margins."""
    masks: dict[str, np.ndarray] = {}
    for name in _greedy_names(theirs):
        logits, margin = _companion(name, "logits"), _companion(name, "margin")
        want, got = theirs[name], np.asarray(ours.get(name))
        clear = theirs[margin] if margin in theirs else margins(theirs[logits]) if logits in theirs else None
        if clear is None or got.shape != want.shape:
            continue  # all are compared
        new = clear.shape[-1]
        differs = (got != want)[..., -new:]
        # A row ends at the first token that differs where the choice was not clear.
        ended = np.cumsum(differs & ~(clear > MARGIN), axis=-1)
        before = ended == 0
        reached = np.concatenate([np.ones_like(before[..., :1]), before[..., :-1]], axis=-1)
        prompt = np.ones_like(want[..., :-new], bool)
        masks[name] = np.concatenate([prompt, before], axis=-1)
        masks |= dict.fromkeys((logits, margin), reached)
    return masks
