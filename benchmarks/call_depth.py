"""How far a reader, or a debugger, travels in one call: functions entered, switches of file, lines that only check.

    python -m benchmarks.call_depth [--trace S4D]

Of each layer and op one call is traced by Python's own profiler, as `jax.jit` traces it; only functions of this package
count, each once. A switch is an entry into another file than the entry before, in the order of the calls. "Checks" are
the lines, without docstrings and comments, of functions that validate or describe what is wrong, and of statements that
raise or call them; "maths" are the rest, over the modules that the call enters.
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

import jax
import jax.numpy as jnp
from flax import nnx

import ssmjax
from ssmjax import layers, ops

PACKAGE = Path(ssmjax.__file__).parent
CHECKS = re.compile(r"^_?(check|require|refuse|as_int|as_sizes|as_tap|as_origin|as_length|as_counts|as_nonnegative)")
"""Names of functions that validate; so do those of `errors.py` and of the modules of checks."""

COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")


def cases() -> dict[str, tuple[Callable, tuple]]:
    """A call of each layer and op that the table is about, by name."""
    u = jnp.ones((2, 16, 8))
    x, A, B = jnp.ones((2, 16, 8)), -jnp.ones((8, 4)), jnp.ones((2, 16, 4))
    options = dict(d_state=4, rngs=nnx.Rngs(0))
    return {
        "S4D": (layers.S4D(8, **options), (u,)),
        "S4": (layers.S4(8, l_max=16, **options), (u,)),
        "S5": (layers.S5(8, **options), (u,)),
        "Mamba": (layers.Mamba(8, **options), (u,)),
        "selective_scan": (functools.partial(ops.selective_scan, dt_softplus=True), (x, x, A, B, B)),
        "fft_conv": (ops.fft_conv, (x, jnp.ones((16, 8)))),
    }


def travel(function: Callable, args: tuple) -> list[tuple[int, str, str]]:
    """The functions of the package in the order in which one call enters them: depth, file and name.

    Args:
        function: What is called.
        args: Its arguments.
    """
    calls: list[tuple[int, str, str]] = []
    depth = 0

    def watch(frame, event, _):
        nonlocal depth
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if PACKAGE not in path.parents or name in COMPREHENSIONS:
            return
        if event == "call":
            calls.append((depth, str(path.relative_to(PACKAGE)), name))
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


def lines_of(files: set[str]) -> tuple[int, int]:
    """Lines of checks and lines of maths of some files of the package."""
    checks = maths = 0
    for file in files:
        source = (PACKAGE / file).read_text(encoding="utf-8")
        inside = file in ("errors.py", "ops/_checks.py", "layers/common/checks.py")
        tree = ast.parse(source)
        numbers = {n for node in ast.walk(tree) for n in _code_lines(node)}
        checking = set(numbers) if inside else _checking_lines(tree)
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
    parser.add_argument("--trace", help="print the calls of this layer or op in order")
    wanted = parser.parse_args().trace
    print(f"{'call':16} {'functions':>9} {'switches':>9} {'checks':>7} {'maths':>6}")
    for name, (function, args) in cases().items():
        calls = travel(function, args)
        functions = len({(file, called) for _, file, called in calls})
        switches = sum(before[1] != after[1] for before, after in itertools.pairwise(calls))
        checks, maths = lines_of({file for _, file, _ in calls})
        print(f"{name:16} {functions:9} {switches:9} {checks:7} {maths:6}")
        if name == wanted:
            for depth, file, function_name in calls:
                print(f"{'  ' * (depth + 1)}{file}: {function_name}")


if __name__ == "__main__":
    main()
