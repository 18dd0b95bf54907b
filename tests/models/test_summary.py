"""The summary table and the count of operations behind it."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import ssmjax
from ssmjax.models.flops import count_flops
from ssmjax.models.summary import count_parameters


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("f", "shapes", "flops"),
    [
        (lambda x, y: x @ y, ((2, 3), (3, 4)), 48),
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), ((5, 2, 3), (5, 3, 4)), 240),
        (lambda x: x + 1, ((2, 3),), 6),
        (lambda x: x.sum(), ((2, 3),), 6),
        (lambda x: x.T.reshape(-1), ((2, 3),), 0),
        (lambda x: jax.lax.scan(lambda c, t: (c * t, None), jnp.ones(4), x)[0], ((7, 4),), 28),
        (jax.jit(lambda x: x * x), ((3,),), 3),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: x * x + x, x), ((3,),), 6),
    ],
)
def test_known_counts(f, shapes, flops):
    assert count_flops(f, *map(lambda shape: spec(*shape), shapes)) == flops


def test_convolutions_dense_and_depthwise():
    dense, depthwise = (
        nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(0)),
        nnx.Conv(8, 8, (3, 3), feature_group_count=8, use_bias=False, rngs=nnx.Rngs(0)),
    )
    assert count_flops(dense, spec(1, 5, 5, 3)) == 2 * 25 * 8 * 27
    assert count_flops(depthwise, spec(1, 5, 5, 8)) == 2 * 25 * 8 * 9


def test_scanned_and_unrolled_layers_count_the_same():
    def flops(**options):
        model = nnx.eval_shape(lambda: ssmjax.create_model("vim_nano", **options))
        definition, state = nnx.split(model)
        return count_flops(lambda state, x: nnx.merge(definition, state)(x), state, spec(1, 32, 32, 3))

    assert flops(depth=3) == flops(depth=3, unroll_layers=True)
    per_block = flops(depth=3) - flops(depth=2)
    assert flops(depth=8) == flops(depth=3) + 5 * per_block


def test_the_table():
    model = nnx.eval_shape(lambda: ssmjax.create_model("vim_tiny"))
    table = ssmjax.summary(model, (1, 224, 224, 3))
    lines = table.splitlines()
    assert lines[0] == "Vim: (1, 224, 224, 3) float32 -> (1, 1000) float32"
    assert any(line.startswith("layers.mixer.in_proj ") and line.endswith(" 3,538,944") for line in lines)
    assert lines[-1].startswith("7,148,008 parameters (28.6 MB), ")
    assert len({len(line) for line in lines[1:-1]}) == 1  # columns are aligned
    numbers = [int(line.split()[-1].replace(",", "")) for line in lines[3:-2]]
    assert sum(numbers) == count_parameters(model)
