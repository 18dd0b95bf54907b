"""What every test runs under: CPU, rank promotion raises, a key used twice raises, compiled programs are cached.

Warnings are errors and annotations are checked at run time: see `[tool.pytest.ini_options]` in pyproject.toml.
This file must not import ssmjax: jaxtyping's import hook has to be in place first.
"""

import functools
import gc
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

# Before jax is imported. A run on an accelerator sets JAX_PLATFORMS itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Two thirds of the tests' time is XLA compiling tiny programs that run once. Little optimization by LLVM, its older
# code generator for fusions, where jaxlib still has it, and one part a program make that 4 to 6 times shorter. Passes
# over HLO stay the same, and so do results, up to rounding. XLA_FLAGS of the environment come last and so prevail. An
# unknown flag ends the process: hence the look at the version.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    + ["--xla_cpu_use_fusion_emitters=false"]
    * importlib.metadata.version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10."))
    + [os.environ.get("XLA_FLAGS", "")]
)

import flax
import jax
import jaxtyping
import pytest
from jax._src.interpreters import mlir

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssmjax" / "xla"

gc.set_threshold(50_000, 10, 10)  # looking through traced programs ever again was a twentieth of the time

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# A quarter of the tests' time went into making and freeing a context of MLIR for each of thousands of tiny programs.
# The function is internal to JAX, hence the look at whether it is there; without it the tests only take longer.
make_context = functools.cache(getattr(mlir, "make_ir_context", lambda: None))
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = make_context


def pytest_report_header() -> str:
    """Says which versions the tests ran on."""
    return (
        f"python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__} on {jax.default_backend()}"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out the folder whose modules import PyTorch, for seconds, where its tests would be left out in the end."""
    torch = Path(__file__).parent / "torch"
    return True if collection_path == torch and "not torch" in config.getoption("markexpr") else None


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what compiles many programs: examples of ops, layers and models, options, calls without jit."""
    examples = ("ssmjax.ops.", "ssmjax.layers.", "ssmjax.models.", "ssmjax.diffusion.")
    for item in items:
        example = isinstance(item, pytest.DoctestItem) and item.name.startswith(examples)
        option = "layers/test_registry.py" in item.nodeid and "(" in item.name
        if example or option or item.name.endswith("__without_jit"):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leaves what is imported by now out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def one_context_a_module() -> Iterator[None]:
    """Lets the shared context go, with the constants of the programs that were lowered in it."""
    yield
    make_context.cache_clear()


@pytest.fixture
def key() -> jax.Array:
    """The same fresh random key in every test."""
    return jax.random.key(0)


@pytest.fixture
def as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the run-time check of annotations off, as it is for users, so that the library's own errors are met."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
