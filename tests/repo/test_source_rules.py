"""Sizes of files and functions, and words that have no place in the tree."""

import ast
import re

from tests.repo.sources import LIBRARY, committed_files, parse, python_files, relative

CODE = (*LIBRARY, "experiments")
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
TEXT = {".py", ".md", ".toml", ".cfg", ".cff", ".yaml", ".yml", ".json", ".ipynb", ".txt", ".sh", ""}

# The two halves are joined here, so that this file does not hold the words that it looks for.
FORBIDDEN = {
    "an unfinished place": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a package registry's host": re.compile(r"(?:pypi|pythonhosted)\.org|registry\.npmjs|deb\.debian\.org"),
    "a path of one machine": re.compile(r"(?<![\w.$}*-])/(?:root|home|Users|work|farm|mnt)/\w"),
    "a silenced error": re.compile(r"^\s*except(?: Exception| BaseException)?:\s*(?:pass)?\s*$", re.MULTILINE),
    "a skipped test": re.compile(r"pytest\.(?:mark\.)?(?:skip|skipif|xfail)\b"),
}


def test_files_are_short():
    sizes = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in python_files(*CODE)}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short():
    """Lines of code: a docstring may be as long as it needs to be, and so may a function defined inside."""
    long = {}
    for path in python_files(*CODE):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(node, clean=False) is not None
                first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
                if (lines := node.end_lineno - first.lineno + 1) > MAX_FUNCTION_LINES:
                    long[f"{relative(path)}:{node.name}"] = lines
    assert long == {}


def test_no_forbidden_words():
    found = []
    for path in committed_files():
        if path.suffix in TEXT and path.stat().st_size < 1_000_000:
            text = path.read_text(encoding="utf-8", errors="replace")
            for what, pattern in FORBIDDEN.items():
                found += [f"{relative(path)}: {what}: {hit.group()!r}" for hit in pattern.finditer(text)]
    assert found == []


def test_every_module_says_what_it_is():
    silent = [relative(p) for p in python_files(*CODE) if p.stat().st_size and ast.get_docstring(parse(p)) is None]
    assert silent == []
