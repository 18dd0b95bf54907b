"""Blocks and whole models around the state spaces: `S4Block`, the Annotated S4's model and S5's."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_flax import annotated_model, s5_model
from ssmjax.checkpoints.from_torch import s4, s4_model
from ssmjax.layers.common.gates import Gate
from ssmjax.models import registry
from ssmjax.models.sequence_classifier import SequenceConfig
from tests.parity.harness import Dump, family

Arrays = Mapping[str, np.ndarray]


class _Block(nnx.Module):
    """A state space and its gate, which is what the original calls a block; norm and residual are around it."""

    def __init__(self, layer: nnx.Module, gate: Gate):
        self.layer, self.gate = layer, gate

    def __call__(self, u):
        return self.gate(self.layer(u))


@family("s4_block")
def run_s4_block(dump: Dump) -> Arrays:
    state = dump.section("param/")
    description = {"family", "module", "note", "H", "N", "B", "L"}
    theirs = {name: value for name, value in dump.config.items() if name not in description}
    theirs |= {"d_model": dump.config["H"], "d_state": dump.config["N"]}
    cls, arguments = s4.layer_arguments(theirs, state, "layer.")

    def build() -> _Block:
        return _Block(cls(**arguments, rngs=nnx.Rngs(0)), Gate(dump.config["H"], kind="glu", rngs=nnx.Rngs(0)))

    block = nnx.eval_shape(build)
    set_model_arrays(block, s4_model.BLOCK.to_ours(state, model_arrays(block)))
    inputs = dump.section("in/")
    u = rearrange(inputs["u"], "b h l -> b l h")
    if "lengths" in inputs:  # the original masks the input, and lets the kernel ring on into the padding
        return {"out/y": _time_last(jax.jit(block)(_masked(u, inputs["lengths"])))}
    w = rearrange(inputs["w"], "b h l -> b l h")
    definition, parameters = nnx.split(block)

    @jax.jit
    def run(parameters, u):
        def loss(parameters, u):
            y = nnx.merge(definition, parameters)(u)
            return jnp.sum(y * w), y

        return jax.grad(loss, (0, 1), has_aux=True)(parameters, u)

    (gradients, of_u), y = run(parameters, u)
    named = s4_model.BLOCK.to_source(model_arrays(nnx.merge(definition, gradients)))
    results = {"out/y": _time_last(y), "grad_in/u": _time_last(of_u)}
    return results | {f"grad/{name}": x for name, x in named.items()}


@family("s4_annotated_model")
def run_s4_annotated_model(dump: Dump) -> Arrays:
    parameters, x = dump.section("param/"), dump.inputs(["x"])["x"]
    config = SequenceConfig(**annotated_model.layer_config("s4", parameters, x.shape[1]))
    model = _loaded(config, annotated_model.convert(parameters, "s4", config))
    return {"out/out": np.asarray(jax.nn.log_softmax(jax.jit(model)(x)))}


@family("s5_model")
def run_s5_model(dump: Dump) -> Arrays:
    theirs, inputs = dump.config["model"], dump.section("in/")
    statistics = {name: x for name, x in inputs.items() if name.startswith("batch_stats/")}
    config = s5_model.config_from_reference(theirs, dump.config["ssm"], in_features=dump.config["D"])
    model = _loaded(config, s5_model.convert(dump.section("param/") | statistics, config))
    options = {"train": theirs["training"]}
    if theirs["padded"]:
        options["lengths"] = inputs["lengths"].astype(np.int32)
    definition, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        model = nnx.merge(definition, state)
        return jax.nn.log_softmax(model(x, **options)), nnx.state(model)

    y, state = run(state, inputs["x"])
    results = {"out/out": np.asarray(y)}
    if theirs["training"]:
        after = s5_model.to_reference(model_arrays(nnx.merge(definition, state)), config)
        results |= {f"out/{name}": x for name, x in after.items() if name.startswith("batch_stats/")}
    return results


def _loaded(config: SequenceConfig, arrays: Arrays) -> nnx.Module:
    model = nnx.eval_shape(lambda: registry.build("sequence_classifier", config))
    set_model_arrays(model, arrays)
    return model


def _masked(u: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.where(np.arange(u.shape[1])[None, :, None] < lengths[:, None, None], u, 0)


def _time_last(x: jax.Array) -> np.ndarray:
    return np.asarray(rearrange(x, "b l h -> b h l"))
