"""The models: CLIP, towers, language models, LLaVA."""

from vlmjax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig, contrastive_loss
from vlmjax.models.language import CausalLM, LlamaConfig, LMCache, Qwen2Config
from vlmjax.models.llava import Llava, LlavaConfig
from vlmjax.models.towers import CLIPVisionConfig, SiglipVisionConfig, VisionTower

__all__ = [
    "CLIP",
    "CLIPConfig",
    "CLIPText",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "CausalLM",
    "LMCache",
    "LlamaConfig",
    "Llava",
    "LlavaConfig",
    "Qwen2Config",
    "SiglipVisionConfig",
    "VisionTower",
    "contrastive_loss",
]
