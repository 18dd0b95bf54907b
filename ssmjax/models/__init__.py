"""Models: layers and a configuration each, found by name through the registry."""

from ssmjax.models.registry import create_model, list_models, model_config, register_model
from ssmjax.models.summary import summary

__all__ = ["create_model", "list_models", "model_config", "register_model", "summary"]
