"""From files to what the models read, as the originals do it: images, patches, chat templates, placeholders."""

from vlmjax.processing.chat import CHATS, Chat, expand_placeholders
from vlmjax.processing.images import (
    CLIP_MEAN,
    CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    center_crop,
    fit_image,
    normalize,
    pad_to_square,
    read_image,
    resize,
)
from vlmjax.processing.patches import PackedPatches, bucket_length, image_patches, pack_patches, smart_resize
from vlmjax.processing.tiles import anyres_crops, scale_crops, tile_crops

__all__ = [
    "CHATS",
    "CLIP_MEAN",
    "CLIP_STD",
    "Chat",
    "PackedPatches",
    "SIGLIP_MEAN",
    "SIGLIP_STD",
    "anyres_crops",
    "bucket_length",
    "center_crop",
    "expand_placeholders",
    "fit_image",
    "image_patches",
    "normalize",
    "pack_patches",
    "pad_to_square",
    "read_image",
    "resize",
    "scale_crops",
    "smart_resize",
    "tile_crops",
]
