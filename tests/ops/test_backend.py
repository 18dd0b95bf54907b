"""The choice of an implementation: sources in order, loud refusals, the report."""

import subprocess
import sys

import pytest

from ssmjax import ops
from ssmjax.ops import backend

BOTH = {"xla": None, "reference": None}


def test_auto_takes_the_first_that_supports_the_call():
    assert backend.resolve("some_op", "auto", BOTH) == "xla"
    assert backend.resolve("some_op", "auto", {"pallas_triton": "needs a GPU", **BOTH}) == "xla"


def test_argument_beats_context_beats_environment(monkeypatch):
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "reference")
    assert backend.resolve("some_op", "auto", BOTH) == "reference"
    with ops.use_implementation("xla"):
        assert backend.resolve("some_op", "auto", BOTH) == "xla"
        assert backend.resolve("some_op", "reference", BOTH) == "reference"
        with ops.use_implementation("auto"):
            assert backend.resolve("some_op", "auto", BOTH) == "xla"
    assert backend.resolve("some_op", "auto", BOTH) == "reference"


def test_context_for_some_ops_only():
    with ops.use_implementation("reference", "linear_scan"):
        assert backend.resolve("linear_scan", "auto", BOTH) == "reference"
        assert backend.resolve("selective_scan", "auto", BOTH) == "xla"


def test_a_named_implementation_never_falls_back():
    with pytest.raises(NotImplementedError, match="selective_scan has no 'pallas_triton' implementation yet"):
        backend.resolve("selective_scan", "pallas_triton", BOTH)
    with pytest.raises(
        NotImplementedError, match="pallas_triton.*use_implementation.*needs compute capability 8.0, got 7.5"
    ):
        with ops.use_implementation("pallas_triton"):
            backend.resolve("op", "auto", {"pallas_triton": "needs compute capability 8.0, got 7.5", **BOTH})
    with pytest.raises(NotImplementedError, match="no implementation takes this call"):
        backend.resolve("op", "auto", {"xla": "no"})


@pytest.mark.parametrize("where", ["argument", "context", "environment"])
def test_unknown_names_are_suggested(where, monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'pallas_triton'"):
        if where == "argument":
            backend.resolve("op", "palas_triton", BOTH)
        elif where == "context":
            with ops.use_implementation("palas_triton"):
                pass
        else:
            monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "palas_triton")
            backend.resolve("op", "auto", BOTH)
    with pytest.raises(ValueError, match="Did you mean 'linear_scan'"), ops.use_implementation("xla", "linear_scn"):
        pass


def test_report_says_what_and_why():
    backend.resolve("reported", "auto", {"pallas_triton": "needs a GPU", **BOTH}, "one detail")
    backend.resolve("reported", "auto", {"pallas_triton": "needs a GPU", **BOTH}, "one detail")
    line = "reported: xla (default): not pallas_triton: needs a GPU; one detail"
    assert ops.report().splitlines().count(line) == 1
    assert any(d.op == "reported" and d.chosen == "xla" for d in backend.decisions())


def test_import_loads_no_pallas():
    code = "import sys, ssmjax.ops; sys.exit(any(m.startswith('jax') and 'pallas' in m for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
