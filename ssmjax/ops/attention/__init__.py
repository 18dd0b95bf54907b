"""Dot-product attention, with what decoding keeps of the keys and values."""

from ssmjax.ops.attention.api import attention, attention_weights
from ssmjax.ops.attention.cache import KVCache, append_keys, empty_cache

__all__ = ["KVCache", "append_keys", "attention", "attention_weights", "empty_cache"]
