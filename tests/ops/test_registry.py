"""Every registered op with each of its implementations: shapes, dtypes, finite values, with and without jit."""

import chex
import jax
from absl.testing import parameterized

from ssmjax import ops

CALLS = [
    (f"{op.name}_{implementation}", op, {"implementation": implementation} if implementation else {})
    for op in ops.registered_ops()
    for implementation in op.implementations or ("",)
    if "pallas" not in implementation  # kernels need their GPU: tests/gpu, and the simulator of tests/ops
]


class EveryOpTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*CALLS)
    def test_outputs(self, op, chosen):
        args, kwargs = op.example(jax.random.key(0))
        arrays = [v for v in args if isinstance(v, jax.Array)]
        others = [v for v in args if not isinstance(v, jax.Array)]
        outputs = self.variant(lambda *arrays: op.function(*arrays, *others, **kwargs, **chosen))(*arrays)
        chex.assert_trees_all_equal_shapes_and_dtypes(outputs, op.expected(*args, **kwargs))
        chex.assert_tree_all_finite(outputs)
        chex.assert_trees_all_close(outputs, op.function(*args, **kwargs), rtol=1e-5, atol=1e-5)

    @parameterized.named_parameters(*CALLS)
    def test_gradients_are_finite(self, op, chosen):
        args, kwargs = op.example(jax.random.key(0))
        arrays = [v for v in args if isinstance(v, jax.Array)]
        others = [v for v in args if not isinstance(v, jax.Array)]

        def loss(arrays):
            return sum((v**2).sum() for v in jax.tree.leaves(op.function(*arrays, *others, **kwargs, **chosen)))

        grads = jax.jit(jax.grad(loss))(arrays)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, arrays)
        chex.assert_tree_all_finite(grads)
