"""Which implementation of an op runs: names, the choice, and the record of what was chosen and why.

`"auto"` takes the first implementation, in the op's own order of preference, that supports the call. A *named* one
works or raises. The name comes from the call, else from the innermost `use_implementation` block, else from the
environment variable `SSMJAX_IMPLEMENTATION`, else it is `"auto"`. The choice is made while JAX traces, so a function
that is already compiled keeps the implementation it was compiled with.
"""

import contextlib
import contextvars
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax

from ssmjax import errors

__all__ = [
    "Decision",
    "Form",
    "Implementation",
    "Op",
    "Support",
    "decisions",
    "dispatch",
    "lacks_capability",
    "register_op",
    "registered_ops",
    "report",
    "resolve",
    "use_implementation",
]

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "reference", "xla", "cudnn", "pallas_triton", "pallas_mosaic", "pallas_tpu"]
"""The names an `implementation=` argument takes."""

Support = str | None
"""Whether an implementation takes a call: None if it does, otherwise the condition that failed."""


class Form(NamedTuple):
    """An implementation of an op.

    Attributes:
        run: A function of a call.
        supports: Whether it takes the call, see `Support`; None if it takes all.
        capability: The GPU that it needs, by its compute capability; None if it runs anywhere.
        newer: Whether newer GPUs do, too.
    """

    run: Callable[[Any], Any]
    supports: Callable[[Any], Support] | None = None
    capability: str | None = None
    newer: bool = False


ENVIRONMENT_VARIABLE = "SSMJAX_IMPLEMENTATION"


@dataclasses.dataclass(frozen=True)
class Op:
    """A registered op: what the registry-wide tests need to call it without knowing it.

    Attributes:
        name: Its public name.
        function: The public function; takes `implementation=`.
        implementations: The implementations it has, besides `"auto"`.
        example: `example(key) -> (args, kwargs)`, a tiny call.
        expected: `expected(*args, **kwargs)`, the outputs of such a call as a tree of `jax.ShapeDtypeStruct`.
    """

    name: str
    function: Callable[..., Any]
    implementations: tuple[str, ...]
    example: Callable[[Any], tuple[tuple, dict]]
    expected: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Decision:
    """One answer to "which implementation?": the op, what was asked and where, what was chosen and why."""

    op: str
    requested: str
    source: str
    chosen: str
    reason: str


_ops: dict[str, Op] = {}
_decisions: dict[Decision, None] = {}  # a dict for its order: one entry for each distinct decision, oldest first
_overrides: contextvars.ContextVar[tuple[tuple[str, tuple[str, ...]], ...]] = contextvars.ContextVar(
    "ssmjax_implementation", default=()
)


def register_op(
    name: str,
    function: Callable[..., Any],
    *,
    implementations: tuple[str, ...],
    example: Callable[[Any], tuple[tuple, dict]],
    expected: Callable[..., Any],
) -> None:
    """Adds an op to the registry; the arguments are the fields of `Op`."""
    if not callable(function):
        raise errors.bad_argument("register_op", "function", function, "callable")
    _ops[name] = Op(name, function, implementations, example, expected)


def registered_ops() -> tuple[Op, ...]:
    """Returns every registered op, sorted by name.

    >>> import ssmjax.ops
    >>> [op.name for op in ssmjax.ops.registered_ops()][:2]
    ['apply_order', 'attention']
    """
    return tuple(_ops[name] for name in sorted(_ops))


@contextlib.contextmanager
def use_implementation(name: str, *ops: str) -> Iterator[None]:
    """Sets the default implementation inside a `with` block, for all ops or for the named ones.

    Args:
        name: One of the `Implementation` names.
        *ops: Names of the ops it holds for; none means all.

    Raises:
        ValueError: The implementation or an op is unknown.

    >>> import ssmjax.ops
    >>> with ssmjax.ops.use_implementation("reference"):
    ...     pass  # every op called or traced here uses its reference form
    """
    _check_name(name, "use_implementation")
    for op in ops:
        if op not in _ops:
            raise errors.unknown_name("op", op, sorted(_ops))
    token = _overrides.set((*_overrides.get(), (name, ops)))
    try:
        yield
    finally:
        _overrides.reset(token)


