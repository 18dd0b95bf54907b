"""What the towers and language models are made of: transformer blocks, rotary positions, projectors, mergers."""

from vlmjax.layers.merger import Merger, Resampler
from vlmjax.layers.projector import PROJECTORS, Projector, projected_tokens, space_to_channels
from vlmjax.layers.rope import Llama3Scaling, rope_angles, rotate
from vlmjax.layers.transformer import BlockSize, TransformerBlock

__all__ = [
    "PROJECTORS",
    "BlockSize",
    "Llama3Scaling",
    "Merger",
    "Projector",
    "Resampler",
    "TransformerBlock",
    "projected_tokens",
    "rope_angles",
    "rotate",
    "space_to_channels",
]
