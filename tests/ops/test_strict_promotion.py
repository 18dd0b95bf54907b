"""Nothing relies on jax's promotion of dtypes: forward and gradients are traced where it is refused."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ssmjax import ops
from ssmjax.layers import BatchNorm, registered_layers
from tests.layers import quick

LAYERS = [entry for entry in registered_layers() if "(" not in entry.name or "exclusive" in entry.name]
u = jnp.ones((2, 5, 8))


def trace(f, *args):
    """Traces a function and its gradient."""

    def run(*args):
        y, pull_back = jax.vjp(f, *args)
        return pull_back(y)

    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(run, *args)


@pytest.mark.parametrize("op", ops.registered_ops(), ids=lambda op: op.name)
def test_ops(op):
    args, options = op.example(jax.random.key(0))
    arrays = [v for v in args if isinstance(v, jax.Array)]
    others = [v for v in args if not isinstance(v, jax.Array)]
    for chosen in [{}, *({"implementation": name} for name in op.implementations if "pallas" not in name)]:
        trace(lambda *arrays, chosen=chosen: op.function(*arrays, *others, **options, **chosen), *arrays)


@pytest.mark.parametrize("entry", LAYERS, ids=lambda entry: entry.name)
@pytest.mark.parametrize("dtype", quick.first([jnp.bfloat16, jnp.float32]), ids=["bfloat16", "float32"])
def test_layers(entry, dtype):
    layer = nnx.eval_shape(lambda: entry.build(dtype, nnx.Rngs(0)))
    definition, state = nnx.split(layer)
    x = jax.eval_shape(lambda: entry.example(jax.random.key(1), dtype))
    keywords = inspect.signature(type(layer).__call__).parameters
    calls = [{}]
    if "mask" in keywords and not isinstance(layer, BatchNorm):
        calls = [{}, {"mask": jnp.ones(x.shape[:2], bool)}]
    for options in calls:
        trace(lambda state, x, options=options: nnx.merge(definition, state)(x, **options), state, x)


@pytest.mark.parametrize("name", quick.first(["s4", "s4d", "s5", "mamba", "dss", "lru"], 4))
def test_states_and_packed_sequences(name):
    from ssmjax.layers import make_mixer

    options = {"d_state": 4} | ({"l_max": 5} if name in ("s4", "dss") else {})
    definition, parameters = nnx.split(nnx.eval_shape(lambda: make_mixer(name, 8, options, rngs=nnx.Rngs(0))))
    ids, mask = jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 5), bool)
    more = {} if name == "mamba" else {"rate": 1.0}
    for options in ({"segment_ids": ids, "mask": mask}, {"mask": mask, **more}):

        def run(parameters, u, options=options):
            layer = nnx.merge(definition, parameters)
            _, state = layer(u, return_state=True, state=layer.init_state(2), **options)
            return layer.step(u[:, 0], state)[0]

        trace(run, parameters, u)
