"""Pure functions of arrays: the scans, convolutions and the attention that the layers are built of."""

from ssmjax.ops import scan_order
from ssmjax.ops.attention import KVCache, append_keys, attention, attention_weights, empty_cache
from ssmjax.ops.backend import Implementation, registered_ops, report, use_implementation
from ssmjax.ops.causal_conv1d import causal_conv1d
from ssmjax.ops.discretize import discretize
from ssmjax.ops.dplr_kernel import dplr_kernel, dplr_matrices
from ssmjax.ops.fft_conv import fft_conv, fft_conv_nd, separable_kernel, two_sided_kernel
from ssmjax.ops.linear_scan import linear_scan
from ssmjax.ops.scan_order import apply_order, cross_merge, cross_scan, undo_order
from ssmjax.ops.selective_scan import selective_scan
from ssmjax.ops.selective_state_update import selective_state_update
from ssmjax.ops.separable_conv import separable_conv
from ssmjax.ops.softmax_kernel import softmax_kernel
from ssmjax.ops.ssd import ssd
from ssmjax.ops.trapezoidal_ssd import TrapezoidalState, trapezoidal_ssd
from ssmjax.ops.vandermonde import diagonal_power, vandermonde, vandermonde_state

__all__ = [
    "Implementation",
    "KVCache",
    "TrapezoidalState",
    "append_keys",
    "apply_order",
    "attention",
    "attention_weights",
    "causal_conv1d",
    "cross_merge",
    "cross_scan",
    "diagonal_power",
    "discretize",
    "dplr_kernel",
    "dplr_matrices",
    "empty_cache",
    "fft_conv",
    "fft_conv_nd",
    "linear_scan",
    "registered_ops",
    "report",
    "scan_order",
    "selective_scan",
    "selective_state_update",
    "separable_conv",
    "separable_kernel",
    "softmax_kernel",
    "ssd",
    "trapezoidal_ssd",
    "two_sided_kernel",
    "undo_order",
    "use_implementation",
    "vandermonde",
    "vandermonde_state",
]
