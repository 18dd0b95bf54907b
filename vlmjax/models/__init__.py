"""The models: CLIP, towers, language models, LLaVA, VILA, Qwen2-VL; and how images and texts are put together."""

from vlmjax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig, contrastive_loss
from vlmjax.models.inference import for_inference
from vlmjax.models.interleave import IGNORE, Interleaved, interleave, pack, pool_frames
from vlmjax.models.language import CausalLM, LlamaConfig, LMCache, Qwen2Config
from vlmjax.models.llava import Llava, LlavaConfig
from vlmjax.models.llava_next import LlavaNext, LlavaNextConfig
from vlmjax.models.multiscale import block_grids, dynamic_tokens, multiscale_tokens
from vlmjax.models.qwen2_vl import Qwen2VL, Qwen2VLConfig
from vlmjax.models.qwen_tower import PatchMerger, QwenVisionConfig, QwenVisionTower
from vlmjax.models.splice import place, splice
from vlmjax.models.tiles import NEWLINE, anyres_grid, anyres_order, best_size, tile_boxes, tile_grid
from vlmjax.models.towers import CLIPVisionConfig, SiglipVisionConfig, VisionTower
from vlmjax.models.vila import Vila, VilaConfig
from vlmjax.models.visual_tokens import VisualTokens

__all__ = [
    "CLIP",
    "CLIPConfig",
    "CLIPText",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "CausalLM",
    "IGNORE",
    "Interleaved",
    "LMCache",
    "LlamaConfig",
    "Llava",
    "LlavaConfig",
    "LlavaNext",
    "LlavaNextConfig",
    "NEWLINE",
    "PatchMerger",
    "Qwen2Config",
    "Qwen2VL",
    "Qwen2VLConfig",
    "QwenVisionConfig",
    "QwenVisionTower",
    "SiglipVisionConfig",
    "Vila",
    "VilaConfig",
    "VisionTower",
    "VisualTokens",
    "anyres_grid",
    "anyres_order",
    "best_size",
    "block_grids",
    "contrastive_loss",
    "dynamic_tokens",
    "for_inference",
    "interleave",
    "multiscale_tokens",
    "pack",
    "place",
    "pool_frames",
    "splice",
    "tile_boxes",
    "tile_grid",
]
