"""Vision-language models with a learned token merge, built on ssmjax.

    import vlmjax

    model = vlmjax.create_model("llava_nano")

The package may import `ssmjax`; `ssmjax` never imports it. Nothing is imported until it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ssmjax import __version__

if TYPE_CHECKING:
    from vlmjax.create import create_model, list_models, load_pretrained, save_pretrained
    from vlmjax.saving import load_merger, save_merger
    from vlmjax.training import train_merger

__all__ = [
    "__version__",
    "create_model",
    "list_models",
    "load_merger",
    "load_pretrained",
    "save_merger",
    "save_pretrained",
    "train_merger",
]

_HOMES = dict.fromkeys(("create_model", "list_models", "load_pretrained", "save_pretrained"), "vlmjax.create") | {
    "load_merger": "vlmjax.saving",
    "save_merger": "vlmjax.saving",
    "train_merger": "vlmjax.training",
}
_SUBMODULES = ("checkpoints", "conversation", "layers", "metrics", "models", "ops", "processing", "training")


def __getattr__(name: str) -> Any:
    """Imports a public name, or a subpackage, when it is first asked for (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"vlmjax.{name}")
    raise AttributeError(f"module 'vlmjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES})
