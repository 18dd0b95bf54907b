"""Hierarchical image classifiers: VMamba, its cross-scan alone, MambaVision, its mixer alone."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from ssmjax import ops
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import mambavision, vmamba
from ssmjax.layers.selective.half_mamba import HalfMamba
from ssmjax.layers.vision.ss2d import scan_directions
from ssmjax.models import registry
from tests.parity.harness import Dump, family

Arrays = Mapping[str, np.ndarray]


@family("cross_scan")
def run_cross_scan(dump: Dump) -> Arrays:
    x = dump.inputs(["x"])["x"]
    tokens, results = rearrange(x, "b d y x -> b (y x) d"), {}
    for number, kind in enumerate(("cross", "rows", "rows_both_ways")):
        orders = scan_directions(kind, *x.shape[2:])
        scanned = ops.cross_scan(tokens, orders)
        results[f"out/scan{number}"] = rearrange(scanned, "b l k d -> b k d l")
        results[f"out/merge{number}"] = rearrange(ops.cross_merge(scanned, orders), "b l d -> b d l")
    return results


@family("vmamba")
def run_vmamba(dump: Dump) -> Arrays:
    inputs = dump.inputs(["x", "target"])
    theirs = {**dump.config, "imgsize": inputs["x"].shape[2:]}
    config = vmamba.config_from_reference(theirs)
    model = nnx.eval_shape(lambda: registry.build("vmamba", config))
    set_model_arrays(model, vmamba.convert(dump.section("param/"), config))
    outputs, gradients = _run(model, inputs, "stage", channels_first=theirs["norm_layer"] != "ln")
    return outputs | _named(vmamba.to_reference(gradients, config))


@family("mambavision")
def run_mambavision(dump: Dump) -> Arrays:
    inputs = dump.inputs(["x", "target"])
    theirs = {name: value for name, value in dump.config.items() if name != "img"}
    config = mambavision.config_from_reference({**theirs, "resolution": inputs["x"].shape[2:]})
    model = nnx.eval_shape(lambda: registry.build("mambavision", config))
    set_model_arrays(model, mambavision.convert(dump.section("param/"), config))
    outputs, gradients = _run(model, inputs, "level", channels_first=True)
    return outputs | _named(mambavision.to_reference(gradients, config))


@family("mambavision_mixer")
def run_mixer(dump: Dump) -> Arrays:
    inputs, parameters = dump.inputs(["u"], ["gy"]), dump.section("param/")
    d, (e, taps) = inputs["u"].shape[2], parameters["conv1d_x.weight"].shape[::2]
    layer = nnx.eval_shape(lambda: HalfMamba(d, d_conv=taps, expand=2 * e // d, rngs=nnx.Rngs(0)))
    set_model_arrays(layer, mambavision.MIXER.to_ours(parameters, model_arrays(layer)))
    definition, state = nnx.split(layer)
    y, pull = jax.vjp(jax.jit(lambda state, u: nnx.merge(definition, state)(u)), state, inputs["u"])
    results = {"out/y": np.asarray(y)}
    if "gy" in inputs:
        of_state, of_u = pull(jnp.asarray(inputs["gy"]))
        results |= _named(mambavision.MIXER.to_source(model_arrays(nnx.merge(definition, of_state)))) | {
            "grad/u": np.asarray(of_u)
        }
    return results


def _named(gradients: Arrays) -> Arrays:
    return {f"grad/{name}": x for name, x in gradients.items()}


def _run(model, inputs, stage: str, channels_first: bool) -> tuple[Arrays, Arrays]:
    """The outputs by their names in a dump, and the gradients by our names."""
    definition, parameters, rest = nnx.split(model, nnx.Param, ...)
    images = rearrange(inputs["x"], "b d y x -> b y x d")
    target = inputs["target"].astype(np.int32)
    outputs, gradients = _outputs_and_grads(definition, parameters, rest, images, target)
    maps = outputs.pop("maps")
    if channels_first:
        maps = [rearrange(x, "b y x d -> b d y x") for x in maps]
    named = dict(zip(["patch_embed", *(f"{stage}{i}" for i in range(len(maps) - 1))], maps, strict=True))
    named = {f"out/{name}": np.asarray(x) for name, x in {**outputs, **named}.items()}
    trained = nnx.split(model, nnx.Param, ...)[1]
    of_ours = model_arrays(nnx.merge(definition, gradients, rest))
    return named, {name: of_ours[name] for name in _flat_names(trained)}


def _flat_names(state) -> set[str]:
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


# A model runs once on tiny arrays: most of the compiler's work would be wasted.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _outputs_and_grads(definition, parameters, rest, images, target):
    def loss(parameters):
        model = nnx.merge(definition, parameters, rest)
        maps = model.features(images)
        logits = model.classify(maps[-1])
        value = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        return value, {"logits": logits, "loss": value, "maps": _maps(model, images, maps)}

    return jax.grad(loss, has_aux=True)(parameters)[::-1]


def _maps(model, images, maps):
    """The embedding and what leaves each stage: the original's stages end with their down-sampling."""
    stages = model.stages if hasattr(model, "stages") else model.levels
    embed = model.embed if hasattr(model, "embed") else model.patch_embed
    left = [embed(jnp.asarray(images))]
    for stage, x in zip(stages, maps, strict=True):
        left.append(x if stage.downsample is None else stage.downsample(x))
    return left
