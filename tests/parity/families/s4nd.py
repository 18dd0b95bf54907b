"""S4ND: one layer's kernels and output, and the gradients of sum(y * w) by parameter and input.

The original has features second.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import s4nd
from ssmjax.layers.lti.s4nd import S4ND
from tests.parity.harness import Dump, family

DESCRIPTION = ("module", "B", "shape")
"""Keys of a dump's configuration that are no arguments of the original."""

SHORT = {"H": "d_model", "N": "d_state"}


class Gated(nnx.Module):
    """A layer as the original has it with `linear=False, final_act="glu"`."""

    def __init__(self, layer: S4ND, features: int, rngs: nnx.Rngs):
        self.layer = layer
        self.output_linear = nnx.Linear(features, 2 * features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.glu(self.output_linear(jax.nn.gelu(self.layer(x), approximate=False)))


@family("s4nd")
def run(dump: Dump) -> Mapping[str, np.ndarray]:
    theirs = {SHORT.get(name, name): value for name, value in dump.config.items() if name not in DESCRIPTION}
    state = dump.section("param/")
    arguments = s4nd.layer_arguments(theirs, state)
    gated = not theirs["linear"]
    model = nnx.eval_shape(lambda: _build(arguments, gated))
    set_model_arrays(model, _nested(s4nd.convert(state, arguments), gated))
    inputs = {name: jnp.moveaxis(x, 1, -1) for name, x in dump.inputs(["u", "w"]).items()}
    gradients, grad_u, y, kernels = _outputs_and_grads(model, inputs["u"], inputs["w"])
    gradients = {name.removeprefix("layer."): x for name, x in model_arrays(gradients).items()}
    results = {f"out/K{i}": kernel for i, kernel in enumerate(kernels)}
    results |= {"out/y": np.moveaxis(y, -1, 1), "grad_in/u": np.moveaxis(grad_u, -1, 1)}
    return results | {f"grad/{name}": x for name, x in s4nd.to_reference(gradients).items()}


def _build(arguments, gated):
    layer = S4ND(**arguments, rngs=nnx.Rngs(0))
    return Gated(layer, arguments["d_model"], nnx.Rngs(1)) if gated else layer


def _nested(arrays, gated):
    if not gated:
        return arrays
    return {name if name.startswith("output_linear") else f"layer.{name}": x for name, x in arrays.items()}


def _outputs_and_grads(model, u, w):
    definition, state = nnx.split(model)

    @jax.jit
    def compute(state, u):
        def loss(state, u):
            y = nnx.merge(definition, state)(u)
            return jnp.sum(y * w), y

        (gradients, grad_u), y = jax.grad(loss, (0, 1), has_aux=True)(state, u)
        model = nnx.merge(definition, state)
        layer = getattr(model, "layer", model)
        # The original's channels, (direction r c), are what each kernel returns by itself.
        kernels = [kernel(l) for kernel, l in zip(layer.kernels, u.shape[1:-1], strict=True)]
        return gradients, grad_u, y, [rearrange(kernel, "c l h -> c h l") for kernel in kernels]

    gradients, grad_u, y, kernels = compute(state, u)
    return nnx.merge(definition, gradients), grad_u, y, kernels
