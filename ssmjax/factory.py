"""Models by name with fresh or with saved parameters: what stands above both the registry and the checkpoints."""

from pathlib import Path
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from ssmjax.checkpoints.hub import load_pretrained
from ssmjax.models import registry

__all__ = ["create_model"]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    dtype: DTypeLike | None = None,
    pretrained: str | Path | None = None,
    **overrides: Any,
) -> nnx.Module:
    """Builds a model by name, with fresh or with saved parameters.

    Args:
        name: One of `list_models()`, such as `"vim_tiny"`.
        num_classes: The number of outputs; None keeps that of the named size.
        seed: Determines the initial parameters.
        dtype: What to compute in, `"float32"` (the default of all named sizes), `"bfloat16"` or `"float16"`. Fresh
            parameters and logits are float32 in any case.
        pretrained: A folder that `load_pretrained` reads, or a name on the Hugging Face hub: its parameters are loaded,
            and its configuration is used in place of the named size's.
        **overrides: Further fields of the family's configuration, such as `img_size=32` or `depth=4`. A dictionary is a
            change of a nested configuration.

    Returns:
        A Flax NNX module with a `config`.

    Raises:
        ValueError: The name or an option is unknown (the message has the near ones), or a value does not fit.

    >>> model = create_model("vim_nano", num_classes=10, depth=2)
    >>> model.config.depth, model.config.num_classes
    (2, 10)
    """
    if pretrained is None:
        return registry.create_model(name, num_classes=num_classes, seed=seed, dtype=dtype, **overrides)
    family = registry.family_of(registry.model_config(name))
    given = {"num_classes": num_classes, "dtype": dtype}
    overrides |= {field: value for field, value in given.items() if value is not None}
    model = load_pretrained(pretrained, seed=seed, **overrides)
    if registry.family_of(model.config) != family:
        raise ValueError(
            f"create_model: {str(pretrained)!r} holds a {registry.family_of(model.config)} model, and {name!r} is a "
            f"{family} model. Give a name of its own family, or use load_pretrained."
        )
    return model
