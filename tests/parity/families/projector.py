"""Projectors of LLaVA: outputs and gradients. Those of VILA are other functions."""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from tests.parity.harness import Dump, family
from vlmjax.layers import Projector


@family("projector")
def projector(dump: Dump) -> Mapping[str, np.ndarray]:
    config = dump.config
    if config["op"] != "project" or config["model"] != "llava":
        raise NotImplementedError(f"no {config['op']} of {config['model']} yet")
    kind = str(config["mm_projector_type"])
    model = Projector(kind, config["mm_hidden_size"], config["hidden_size"], rngs=nnx.Rngs(0))
    table = table_of(kind)
    parameters = dump.section("param/")
    set_model_arrays(model, table.to_ours(parameters, model_arrays(model)))
    x, gy = (jnp.asarray(v) for v in dump.inputs(["x", "gy"]).values())
    definition, state = nnx.split(model)

    def loss(state, x):
        y = nnx.merge(definition, state)(x)
        return (y * gy).sum(), y

    (grad_state, grad_x), y = jax.grad(loss, (0, 1), has_aux=True)(state, x)
    gradients = table.to_source(model_arrays(nnx.merge(definition, grad_state)))
    found = {f"grad/{name}": g for name, g in gradients.items()}
    return found | {"out/y": np.asarray(y), "grad_in/x": np.asarray(grad_x)}


def table_of(kind: str) -> KeyTable:
    """A single linear map has no number; in a stack, those of the activations are left out."""
    deep = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    names = {f"{2 * i}.": i for i in range(int(deep[1]))} if deep else {"": 0}
    rules = []
    for theirs, ours in names.items():
        rules += [
            Rule(f"{theirs}weight", f"layers.{ours}.kernel", "linear"),
            Rule(f"{theirs}bias", f"layers.{ours}.bias"),
        ]
    return KeyTable(tuple(rules))
