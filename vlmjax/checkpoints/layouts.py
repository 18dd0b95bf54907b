"""All layouts of the families that are read from several kinds of folders; the first is the one that is written."""

from vlmjax.checkpoints.hf_llava import LLAVA, LLAVA_NEXT
from vlmjax.checkpoints.hf_original import LLAVA_NEXT_ORIGINAL, LLAVA_ORIGINAL

__all__ = ["LLAVA_LAYOUTS", "LLAVA_NEXT_LAYOUTS"]

LLAVA_LAYOUTS = (LLAVA, LLAVA_ORIGINAL)
"""Of the family `llava`."""

LLAVA_NEXT_LAYOUTS = (LLAVA_NEXT, LLAVA_NEXT_ORIGINAL)
"""Of the family `llava_next`."""
