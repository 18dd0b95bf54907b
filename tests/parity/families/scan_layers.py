"""S5, the LRU and Event-SSM: one layer's output, and the gradients of sum(y * w) by parameter and input."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_flax import event_ssm, lru, s5
from ssmjax.checkpoints.from_torch import s5_pytorch
from ssmjax.layers import LRU, S5
from tests.parity.harness import Dump, family

DESCRIPTION = ("family", "module", "L")
"""Keys of a dump's configuration that are no arguments of the original."""


@family("s5")
def run_s5(dump: Dump) -> Mapping[str, np.ndarray]:
    theirs = _arguments(dump)
    rate = theirs.pop("step_rescale")
    arguments = s5.config_from_reference(theirs)
    layer = _loaded(lambda: S5(**arguments, rngs=nnx.Rngs(0)), s5.convert(dump.section("param/"), arguments))
    inputs = dump.inputs(["u", "w"])
    return _results(layer, inputs, functools.partial(s5.to_reference, arguments=arguments), rate=rate)


@family("event_ssm")
def run_event_ssm(dump: Dump) -> Mapping[str, np.ndarray]:
    arguments = event_ssm.config_from_reference(_arguments(dump))
    layer = _loaded(lambda: S5(**arguments, rngs=nnx.Rngs(0)), event_ssm.convert(dump.section("param/"), arguments))
    inputs = dump.inputs(["u", "w", "dts"])
    to_reference = functools.partial(event_ssm.to_reference, arguments=arguments)
    return _results(layer, inputs, to_reference, dts=inputs["dts"][None])


@family("lru")
def run_lru(dump: Dump) -> Mapping[str, np.ndarray]:
    arguments = lru.config_from_reference(_arguments(dump))
    layer = _loaded(lambda: LRU(**arguments, rngs=nnx.Rngs(0)), lru.convert(dump.section("param/"), arguments))
    return _results(layer, dump.inputs(["u", "w"]), lru.to_reference)


@family("s5_torch")
def run_s5_torch(dump: Dump) -> Mapping[str, np.ndarray]:
    state = dump.section("param/")
    arguments = s5_pytorch.layer_arguments(state)
    layer = _loaded(lambda: S5(**arguments, rngs=nnx.Rngs(0)), s5_pytorch.convert(state, arguments))
    return {"out/y": np.asarray(jax.jit(layer)(dump.inputs(["u"])["u"]))}


def _arguments(dump: Dump) -> dict[str, object]:
    return {name: value for name, value in dump.config.items() if name not in DESCRIPTION}


def _loaded(build, arrays) -> nnx.Module:
    layer = nnx.eval_shape(build)
    set_model_arrays(layer, arrays)
    return layer


def _results(layer, inputs, to_reference, **options) -> dict[str, np.ndarray]:
    """The originals take one sequence, (l h); ours is a batch of one."""
    definition, state = nnx.split(layer)

    @jax.jit
    def run(state, u, w):
        def loss(state, u):
            y = nnx.merge(definition, state)(u[None], **options)[0]
            return jnp.sum(y * w), y

        return jax.grad(loss, (0, 1), has_aux=True)(state, u)

    (gradients, grad_u), y = run(state, inputs["u"], inputs["w"])
    gradients = to_reference(model_arrays(nnx.merge(definition, gradients)))
    return {"out/y": np.asarray(y), "grad_in/u": np.asarray(grad_u)} | {
        f"grad/{name}": x for name, x in gradients.items()
    }
