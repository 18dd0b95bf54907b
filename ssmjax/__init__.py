"""Structured state space models in JAX and Flax.

    import ssmjax

    model = ssmjax.create_model("vim_nano", num_classes=10)
    print(ssmjax.summary(model, (1, 32, 32, 3)))

Nothing is imported until it is used, so that `import ssmjax` costs nothing: no model, no kernel, no data library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmjax import ops
    from ssmjax.checkpoints.hub import load_pretrained, save_pretrained
    from ssmjax.factory import create_model
    from ssmjax.generation import generate
    from ssmjax.models.registry import list_models, model_config
    from ssmjax.models.summary import summary
    from ssmjax.ops.backend import use_implementation

__all__ = [
    "__version__",
    "create_model",
    "generate",
    "list_models",
    "load_pretrained",
    "model_config",
    "ops",
    "save_pretrained",
    "summary",
    "use_implementation",
]

__version__ = "0.1.0"

_HOMES = {
    "create_model": "ssmjax.factory",
    "generate": "ssmjax.generation",
    "list_models": "ssmjax.models.registry",
    "load_pretrained": "ssmjax.checkpoints.hub",
    "model_config": "ssmjax.models.registry",
    "save_pretrained": "ssmjax.checkpoints.hub",
    "summary": "ssmjax.models.summary",
    "use_implementation": "ssmjax.ops.backend",
}
_SUBMODULES = ("checkpoints", "data", "diffusion", "generation", "init", "layers", "models", "ops", "training")


def __getattr__(name: str) -> Any:
    """Imports a public name, or a subpackage, when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"ssmjax.{name}")
    raise AttributeError(f"module 'ssmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
