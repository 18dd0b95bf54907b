"""Every registered layer: shape, dtype and finiteness, with and without jit, and its gradients under bfloat16."""

import chex
import jax
import jax.numpy as jnp
from absl.testing import parameterized
from flax import nnx

from ssmjax import layers
from ssmjax.layers.registry import registered_layers
from tests.layers import quick

CASES = [(entry.name, entry) for entry in registered_layers()]


class EveryLayerTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*CASES)
    def test_forward(self, entry):
        definition, state = nnx.split(entry.build(jnp.float32, nnx.Rngs(0)))
        out = self.variant(lambda state, x: nnx.merge(definition, state)(x))(state, entry.example(jax.random.key(1)))
        _check(out, entry, jnp.float32)

    @parameterized.named_parameters(*CASES)
    def test_forward_and_gradients_in_bfloat16(self, entry):
        definition, state = nnx.split(entry.build(jnp.bfloat16, nnx.Rngs(0)))
        x = entry.example(jax.random.key(1), jnp.bfloat16)

        @quick.jit
        def run(state, x):
            out, pull_back = jax.vjp(lambda state, x: nnx.merge(definition, state)(x), state, x)
            return out, pull_back(out)

        out, gradients = run(state, x)
        _check(out, entry, jnp.bfloat16)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradients, (state, x))
        chex.assert_tree_all_finite(gradients)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients[0]))  # parameters stay float32


def _check(out, entry, dtype):
    chex.assert_shape(out, entry.output_shape)
    chex.assert_type(out, dtype)
    chex.assert_tree_all_finite(out)
    assert float(jnp.abs(out.astype(jnp.float32)).max()) > 1e-3


def test_every_module_of_the_package_is_registered():
    modules = {
        name
        for name in layers.__all__
        if isinstance(getattr(layers, name), type) and issubclass(getattr(layers, name), nnx.Module)
    }
    assert modules == {entry.name.split("(")[0] for entry in registered_layers()}