def resolve(
    op: str,
    implementation: str,
    available: Mapping[str, Support | Callable[[], Support]],
    detail: str = "",
    *,
    arrays: Sequence[Any] = (),
) -> str:
    """Chooses the implementation for one call of an op.

    Args:
        op: The op's name.
        implementation: What the caller passed.
        available: The op's implementations in order of preference, each with None if it supports this call or the
            condition that failed, or with a function that finds out, called if the choice comes to it.
        detail: What else `report()` should say of the choice, such as the form that each platform gets.
        arrays: Those that "reference" alone takes with an axis of size 0.

    Returns:
        A key of `available`.

    Raises:
        ValueError: No implementation has that name.
        NotImplementedError: A named implementation does not take this call.
    """
    named = implementation != "auto" or _overrides.get() or os.environ.get(ENVIRONMENT_VARIABLE)
    requested, source = _requested(op, implementation) if named else ("auto", "default")
    refusals = []
    for chosen in available if requested == "auto" else (requested,):
        missing = f"{op} has no {chosen!r} implementation yet (it has {', '.join(available)})"
        failed = available.get(chosen, missing)
        failed = failed() if callable(failed) else failed
        if failed is None and chosen != "reference" and any(0 in v.shape for v in arrays):
            failed = "an axis has size 0"
        if failed is None:
            break
        refusals.append(f"not {chosen}: {failed}")
    else:
        if requested == "auto":
            raise NotImplementedError(f"{op}: no implementation takes this call ({'; '.join(refusals)}).")
        raise NotImplementedError(
            f"{op}: implementation {requested!r} ({source}) cannot run this call: {failed}. 'auto' always works."
        )
    reason = "; ".join(refusals) or ("first choice" if requested == "auto" else "asked for by name")
    decision = Decision(op, requested, source, chosen, f"{reason}; {detail}" if detail else reason)
    if decision not in _decisions:
        _decisions[decision] = None
        logger.info("%s uses %r (%s): %s", op, chosen, source, decision.reason)
    return chosen


def dispatch(op: str, implementation: str, forms: Mapping[str, Form], call: Any, detail: str = "") -> Any:
    """Runs a call by the first of the forms that takes it, or by the named one; see `resolve`.

    Where the GPU that a form needs is missing, it does not look at the call.
    """
    available = {}
    for name, form in forms.items():
        missing = lacks_capability(form.capability, newer=form.newer) if form.capability else None
        available[name] = missing or (functools.partial(form.supports, call) if form.supports else None)
    return forms[resolve(op, implementation, available, detail)].run(call)


def lacks_capability(wanted: str, *, newer: bool = False) -> Support:
    """None if the default device is a GPU whose compute capability has the major number of `wanted`, else what it is.

    With `newer`, larger major numbers do, too.

    The platform that a program is compiled for is known only later, so that kernels bring the XLA form for the others.
    """
    device = jax.config.jax_default_device or jax.devices()[0]
    if isinstance(device, str):
        device = jax.devices(device)[0]
    found = getattr(device, "compute_capability", None)
    needs = f"needs a GPU of compute capability {wanted}{' or newer' * newer}"
    if device.platform != "gpu" or not found:
        return f"{needs}, the default device is a {device.platform}"
    major, least = int(str(found).split(".")[0]), int(wanted.split(".", maxsplit=1)[0])
    if major < least or (major > least and not newer):
        return f"{needs}, {device.device_kind} has {found}"
    return None


def decisions() -> tuple[Decision, ...]:
    """Returns every distinct decision made so far in this process, oldest first."""
    return tuple(_decisions)


def report() -> str:
    """Returns what was chosen so far and why, one line for each distinct decision.

    >>> import jax.numpy as jnp, ssmjax.ops
    >>> _ = ssmjax.ops.linear_scan(jnp.ones((1, 3)), jnp.ones((1, 3)), implementation="reference")
    >>> "linear_scan: reference (argument): asked for by name" in ssmjax.ops.report()
    True
    """
    return "\n".join(f"{d.op}: {d.chosen} ({d.source}): {d.reason}" for d in _decisions) or "No op was called yet."


def asked_for(op: str) -> str:
    """The implementation that is asked for outside of a call: by `use_implementation` or the environment, or "auto".

    >>> asked_for("ssd")
    'auto'
    """
    return _requested(op, "auto")[0]


def _requested(op: str, implementation: str) -> tuple[str, str]:
    """Returns the name asked for and where it came from."""
    _check_name(implementation, f"{op}: implementation")
    if implementation != "auto":
        return implementation, "argument"
    for name, ops in reversed(_overrides.get()):
        if not ops or op in ops:
            return name, "use_implementation"
    name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
    _check_name(name, f"the environment variable {ENVIRONMENT_VARIABLE}")
    return name, "default" if name == "auto" else ENVIRONMENT_VARIABLE


def _check_name(name: str, where: str) -> None:
    known = get_args(Implementation)
    if name not in known:
        raise ValueError(f"{where}: {errors.unknown_name('implementation', name, known)}")
