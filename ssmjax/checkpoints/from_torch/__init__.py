"""Converters from the original implementations' PyTorch checkpoints: a key table a family, read both ways.

>>> from ssmjax.checkpoints import from_torch
>>> from_torch.vim.config_from_reference({"embed_dim": 384}).d_model
384
"""

from ssmjax.checkpoints.from_torch import (
    dis,
    dss,
    mambavision,
    s4,
    s4_model,
    s4d_minimal,
    s4nd,
    s5_pytorch,
    vim,
    vit,
    vmamba,
)

__all__ = ["dis", "dss", "mambavision", "s4", "s4_model", "s4d_minimal", "s4nd", "s5_pytorch", "vim", "vit", "vmamba"]
