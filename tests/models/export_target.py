"""Exported programs of layers, steps and models, run here: `python -m tests.models.export_target [NAME...]`.

Each is exported for a batch of any size and for CPUs, CUDA and TPUs at once, and called on this machine's device with
two batch sizes: it gives what the function gives. Without names, everything of the registries is run.
"""

import sys

import jax
import numpy as np
from jax import export

from tests.layers import quick
from tests.models.registry_cases import case, failures, layer_names, model_names, step_case, step_names

__all__ = ["check", "check_step", "lower"]

PLATFORMS = ("cpu", "cuda", "tpu")


def lower(it):
    """The exported program of a case, whose batch is a symbol."""
    (b,) = export.symbolic_shape("b")

    def symbolic(v):
        return jax.ShapeDtypeStruct((b, *v.shape[1:]), v.dtype) if v.shape else v

    return export.export(jax.jit(it.run), platforms=PLATFORMS)(it.state, jax.tree.map(symbolic, it.inputs))


def check(name, make=case):
    """Raises if the exported program gives other numbers."""
    program = lower(make(name, 2))
    for batch in (1, 3):
        it = make(name, batch)
        args = it.arguments()
        got, wanted = (jax.tree.leaves(f(*args)) for f in (program.call, quick.jit(it.run)))
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs.shape
            if not ours.size:  # the window of a layer without a convolution
                continue
            ours, theirs = (np.nan_to_num(np.asarray(v), neginf=-1e9) for v in (ours, theirs))
            error = np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-6)
            # Another form may be compiled for a batch that is known; a GPU's matrix products have ten bits by default.
            assert error < (1e-4 if jax.default_backend() == "cpu" else 1e-2), f"batch {batch}: {error:.1e}"


def check_step(name):
    """The same of a layer's step."""
    check(name, step_case)


if __name__ == "__main__":
    named = sys.argv[1:]
    wrong = failures(check, named or [*layer_names(), *model_names()])
    steps = failures(check_step, [name for name in step_names() if not named or name in named])
    wrong = "\n".join(part for part in (wrong, steps) if part)
    print(wrong or f"all programs run on {jax.devices()[0].device_kind} as exported")
    sys.exit(bool(wrong))
