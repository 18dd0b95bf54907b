"""Models: layers and a configuration each, found by name through the registry."""

from ssmjax.models.family import Family, HFLayout, Part
from ssmjax.models.registry import (
    create_model,
    get_family,
    list_models,
    model_config,
    register_family,
    register_model,
)
from ssmjax.models.summary import summary

__all__ = [
    "Family",
    "HFLayout",
    "Part",
    "create_model",
    "get_family",
    "list_models",
    "model_config",
    "register_family",
    "register_model",
    "summary",
]
