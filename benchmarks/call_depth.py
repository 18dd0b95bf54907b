"""How far a reader, or a debugger, travels in one call: functions entered, switches of file, lines that only check.

    python -m benchmarks.call_depth [--trace S4D]

Of each layer and op one call is traced by Python's own profiler, as `jax.jit` traces it; only functions of this package
count, each once. A switch is an entry into another file than the entry before, in the order of the calls. Lines are
those of the functions entered, without docstrings, comments and imports: "checks" belong to functions that validate, or
to statements that raise or call such a function, and "maths" are the rest. `BEFORE` has what the same count gave before
the layers were sorted into folders and their checks and dispatch made one.
"""

import argparse
import ast
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import ssmjax
from ssmjax import layers, ops

PACKAGE = Path(ssmjax.__file__).parent
CHECKS = re.compile(r"^_?(check|require|refuse|as_int|as_sizes|as_tap|as_origin|as_length|as_counts|as_nonnegative)")
"""Names of functions that validate; so do all those of `MODULES_OF_CHECKS`."""

MODULES_OF_CHECKS = ("errors.py", "ops/_checks.py", "layers/common/checks.py")

BEFORE = {
    "S4D": (87, 69, 184, 329),
    "S4": (75, 51, 160, 320),
    "S5": (57, 30, 140, 247),
    "Mamba": (64, 51, 91, 376),
    "selective_scan": (51, 38, 73, 251),
    "fft_conv": (23, 9, 60, 89),
}
"""Functions, switches, lines of checks and of maths at commit 5dfc5ad, by this file's count (there the checks of layers
are in `layers/checks.py`)."""

COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")


def cases() -> dict[str, Callable[[], tuple[Callable, tuple]]]:
    """What makes a call of each layer and op that the table is about, by name."""
    u = jnp.ones((2, 16, 8))
    x, A, B = jnp.ones((2, 16, 8)), -jnp.ones((8, 4)), jnp.ones((2, 16, 4))
    options = dict(d_state=4, rngs=nnx.Rngs(0))
    return {
        "S4D": lambda: (layers.S4D(8, **options), (u,)),
        "S4": lambda: (layers.S4(8, l_max=16, **options), (u,)),
        "S5": lambda: (layers.S5(8, **options), (u,)),
        "Mamba": lambda: (layers.Mamba(8, **options), (u,)),
        "selective_scan": lambda: (functools.partial(ops.selective_scan, dt_softplus=True), (x, x, A, B, B)),
        "fft_conv": lambda: (ops.fft_conv, (x, jnp.ones((16, 8)))),
    }


class Entry(NamedTuple):
    """One entry into a function of the package.

    Attributes:
        depth: How many functions of the package it is in.
        file: The file, relative to the package.
        name: The function.
        line: Where it begins, with its decorators.
    """

    depth: int
    file: str
    name: str
    line: int


def travel(function: Callable, args: tuple) -> list[Entry]:
    """The functions of the package in the order in which one call enters them.

    Args:
        function: What is called.
        args: Its arguments.
    """
    calls: list[Entry] = []
    depth = 0

    def watch(frame, event, _):
        nonlocal depth
        code = frame.f_code
        file = _inside(code.co_filename)
        if file is None or code.co_name in COMPREHENSIONS:
            return
        if event == "call":
            calls.append(Entry(depth, file, code.co_name, code.co_firstlineno))
            depth += 1
        elif event == "return":
            depth -= 1

    def traced(*args):
        sys.setprofile(watch)
        try:
            return function(*args)
        finally:
            sys.setprofile(None)

    jax.make_jaxpr(traced)(*args)
    return calls


@functools.cache  # asked at every call inside JAX, too
def _inside(filename: str) -> str | None:
    """A file's path in the package, None for others."""
    path = Path(filename)
    return str(path.relative_to(PACKAGE)) if PACKAGE in path.parents else None


def counts_of(calls: list[Entry]) -> tuple[int, int, int, int]:
    """Functions, switches, lines of checks and lines of maths of some calls."""
    functions = len({(call.file, call.name) for call in calls})
    switches = sum(a.file != b.file for a, b in itertools.pairwise(calls))
    return functions, switches, *lines_of(calls)


def lines_of(calls: list[Entry]) -> tuple[int, int]:
    """Lines of checks and lines of maths of the functions that some calls enter."""
    checks = maths = 0
    for file in {call.file for call in calls}:
        first_lines = {call.line for call in calls if call.file == file}
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        checking = _checking_lines(tree)
        entered = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            and min([node.lineno, *(d.lineno for d in node.decorator_list)]) in first_lines
        ]
        numbers = {n for function in entered for node in ast.walk(function) for n in _code_lines(node)}
        if file in MODULES_OF_CHECKS:
            checking = numbers
        checks, maths = checks + len(numbers & checking), maths + len(numbers - checking)
    return checks, maths


def _code_lines(node: ast.AST) -> set[int]:
    """The lines of a statement other than a docstring or an import."""
    if not isinstance(node, ast.stmt) or isinstance(node, ast.Import | ast.ImportFrom):
        return set()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return set()
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return set(range(node.lineno, node.body[0].lineno))
    if any(isinstance(child, ast.stmt) for child in ast.walk(node) if child is not node):
        return {node.lineno}
    return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))


def _checking_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and CHECKS.match(node.name):
            lines |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.If) and any(isinstance(child, ast.Raise) for child in node.body):
            lines |= set(range(node.lineno, (node.body[-1].end_lineno or 0) + 1))
        elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr | ast.Assign) and _validates(node.value)):
            lines |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def _validates(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return bool(CHECKS.match(name))


def main() -> None:
    """Prints the table, or the calls of one case."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--trace", choices=list(BEFORE), help="print the calls of this layer or op in order, alone")
    wanted = parser.parse_args().trace
    columns = "functions", "switches", "checks", "maths"
    print(f"{'before -> now':16}" + "".join(f"{column:>14}" for column in columns))
    for name, make in cases().items():
        if wanted not in (None, name):
            continue
        calls = travel(*make())
        print(
            f"{name:16}" + "".join(f"{f'{a} -> {b}':>14}" for a, b in zip(BEFORE[name], counts_of(calls), strict=True))
        )
        if wanted:
            for call in calls:
                print(f"{'  ' * (call.depth + 1)}{call.file}: {call.name}")


if __name__ == "__main__":
    main()
