"""Weights of other programs: how the folders of the Hugging Face hub map to the models here, both ways."""

from vlmjax.checkpoints.hf_language import LLAMA, QWEN2
from vlmjax.checkpoints.hf_llava import LLAVA
from vlmjax.checkpoints.hf_towers import CLIP, CLIP_VISION, SIGLIP_VISION

__all__ = ["CLIP", "CLIP_VISION", "LLAMA", "LLAVA", "QWEN2", "SIGLIP_VISION"]
