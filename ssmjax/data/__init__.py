"""Data: image sets and sequences as numpy arrays, batches as a pure function of (seed, step), augmentation in JAX."""

from ssmjax.data.archives import DataUnavailable
from ssmjax.data.augment import AugmentConfig, augment, normalize
from ssmjax.data.batches import ArrayBatches, Batches, eval_array_batches, eval_batches
from ssmjax.data.folders import load_image_folders
from ssmjax.data.imagenet import load_imagenet_validation
from ssmjax.data.images import IMAGE_SETS, ImageData, load_images, resize_images
from ssmjax.data.sequences import SequenceData, fixed_permutation, pixel_sequences, sequence_data
from ssmjax.data.spoken import load_spoken_digits
from ssmjax.data.tokens import TokenBatches, eval_token_batches

__all__ = [
    "IMAGE_SETS",
    "ArrayBatches",
    "AugmentConfig",
    "Batches",
    "DataUnavailable",
    "ImageData",
    "SequenceData",
    "TokenBatches",
    "augment",
    "eval_array_batches",
    "eval_batches",
    "eval_token_batches",
    "fixed_permutation",
    "load_image_folders",
    "load_imagenet_validation",
    "load_images",
    "load_spoken_digits",
    "normalize",
    "pixel_sequences",
    "resize_images",
    "sequence_data",
]
