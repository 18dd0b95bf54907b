"""Every public name is documented, shown by an example that the doctests run, listed in the docs and the changelog."""

import importlib
import inspect
import re

from docs.ext.coverage_check import documented_names, public_modules, public_names, undocumented
from tests.repo.sources import ROOT

DOCS = ROOT / "docs"


def described() -> list[tuple[str, object]]:
    """The public functions and classes under their full names; constants, types and subpackages are not described."""
    things = [
        (f"{module}.{name}", getattr(importlib.import_module(module), name)) for module, name in public_names(DOCS)
    ]
    return [(name, thing) for name, thing in things if inspect.isfunction(thing) or inspect.isclass(thing)]


def test_every_name_in_all_exists_once():
    for name in public_modules(DOCS):
        module = importlib.import_module(name)
        assert len(set(module.__all__)) == len(module.__all__), name
        assert [entry for entry in module.__all__ if not hasattr(module, entry)] == [], name


def test_every_function_and_class_has_a_docstring():
    assert [name for name, thing in described() if not (inspect.getdoc(thing) or "").strip()] == []


def test_every_function_has_an_example():
    functions = [(name, thing) for name, thing in described() if inspect.isfunction(thing)]
    assert [name for name, thing in functions if ">>>" not in (thing.__doc__ or "")] == []


def test_docs_list_every_public_name():
    assert undocumented(DOCS) == []


def test_docs_list_nothing_else():
    assert sorted(documented_names(DOCS) - {f"{module}.{name}" for module, name in public_names(DOCS)}) == []


def test_changelog_mentions_every_public_name():
    words = set(re.findall(r"\w+", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    assert sorted({name for _, name in public_names(DOCS)} - words) == []
