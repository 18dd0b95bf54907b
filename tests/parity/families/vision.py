"""Hierarchical image classifiers: VMamba, and its cross-scan alone."""

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
from ssmjax.checkpoints.from_torch import vmamba
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
    images = rearrange(inputs["x"], "b d y x -> b y x d")
    outputs, gradients = _outputs_and_grads(*_split(model), images, inputs["target"].astype(np.int32))
    maps = outputs.pop("maps")
    if theirs["norm_layer"] in ("ln2d", "bn"):
        maps = {name: rearrange(x, "b y x d -> b d y x") for name, x in maps.items()}
    gradients = vmamba.to_reference(model_arrays(gradients), config)
    results = {f"out/{name}": np.asarray(x) for name, x in {**outputs, **maps}.items()}
    return results | {f"grad/{name}": x for name, x in gradients.items()}


def _split(model):
    definition, parameters, rest = nnx.split(model, nnx.Param, ...)
    return definition, parameters, rest


@functools.partial(jax.jit, static_argnums=0)
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
    left = {"patch_embed": model.patch_embed(jnp.asarray(images))}
    for i, (stage, x) in enumerate(zip(model.stages, maps, strict=True)):
        left[f"stage{i}"] = x if stage.downsample is None else stage.downsample(x)
    return left
