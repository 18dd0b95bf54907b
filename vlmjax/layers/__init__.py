"""What the towers and language models are made of: transformer blocks, rotary positions, projectors, mergers."""

from vlmjax.layers.projector import PROJECTORS, Projector
from vlmjax.layers.rope import Llama3Scaling, rope_angles, rotate
from vlmjax.layers.transformer import BlockSize, TransformerBlock

__all__ = ["PROJECTORS", "BlockSize", "Llama3Scaling", "Projector", "TransformerBlock", "rope_angles", "rotate"]
