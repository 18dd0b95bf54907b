"""The tree as the repository tests read it: paths, syntax trees, imports."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ("ssmjax", "vlmjax")


def python_files(*folders: str) -> list[Path]:
    """Every Python file under these folders of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "_build" not in path.parts)


def committed_files() -> list[Path]:
    """Every file that is in git or would be added to it; every file of the tree where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        return [path for name in listing.stdout.splitlines() if (path := ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(".")]


def relative(path: Path) -> str:
    """The path as a message should show it."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


@functools.cache
def imports(path: Path) -> tuple[tuple[str, int, bool], ...]:
    """Every `(dotted name, line, at module level)` that a file imports; `from a import b` gives `a.b`."""
    tree, found = parse(path), []
    top_level = {id(node) for node in tree.body}
    package = relative(path).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno, id(node) in top_level) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [(f"{module}.{alias.name}", node.lineno, id(node) in top_level) for alias in node.names]
    return tuple(found)
