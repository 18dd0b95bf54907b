"""One voice for messages: every error names the argument, what came, what was wanted, and the remedy."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["bad_argument", "bad_shape", "did_you_mean", "shape_of", "unknown_name"]


def shape_of(x: object) -> str:
    """Renders the shape and dtype of an array, or the type of anything else, for a message."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return f"{tuple(shape)} {dtype}" if shape is not None and dtype is not None else f"a {type(x).__name__}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `" Did you mean 'a' or 'b'?"` for near misses, or an empty string.

    >>> did_you_mean("vim_tinny", ["vim_tiny", "mamba_130m"])
    " Did you mean 'vim_tiny'?"
    """
    if not isinstance(name, str):
        return ""
    folded = {k.casefold(): k for k in known}
    near = [folded[k] for k in difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)]
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def unknown_name(kind: str, name: str, known: Sequence[str]) -> ValueError:
    """The error for a name that is not registered.

    Args:
        kind: What the name names, such as `"model"` or `"data set"`.
        name: What the caller gave.
        known: The names there are.
    """
    return ValueError(f"Unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")


def bad_argument(where: str, argument: str, got: object, wanted: str, remedy: str = "") -> ValueError:
    """The error for an argument of the right type and the wrong value.

    Args:
        where: The public function, such as `"selective_scan"`.
        argument: The argument's name.
        got: What came.
        wanted: What would have been right.
        remedy: What to do; a full sentence.
    """
    return ValueError(f"{where}: {argument} must be {wanted}, got {got!r}.{' ' + remedy if remedy else ''}")


def bad_shape(where: str, argument: str, got: object, wanted: str, remedy: str = "") -> ValueError:
    """The error for an array of the wrong shape or dtype; `got` is the array itself."""
    return ValueError(f"{where}: {argument} must be {wanted}, got {shape_of(got)}.{' ' + remedy if remedy else ''}")
