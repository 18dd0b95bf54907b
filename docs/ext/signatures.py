"""Signatures as they stand in the source, `x: Float[Array, "b l d"]`, where Python would print a union of types."""

import ast
import functools
import inspect
import textwrap

__all__ = ["signature_of"]


@functools.cache
def signature_of(obj: object) -> tuple[str, str] | None:
    """The arguments of a function or of a class, and what it returns, or None where there is no source to read."""
    function = obj
    if inspect.isclass(obj):
        function = obj.__dict__.get("__init__")
    function = inspect.unwrap(function) if callable(function) else None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # written in C, or generated, as that of a dataclass
        return None
    node = tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args
    first = [*arguments.posonlyargs, *arguments.args][:1]
    if first and first[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    returned = "" if node.returns is None or inspect.isclass(obj) else ast.unparse(node.returns)
    return f"({ast.unparse(arguments)})", returned


def _as_written(app, what, name, obj, options, signature, returned):
    return signature_of(obj) if what in ("function", "method", "class") else None


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", _as_written)
    return {"parallel_read_safe": True}
