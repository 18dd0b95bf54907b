"""Data: image sets as numpy arrays, batches as a pure function of (seed, step), augmentation in JAX."""

from ssmjax.data.archives import DataUnavailable
from ssmjax.data.augment import AugmentConfig, augment, normalize
from ssmjax.data.batches import Batches, eval_batches
from ssmjax.data.images import IMAGE_SETS, ImageData, load_images, resize_images

__all__ = [
    "IMAGE_SETS",
    "AugmentConfig",
    "Batches",
    "DataUnavailable",
    "ImageData",
    "augment",
    "eval_batches",
    "load_images",
    "normalize",
    "resize_images",
]
