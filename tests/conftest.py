"""What every test runs under: CPU, rank promotion raises, a key used twice raises, compiled programs are cached.

Warnings are errors and annotations are checked at run time: see `[tool.pytest.ini_options]` in pyproject.toml.
This file must not import ssmjax: jaxtyping's import hook has to be in place first.
"""

import importlib.metadata
import os
import platform
from pathlib import Path

# Before jax is imported. A run on an accelerator sets JAX_PLATFORMS itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Two thirds of the tests' time is XLA compiling tiny programs. Its older code generator for fusions, where jaxlib still
# has it, and one part a program make that 2.5 to 4 times shorter. What is optimized stays the same, and so do results,
# up to rounding; `make test-newest` runs without. An unknown flag ends the process: hence the look at the version.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_cpu_parallel_codegen_split_count=1"]
    + ["--xla_cpu_use_fusion_emitters=false"]
    * importlib.metadata.version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10."))
    + [os.environ.get("XLA_FLAGS", "")]
)

import flax
import jax
import jaxtyping
import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ssmjax" / "xla"

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_report_header() -> str:
    """Says which versions the tests ran on."""
    return (
        f"python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__} on {jax.default_backend()}"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what is many programs to compile: examples of layers and models, and shape tests of options."""
    examples = ("ssmjax.layers.", "ssmjax.models.", "ssmjax.diffusion.")
    for item in items:
        example = isinstance(item, pytest.DoctestItem) and item.name.startswith(examples)
        option = "layers/test_registry.py" in item.nodeid and "(" in item.name
        if example or option:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def key() -> jax.Array:
    """The same fresh random key in every test."""
    return jax.random.key(0)


@pytest.fixture
def as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the run-time check of annotations off, as it is for users, so that the library's own errors are met."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
