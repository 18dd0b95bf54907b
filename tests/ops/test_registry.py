"""Every registered op with each of its implementations: shapes, dtypes, finite values, with and without jit."""

import functools

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


@functools.cache
def example(op):
    """Arrays of a call, whatever else it takes, and a function of the arrays and of options."""
    args, kwargs = op.example(jax.random.key(0))
    arrays = [v for v in args if isinstance(v, jax.Array)]
    others = [v for v in args if not isinstance(v, jax.Array)]
    return arrays, args, lambda arrays, **chosen: op.function(*arrays, *others, **kwargs, **chosen), kwargs


@functools.cache
def by_default(op):
    """Outputs without a choice of the implementation, of one program."""
    arrays, _, call, _ = example(op)
    return jax.jit(call)(arrays)


class EveryOpTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*CALLS)
    def test_outputs(self, op, chosen):
        arrays, args, call, kwargs = example(op)
        outputs = self.variant(functools.partial(call, **chosen))(arrays)
        chex.assert_trees_all_equal_shapes_and_dtypes(outputs, op.expected(*args, **kwargs))
        chex.assert_tree_all_finite(outputs)
        chex.assert_trees_all_close(outputs, by_default(op), rtol=1e-5, atol=1e-5)

    @parameterized.named_parameters(*CALLS)
    def test_gradients_are_finite(self, op, chosen):
        arrays, _, call, _ = example(op)

        def loss(arrays):
            return sum((v**2).sum() for v in jax.tree.leaves(call(arrays, **chosen)))

        grads = jax.jit(jax.grad(loss))(arrays)
        chex.assert_trees_all_equal_shapes_and_dtypes(grads, arrays)
        chex.assert_tree_all_finite(grads)
