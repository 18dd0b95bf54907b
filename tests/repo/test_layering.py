"""Imports go one way, and each layer knows only what it may know."""

import ast
import graphlib

import pytest

from tests.repo.sources import LIBRARY, imports, parse, python_files, relative

ORDER = (
    {"ssmjax.shapes", "ssmjax.errors", "ssmjax.paths", "ssmjax._compat"},
    {"ssmjax.ops"},
    {"ssmjax.init", "ssmjax.parallel"},
    {"ssmjax.layers"},
    {"ssmjax.models"},
    {"ssmjax.checkpoints", "ssmjax.data"},
    {"ssmjax.training", "ssmjax.generation", "ssmjax.diffusion", "ssmjax.factory"},
    {"vlmjax"},
    {"experiments"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}

# Subclasses a TFDS builder, so it cannot defer the import; `ssmjax.data.tfds` imports the file inside a function.
LOADED_LAZILY = {"ssmjax/data/builders.py"}


def layer_of(module: str) -> str | None:
    """The layer that a dotted name belongs to; None for the facade `ssmjax` itself and for other projects."""
    parts = module.split(".")
    if parts[0] in ("vlmjax", "experiments"):
        return parts[0]
    return next((name for name in (".".join(parts[:2]),) if name in RANK), None)


def violations() -> list[str]:
    found = []
    for path in python_files(*LIBRARY, "experiments"):
        name = relative(path)
        own = layer_of(name.removesuffix(".py").replace("/", "."))
        for module, line, _ in imports(path):
            other = layer_of(module)
            if own and other and RANK[other] > RANK[own]:
                found.append(f"{name}:{line} imports {module}")
    return found


def test_imports_go_one_way():
    assert violations() == []


def test_no_import_circle():
    """Inside a layer, too, of what modules import as they are loaded; `graphlib` names a circle."""
    files = {
        relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in python_files(*LIBRARY)
    }
    graph = {}
    for name, path in files.items():
        modules = [module for module, _, top_level in imports(path) if top_level]
        found = (m if m in files else m.rpartition(".")[0] for m in modules)
        graph[name] = {module for module in found if module in files and module != name}
    order = tuple(graphlib.TopologicalSorter(graph).static_order())
    assert len(order) == len(files)


def test_every_subpackage_has_a_layer():
    tops = {relative(path).split("/")[1].removesuffix(".py") for path in python_files("ssmjax")} - {"__init__"}
    assert {f"ssmjax.{top}" for top in tops} <= set(RANK)


NAMESPACE_ONLY = ("ssmjax/checkpoints/torch_file.py", "argparse.Namespace")
"""Parses no command line: checkpoints of other programs hold their arguments as an `argparse.Namespace`."""


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("ssmjax/ops", ("flax",)),  # pure functions of arrays
        ("ssmjax/training", ("ssmjax.ops", "ssmjax.layers", "ssmjax.models")),  # knows losses, not models
        ("ssmjax/diffusion", ("ssmjax.ops", "ssmjax.layers", "ssmjax.models")),  # knows denoisers, not models
        ("ssmjax", ("vlmjax", "experiments", "tests", "argparse", "matplotlib", "tyro")),
        ("vlmjax", ("experiments", "tests", "argparse", "matplotlib", "tyro")),
        ("benchmarks", ("experiments",)),
    ],
)
def test_a_folder_does_not_import(folder, forbidden):
    found = [
        f"{relative(path)}:{line} imports {module}"
        for path in python_files(folder)
        for module, line, _ in imports(path)
        if any(module == name or module.startswith(f"{name}.") for name in forbidden)
        and (relative(path), module) != NAMESPACE_ONLY
    ]
    assert found == []


def test_heavy_libraries_are_imported_inside_functions():
    heavy = {"huggingface_hub", "orbax", "PIL", "safetensors", "sklearn", "tensorflow", "tensorflow_datasets", "torch"}
    found = [
        f"{relative(path)}:{line} imports {module}"
        for path in python_files(*LIBRARY)
        if relative(path) not in LOADED_LAZILY
        for module, line, top_level in imports(path)
        if top_level and module.split(".")[0] in heavy
    ]
    assert found == []


def test_the_library_does_not_print():
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files(*LIBRARY)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_only_compat_looks_at_versions():
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in python_files(*LIBRARY)
        if relative(path) != "ssmjax/_compat.py"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(part, ast.Attribute) and part.attr in ("__version__", "__version_info__")
            for part in ast.walk(node)
        )
    ]
    assert found == []
