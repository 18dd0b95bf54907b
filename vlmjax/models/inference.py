"""Models as they run fastest when nothing is trained: parameters in half precision, and each block's on their own."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.layers.common.stack import unstack
from vlmjax.models.clip import CLIPText
from vlmjax.models.language import CausalLM
from vlmjax.models.qwen_tower import QwenVisionTower
from vlmjax.models.towers import VisionTower

__all__ = ["for_inference"]

_STACKED = (CLIPText, CausalLM, QwenVisionTower, VisionTower)


def for_inference(model: nnx.Module, dtype: DTypeLike = jnp.bfloat16) -> nnx.Module:
    """Casts a model's parameters, takes its stacks of blocks apart and joins products of one input, in place.

    A step of decoding reads every parameter once. In float32 that is twice the bytes, and out of a stack each block's
    parameters would be copied first. Queries, keys and values are one product, and so are gate and up of an MLP: for
    few tokens, smaller ones leave a part of a GPU idle. The price is a compile time that grows with the depth, and that
    the model can no longer be saved. What is computed in is the configuration's `dtype`, as before.

    Args:
        model: A model of this package.
        dtype: The dtype of the parameters.

    Returns:
        The same model.

    >>> import vlmjax
    >>> model = for_inference(vlmjax.create_model("llama_nano", depth=2, dtype="bfloat16"))
    >>> model.layers[1].attn.qkv.kernel.dtype
    dtype(bfloat16)
    """
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state))
    for _, module in list(nnx.iter_graph(model)):
        if isinstance(module, _STACKED) and not isinstance(module.layers, list):
            blocks = unstack(module.layers)
            for block in blocks:
                block.attn.join()
                block.mlp.join()
            module.layers = nnx.data(blocks)
    return model
