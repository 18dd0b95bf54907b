"""Fused attention on NVIDIA GPUs, `jax.nn.dot_product_attention` through cuDNN: nothing of size (l m) is stored."""

import functools

import jax
import jax.numpy as jnp

from ssmjax.ops.attention.xla import attention_xla

__all__ = ["attention_cudnn", "supports"]

MOST = 128
"""The widest head that cuDNN takes on every GPU it runs on."""


def attention_cudnn(q, k, v, lengths, causal, scale):
    """Returns the outputs (b l h p); on another platform than CUDA the same call runs in XLA's form.

    Args:
        q: (b l h p).
        k: (b m g p).
        v: (b m g p).
        lengths: (b), how many keys of each row are real, or None.
        causal: Whether a query sees no later key.
        scale: The factor of the products.
    """
    l, m = q.shape[1], k.shape[1]

    def fused(q, k, v, lengths):
        options = dict(scale=scale, is_causal=causal, implementation="cudnn")
        if lengths is None:
            return jax.nn.dot_product_attention(q, k, v, **options)
        # A row without keys is zeros, which cuDNN does not promise.
        read = jnp.maximum(lengths, 1).astype(jnp.int32)
        y = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=read, **options)
        return jnp.where((lengths > 0)[:, None, None, None], y, 0)

    def plain(q, k, v, lengths):
        allowed = (jnp.arange(m)[None] <= jnp.arange(l)[:, None])[None, None] if causal else None
        if lengths is not None:
            real = (jnp.arange(m)[None] < lengths[:, None])[:, None, None]
            allowed = real if allowed is None else allowed & real
        return attention_xla(q, k, v, allowed, None, scale)

    return jax.lax.platform_dependent(q, k, v, lengths, cuda=fused, default=plain)


def supports(q, k, v, *, causal: bool, plain: bool) -> str | None:
    """None if cuDNN takes the call, else the condition that failed.

    Args:
        q: The queries.
        k: The keys.
        v: The values.
        causal: Whether a query sees only the keys before it.
        plain: Whether there is no mask (but lengths), no segment, no bias and no offset.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        return f"cuDNN takes bfloat16 or float16, not {q.dtype}"
    if not plain or (causal and q.shape[1] != k.shape[1]):
        return "masks, segments, key biases and caches go through XLA"
    if q.shape[-1] > MOST or q.shape[-1] % 8:
        return f"a head must be at most {MOST} wide, a multiple of 8, not {q.shape[-1]}"
    if min(q.shape[0], q.shape[1], k.shape[1]) == 0:
        return "the call is empty"
    return _device_lacks()


@functools.cache
def _device_lacks() -> str | None:
    """The platform does not tell the compute capability, so the devices are asked once."""
    if jax.default_backend() != "gpu":
        return "there is no NVIDIA GPU"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability is None or float(capability) < 8.0:
        return f"the GPU's compute capability is {capability}, below 8.0"
    return None
