"""Flax modules: parameters and their initial values around the pure functions of `ssmjax.ops`."""

from ssmjax.layers.common.attention import AttentionState, CausalAttention
from ssmjax.layers.common.drop_path import drop_path, drop_path_rates, dropout, shared_dropout
from ssmjax.layers.common.gates import Gate
from ssmjax.layers.common.mixer import Mixer, PackedState
from ssmjax.layers.common.norms import BatchNorm, LayerNorm, RMSNorm, add_norm, make_norm
from ssmjax.layers.common.pooling import pool
from ssmjax.layers.common.rope import apply_rope, axial_rope_table
from ssmjax.layers.lti.dss import DSS
from ssmjax.layers.lti.lru import LRU
from ssmjax.layers.lti.s4 import S4
from ssmjax.layers.lti.s4d import S4D
from ssmjax.layers.lti.s4nd import S4ND
from ssmjax.layers.lti.s5 import S5
from ssmjax.layers.mixers import MixerEntry, make_mixer, register_mixer, registered_mixers
from ssmjax.layers.registry import LayerEntry, register_layer, registered_layers
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.selective.gated_norm import GatedRMSNorm, gated_rms_norm
from ssmjax.layers.selective.half_mamba import HalfMamba
from ssmjax.layers.selective.mamba import Mamba, MambaState
from ssmjax.layers.selective.mamba2 import Mamba2, Mamba2State
from ssmjax.layers.selective.mamba3 import Mamba3, Mamba3State
from ssmjax.layers.sequence_block import SequenceBlock
from ssmjax.layers.vision.depthwise import DepthwiseConv, depthwise_conv2d
from ssmjax.layers.vision.hierarchy import Downsample, ImageEmbed
from ssmjax.layers.vision.local_conv import LocalConv
from ssmjax.layers.vision.mlp import MLP
from ssmjax.layers.vision.patch_embed import ConvStem, PatchEmbed
from ssmjax.layers.vision.ss2d import SS2D, scan_directions
from ssmjax.layers.vision.windows import SelfAttention, join_windows, split_windows

__all__ = [
    "split_windows",
    "join_windows",
    "SelfAttention",
    "scan_directions",
    "SS2D",
    "MLP",
    "ImageEmbed",
    "Downsample",
    "depthwise_conv2d",
    "DepthwiseConv",
    "HalfMamba",
    "DSS",
    "LRU",
    "S4",
    "S4D",
    "S4ND",
    "S5",
    "AttentionState",
    "BatchNorm",
    "BiMamba",
    "CausalAttention",
    "ConvStem",
    "Gate",
    "GatedRMSNorm",
    "LayerEntry",
    "LayerNorm",
    "LocalConv",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "Mamba3",
    "Mamba3State",
    "MambaState",
    "Mixer",
    "MixerEntry",
    "PackedState",
    "PatchEmbed",
    "RMSNorm",
    "SequenceBlock",
    "add_norm",
    "apply_rope",
    "axial_rope_table",
    "drop_path",
    "drop_path_rates",
    "dropout",
    "gated_rms_norm",
    "make_mixer",
    "make_norm",
    "pool",
    "register_layer",
    "register_mixer",
    "registered_layers",
    "registered_mixers",
    "shared_dropout",
]
