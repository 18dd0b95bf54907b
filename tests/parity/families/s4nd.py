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
from ssmjax.layers import Gate
from ssmjax.layers.lti.s4nd import S4ND
from tests.parity.harness import Dump, family

DESCRIPTION = ("module", "B", "shape")
"""Keys of a dump's configuration that are no arguments of the original."""

SHORT = {"H": "d_model", "N": "d_state"}


ACTIVATIONS = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "silu": jax.nn.silu, "relu": jax.nn.relu}
ACTIVATIONS |= {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus, "swish": jax.nn.silu}


class WithOutput(nnx.Module):
    """A layer as the original has it with `linear=False`: a GELU, a linear map and an activation follow."""

    def __init__(self, layer: S4ND, features: int, final_act: str | None, rngs: nnx.Rngs):
        self.layer, self.final_act = layer, final_act
        kind = "glu" if final_act == "glu" else "linear"
        self.output = Gate(features, channels=layer.channels, kind=kind, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS.get(self.final_act, lambda y: y)(self.output(self.layer(x)))


@family("s4nd")
def run(dump: Dump) -> Mapping[str, np.ndarray]:
    theirs = {SHORT.get(name, name): value for name, value in dump.config.items() if name not in DESCRIPTION}
    state = dump.section("param/")
    arguments = s4nd.layer_arguments(theirs, state)
    follows, final_act = not theirs.get("linear", True), theirs.get("final_act")
    model = nnx.eval_shape(lambda: build(arguments, follows, final_act))
    set_model_arrays(model, nested(s4nd.convert(state, arguments), follows))
    inputs = {name: jnp.moveaxis(x, 1, -1) for name, x in dump.inputs(["u", "w"]).items()}
    gradients, grad_u, y, kernels = _outputs_and_grads(model, inputs["u"], inputs["w"])
    gradients = {flat(name): x for name, x in model_arrays(gradients).items()}
    results = {f"out/K{i}": kernel for i, kernel in enumerate(kernels)}
    results |= {"out/y": np.moveaxis(y, -1, 1), "grad_in/u": np.moveaxis(grad_u, -1, 1)}
    return results | {f"grad/{name}": x for name, x in s4nd.to_reference(gradients, final_act).items()}


def build(arguments, follows, final_act):
    """The layer, with what follows it."""
    layer = S4ND(**arguments, rngs=nnx.Rngs(0))
    return WithOutput(layer, arguments["d_model"], final_act, nnx.Rngs(1)) if follows else layer


def nested(arrays, follows):
    """The converter's names as those of `WithOutput`."""
    if not follows:
        return arrays
    output = {name: name.replace("output_linear", "output.out") for name in arrays if name.startswith("output_linear")}
    return {output.get(name, f"layer.{name}"): x for name, x in arrays.items()}


def flat(name):
    """The inverse for one name."""
    return name.removeprefix("layer.").replace("output.out", "output_linear")


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
