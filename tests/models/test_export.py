"""`jax.export` with a symbolic batch: one program for all batch sizes, lowered for each platform, which runs here."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export

import ssmjax
from ssmjax.layers import DSS, S4, S4D, BiMamba, Mamba
from tests.layers import quick
from tests.models import export_target
from tests.models.registry_cases import layer_names, model_names, step_names

# The checks of annotations do not know symbols.
pytestmark = pytest.mark.usefixtures("as_a_user")

PLATFORMS = ("cpu", "cuda", "tpu")


def symbolic(tree):
    """Specs with a symbol for the batch."""
    (b,) = export.symbolic_shape("b")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), tree)


def check(module, args, method="__call__"):
    """A module's program for any batch gives for two rows what the module gives."""
    definition, state = nnx.split(module)

    def run(state, args):
        return getattr(nnx.merge(definition, state), method)(*args)

    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    exported = export.export(jax.jit(run), platforms=PLATFORMS)(specs, symbolic(args))
    chex.assert_trees_all_close(exported.call(state, args), quick.jit(run)(state, args), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [Mamba, BiMamba])
def test_mixers(make):
    layer = quick.lively(lambda: make(8, d_state=4, rngs=nnx.Rngs(0)))
    check(layer, (jax.random.normal(jax.random.key(0), (2, 20, 8)),))


@pytest.mark.parametrize("make", [S4, S4D, DSS])
def test_steps(make):
    layer = quick.made(lambda: make(8, d_state=4, l_max=16, rngs=nnx.Rngs(0)))
    check(layer, (jax.random.normal(jax.random.key(0), (2, 8)), layer.init_state(2)), "step")


@pytest.mark.parametrize(
    "name",
    [
        "Mamba2",
        "CausalAttention",
        *(pytest.param(name, marks=pytest.mark.slow) for name in [*layer_names(), *model_names()]),
    ],
)
def test_every_layer_and_model(name):
    export_target.check(name)


@pytest.mark.parametrize(
    "name", ["Mamba3(siso)", *(pytest.param(name, marks=pytest.mark.slow) for name in step_names())]
)
def test_every_step(name):
    export_target.check_step(name)


def test_a_model():
    model = quick.lively(lambda: ssmjax.create_model("vim_nano", img_size=8, d_model=16, depth=1, d_state=4))
    check(model, (jnp.ones((2, 8, 8, 3)),))
