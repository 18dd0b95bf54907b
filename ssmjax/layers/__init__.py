"""Flax modules: parameters and their initial values around the pure functions of `ssmjax.ops`."""

from ssmjax.layers.bimamba import BiMamba
from ssmjax.layers.drop_path import drop_path, drop_path_rates, dropout, shared_dropout
from ssmjax.layers.dss import DSS
from ssmjax.layers.gates import Gate
from ssmjax.layers.lru import LRU
from ssmjax.layers.mamba import Mamba, MambaState
from ssmjax.layers.norms import BatchNorm, LayerNorm, RMSNorm, add_norm, make_norm
from ssmjax.layers.patch_embed import ConvStem, PatchEmbed
from ssmjax.layers.pooling import pool
from ssmjax.layers.registry import LayerEntry, register_layer, registered_layers
from ssmjax.layers.rope import apply_rope, axial_rope_table
from ssmjax.layers.s4 import S4
from ssmjax.layers.s4d import S4D
from ssmjax.layers.s4nd import S4ND
from ssmjax.layers.s5 import S5
from ssmjax.layers.sequence_block import SequenceBlock

__all__ = [
    "DSS",
    "LRU",
    "S4",
    "S4D",
    "S4ND",
    "S5",
    "BatchNorm",
    "BiMamba",
    "ConvStem",
    "Gate",
    "LayerEntry",
    "LayerNorm",
    "Mamba",
    "MambaState",
    "PatchEmbed",
    "RMSNorm",
    "SequenceBlock",
    "add_norm",
    "apply_rope",
    "axial_rope_table",
    "drop_path",
    "drop_path_rates",
    "dropout",
    "make_norm",
    "pool",
    "register_layer",
    "registered_layers",
    "shared_dropout",
]
