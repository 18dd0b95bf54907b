"""Weights of other programs: how the folders of the Hugging Face hub map to the models here, both ways."""

from vlmjax.checkpoints.hf_language import LLAMA, QWEN2
from vlmjax.checkpoints.hf_llava import LLAVA, LLAVA_NEXT
from vlmjax.checkpoints.hf_original import LLAVA_NEXT_ORIGINAL, LLAVA_ORIGINAL, VILA
from vlmjax.checkpoints.hf_qwen2_vl import QWEN2_VL
from vlmjax.checkpoints.hf_towers import CLIP, CLIP_VISION, SIGLIP_VISION

__all__ = [
    "CLIP",
    "CLIP_VISION",
    "LLAMA",
    "LLAVA",
    "LLAVA_NEXT",
    "LLAVA_NEXT_ORIGINAL",
    "LLAVA_ORIGINAL",
    "QWEN2",
    "QWEN2_VL",
    "SIGLIP_VISION",
    "VILA",
]
