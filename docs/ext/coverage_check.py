"""Stops the documentation build where a public name has no entry under `docs/api/`.

The public interface is `__all__` of `ssmjax`, of `vlmjax`, of each of their subpackages that has one, and of every
module that an API page names by `currentmodule` (a subpackage without `__all__`, such as `ssmjax.training`, is public
through those).
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

ROOTS = ("ssmjax", "vlmjax")
_DIRECTIVE = re.compile(r"^\.\. (currentmodule|auto(?:function|class|exception|data|module)):: (\S+)", re.MULTILINE)


def documented_names(docs: Path) -> set[str]:
    """The full names that the API pages have entries for."""
    return {name for name, is_module in _entries(docs) if not is_module}


def public_modules(docs: Path) -> list[str]:
    """The modules whose `__all__` is the public interface, sorted."""
    modules = {name for name, is_module in _entries(docs) if is_module}
    for root in ROOTS:
        folder = [str(docs.parent / root)]
        found = [root, *(entry.name for entry in pkgutil.iter_modules(folder, prefix=f"{root}.") if entry.ispkg)]
        modules.update(name for name in found if hasattr(importlib.import_module(name), "__all__"))
    return sorted(modules)


def public_names(docs: Path) -> list[tuple[str, str]]:
    """Every `(module, name)` of the public interface, without subpackages, which count by their own names."""
    modules = [importlib.import_module(name) for name in public_modules(docs)]
    return [
        (module.__name__, name)
        for module in modules
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name)) and not name.startswith("__")
    ]


def undocumented(docs: Path) -> list[str]:
    """The public names without an entry."""
    return sorted({f"{module}.{name}" for module, name in public_names(docs)} - documented_names(docs))


def _entries(docs: Path):
    """Every `(full name, is a module)` that a directive of an API page names."""
    for page in sorted((docs / "api").glob("*.md")):
        module = ""
        for directive, name in _DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if directive in ("currentmodule", "automodule"):
                module = name
                yield name, True
            else:
                yield f"{module}.{name}", False


def setup(app):
    """Sphinx calls this; the check runs before anything is read."""
    from sphinx.errors import ExtensionError

    def check(app):
        if missing := undocumented(Path(app.srcdir)):
            raise ExtensionError(f"no entry under docs/api/ for: {', '.join(missing)}")

    app.connect("builder-inited", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
