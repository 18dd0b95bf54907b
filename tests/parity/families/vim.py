"""Vim: logits, features, the mean cross entropy with `in/target`, and its gradients by parameter."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
import optax
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import vim
from ssmjax.models import registry
from tests.parity.harness import Dump, family


@family("vim")
def run(dump: Dump) -> Mapping[str, np.ndarray]:
    inputs = dump.inputs(["x", "target"])
    config = vim.config_from_reference(dump.config)
    model = nnx.eval_shape(lambda: registry.build("vim", config))
    set_model_arrays(model, vim.convert(dump.section("param/"), config))
    images = rearrange(inputs["x"], "b d y x -> b y x d")
    outputs, gradients = _outputs_and_grads(*nnx.split(model), images, inputs["target"].astype(np.int32))
    gradients = vim.to_reference(model_arrays(nnx.merge(nnx.graphdef(model), gradients)), config)
    return {f"out/{name}": np.asarray(x) for name, x in outputs.items()} | {
        f"grad/{name}": x for name, x in gradients.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _outputs_and_grads(graphdef, state, images, target):
    def loss(state):
        logits = nnx.merge(graphdef, state)(images)
        features = nnx.merge(graphdef, jax.lax.stop_gradient(state)).features(images)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        return value, {"logits": logits, "features": features, "loss": value}

    gradients, outputs = jax.grad(loss, has_aux=True)(state)
    return outputs, gradients
