"""One voice for messages: every error names the argument, what came, what was wanted, and the remedy."""

import difflib
import math
import operator
from collections.abc import Collection, Iterable, Sequence

import numpy as np

__all__ = [
    "as_int",
    "as_nonnegative",
    "bad_argument",
    "bad_shape",
    "did_you_mean",
    "require_flags",
    "require_known",
    "shape_of",
    "unknown_name",
]


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


def require_known(kind: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is not registered, and says which it may have meant.

    Args:
        kind: What the name names, such as `"model"` or `"data set"`.
        name: What the caller gave.
        known: The names there are.

    Raises:
        ValueError: The name is none of them.

    >>> require_known("size", "fulll", ["cpu", "full"])
    Traceback (most recent call last):
    ValueError: Unknown size 'fulll'. Did you mean 'full'? Known: cpu, full.
    """
    if name not in known:
        raise unknown_name(kind, name, list(known))


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


def as_int(
    where: str,
    argument: str,
    got: object,
    wanted: str = "",
    *,
    least: int | None = None,
    most: int | None = None,
    remedy: str = "",
) -> int:
    """A whole number as a Python int. Those of numpy count; floats, bools and values that are traced do not.

    Args:
        where: The function that refuses; it and the other arguments are those of `bad_argument`.
        argument: The argument's name.
        got: What came.
        wanted: What would have been right; by default an int in the bounds.
        least: The least number that is allowed.
        most: The largest value that is allowed.
        remedy: What to do; a full sentence.

    Raises:
        ValueError: It is not a whole number, or it is out of the bounds.

    >>> as_int("copying_batch", "gap", 2.5, least=0)
    Traceback (most recent call last):
    ValueError: copying_batch: gap must be an int, at least 0, got 2.5.
    """
    try:
        number = None if isinstance(got, bool) else operator.index(got)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        bounds = ("" if least is None else f", at least {least}") + ("" if most is None else f", at most {most}")
        either = "a positive int" if least == 1 and most is None else f"an int{bounds}"
        raise bad_argument(where, argument, got, wanted or either, remedy)
    return number


def require_flags(where: str, **flags: object) -> None:
    """Raises `ValueError` unless switches are bools that are known: they decide what is compiled, or what is built.

    >>> require_flags("S5", conj_sym="no")
    Traceback (most recent call last):
    ValueError: S5: conj_sym must be True or False, got 'no'.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            remedy = (
                f'bool({name}) makes it one; under jax.jit it must be static: jax.jit(f, static_argnames="{name}").'
            )
            raise bad_argument(
                where, name, flag, "True or False", "" if flag is None or isinstance(flag, str) else remedy
            )


def as_nonnegative(where: str, argument: str, got: object, *, positive: bool = False, remedy: str = "") -> float:
    """A finite number that is not negative, as a Python float. Strings and bools are no numbers.

    Args:
        where: The function that refuses; it and the other arguments are those of `bad_argument`.
        argument: The argument's name.
        got: What came.
        positive: Whether zero is refused, too.
        remedy: What to do; a full sentence.

    Raises:
        ValueError: It is no such number.

    >>> as_nonnegative("touch_tones", "noise", -1)
    Traceback (most recent call last):
    ValueError: touch_tones: noise must be a finite number, at least 0, got -1.
    """
    try:
        # A one-element array would pass as a number, with a warning.
        number = math.nan if isinstance(got, str | bytes | bool) or getattr(got, "shape", ()) else float(got)
    except (TypeError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf or (positive and number == 0):
        wanted = "a positive, finite number" if positive else "a finite number, at least 0"
        raise bad_argument(where, argument, got, wanted, remedy)
    return number
