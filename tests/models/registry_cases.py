"""Every layer and every tiny model as one function of parameters and named arguments, for tests of whole registries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import layers
from ssmjax.layers import registered_layers
from ssmjax.models import registry
from ssmjax.models.config import override
from tests.layers import quick

__all__ = ["Case", "case", "failures", "layer_names", "model_names", "step_case", "step_names"]


class Case(NamedTuple):
    """What is called, and with what.

    Attributes:
        run: `run(state, inputs)`, a function of parameters and of arguments by name.
        make: Builds the module.
        state: Specs of its parameters.
        inputs: Specs of the arguments, with the batch first.
    """

    run: Any
    make: Any
    state: Any
    inputs: dict[str, Any]

    def arguments(self):
        """Random parameters and arguments."""
        rng = np.random.default_rng(0)

        def draw(v):
            x = rng.normal(size=v.shape) if jnp.issubdtype(v.dtype, jnp.floating) else rng.integers(0, 5, v.shape)
            return jnp.asarray(x, v.dtype)

        return nnx.split(quick.lively(self.make))[1], jax.tree.map(draw, self.inputs)


def layer_names() -> list[str]:
    """Of all layers of the registry."""
    return [entry.name for entry in registered_layers()]


def model_names() -> list[str]:
    """One name for each tiny configuration of every family, of vlmjax too."""
    registry.load_plugins()
    configs = {}
    for name in registry.list_models():
        config = registry.model_config(name)
        tiny = override(config, dict(registry.get_family(registry.family_of(config)).tiny), name)
        configs.setdefault(repr(tiny), name)
    return list(configs.values())


def step_names() -> list[str]:
    """Of the layers with a step, in one direction."""

    def steps(entry):
        layer = getattr(layers, entry.name.partition("(")[0])
        reads_ahead = any(way in entry.name for way in ("BiMamba", "exclusive", "inclusive"))
        # DSS without an l_max normalizes over the whole sequence, which a step does not know.
        return hasattr(layer, "step") and not reads_ahead and entry.name != "DSS(none)"

    return [entry.name for entry in registered_layers() if steps(entry)]


def case(name: str, batch: int) -> Case:
    """A call of a layer of the registry or of a model."""
    layer = next((entry for entry in registered_layers() if entry.name == name), None)
    if layer is not None:
        inputs = {"x": jax.ShapeDtypeStruct((batch, *layer.input_shape[1:]), jnp.float32)}
        return _case(lambda: layer.build(jnp.float32, nnx.Rngs(0)), inputs, lambda module, inputs: module(inputs["x"]))
    config = registry.model_config(name)
    family = registry.get_family(registry.family_of(config))
    config = override(config, dict(family.tiny), name)
    inputs = dict(family.inputs(config, batch))
    return _case(lambda: family.build(config, rngs=nnx.Rngs(0)), inputs, lambda module, inputs: module(**inputs))


def step_case(name: str, batch: int) -> Case:
    """A step of a layer of the registry."""
    layer = next(entry for entry in registered_layers() if entry.name == name)
    make = lambda: layer.build(jnp.float32, nnx.Rngs(0))  # noqa: E731
    state = jax.eval_shape(lambda: make().init_state(batch))
    inputs = {"u": jax.ShapeDtypeStruct((batch, layer.input_shape[-1]), jnp.float32), "state": state}
    return _case(make, inputs, lambda module, inputs: module.step(inputs["u"], inputs["state"]))


def failures(check, names) -> str:
    """What went wrong, a line each; empty where nothing did."""
    lines = []
    for name in names:
        try:
            check(name)
        except Exception as error:
            lines.append(f"{name}: {type(error).__name__}: {str(error)[:500]}")
    return "\n".join(lines)


def _case(make, inputs, call) -> Case:
    definition, state = nnx.split(nnx.eval_shape(make))
    return Case(lambda state, inputs: call(nnx.merge(definition, state), inputs), make, state, inputs)
