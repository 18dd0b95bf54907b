"""Vim and VMamba as their authors wrote them, from a copy of the sources that the user provides, as opponents on a CPU.

Nothing of theirs is here. The folder holds `vim/models_mamba.py` with `mamba-1p1p1/` (hustvl/Vim) or `vmamba.py`
(MzeroMiko/VMamba), in itself or one folder below. Their CUDA extensions are not needed: the scan is their own loop in
PyTorch. What they import and do not use in a forward pass (timm, fvcore, Triton) is replaced by empty stand-ins; a
causal convolution and an RMS norm, which they have as kernels only, by PyTorch's.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers import load_source
from ssmjax.checkpoints.arrays import set_model_arrays
from ssmjax.checkpoints.from_torch import vim, vmamba

__all__ = ["ModelPeer", "load_model_peer"]


@dataclasses.dataclass(frozen=True)
class ModelPeer:
    """An opponent.

    Attributes:
        name: With the beginning of its source's sha256.
        forward: A forward pass, a function without arguments.
        images: What it maps, channels last.
        logits: What it gives.
    """

    name: str
    forward: Callable[[], Any]
    images: np.ndarray
    logits: np.ndarray


def load_model_peer(folder: pathlib.Path, model: Any, batch: int) -> ModelPeer:
    """Builds the opponent of a Vim or a VMamba, and gives its weights to the model, in place.

    Args:
        folder: Where its sources are.
        model: Ours; its configuration says what to build.
        batch: The number of images.

    Raises:
        ValueError: The model has no opponent, or the folder does not hold its source.
    """
    family = type(model).__name__.lower()
    if family not in _BUILDERS:
        raise ValueError(f"--peer: {type(model).__name__} has no opponent; {' and '.join(_BUILDERS)} have.")
    relative, build, convert = _BUILDERS[family]
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    source = next((place / relative for place in places if (place / relative).is_file()), None)
    if source is None:
        raise ValueError(f"--peer {folder}: {relative} is not there nor one folder below.")
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # those that XLA takes, too
    network = build(source, model.config).eval()
    state = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    set_model_arrays(model, convert(state, model.config))
    side = model.config.img_size
    images = torch.randn(batch, model.config.in_channels, side, side)

    def forward():
        with torch.inference_mode():
            return network(images)

    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy(), forward().numpy()
    return ModelPeer(f"peer: {source.name} ({digest})", forward, *arrays)


def _vim(source: pathlib.Path, config: Any):
    """The network of `models_mamba.py`, with the same fields."""
    ours = source.parents[1] / "mamba-1p1p1" / "mamba_ssm"
    stand_ins = _timm() | {
        "selective_scan_cuda": types.ModuleType("selective_scan_cuda"),
        "causal_conv1d_cuda": types.ModuleType("causal_conv1d_cuda"),
        "causal_conv1d": _module("causal_conv1d", causal_conv1d_fn=_causal_conv, causal_conv1d_update=None),
        **{name: types.ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")},
        "mamba_ssm.utils.generation": _module("generation", GenerationMixin=object),
        "mamba_ssm.utils.hf": _module("hf", load_config_hf=None, load_state_dict_hf=None),
        "mamba_ssm.ops.triton.layer_norm": _module(
            "layer_norm", RMSNorm=_rms_norm(), layer_norm_fn=None, rms_norm_fn=None
        ),
    }
    scan = load_source("peer_scan", ours / "ops" / "selective_scan_interface.py", stand_ins)
    scan.mamba_inner_fn_no_out_proj = functools.partial(_inner, scan.selective_scan_ref)
    stand_ins["mamba_ssm.ops.selective_scan_interface"] = scan
    mixer = load_source("peer_mixer", ours / "modules" / "mamba_simple.py", stand_ins)
    stand_ins["mamba_ssm.modules.mamba_simple"] = mixer
    stand_ins["rope"] = load_source("peer_rope", source.parent / "rope.py", {})
    network = load_source("peer_vim", source, stand_ins)
    return network.VisionMamba(
        img_size=config.img_size,
        patch_size=config.patch_size,
        stride=config.stride or config.patch_size,
        depth=config.depth,
        embed_dim=config.d_model,
        num_classes=config.num_classes,
        rms_norm=True,
        fused_add_norm=False,
        final_pool_type="mean",
        if_devide_out=True,
    )


def _inner(scan, xz, conv, conv_bias, x_proj, dt_proj, A, B, C, D, delta_bias, delta_softplus):
    """A direction of Vim's mixer before its output projection, which the source has for CUDA only."""
    import torch
    from torch.nn import functional

    del B, C  # they depend on the input
    rank, n = dt_proj.shape[1], A.shape[1]
    x, z = xz.chunk(2, dim=1)
    x = _causal_conv(x, conv[:, 0], conv_bias, "silu")
    dt, B, C = torch.split(functional.linear(x.transpose(1, 2), x_proj), [rank, n, n], dim=-1)
    dt = functional.linear(dt, dt_proj).transpose(1, 2)
    options = dict(z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
    return scan(x, dt, A, B.transpose(1, 2).contiguous(), C.transpose(1, 2).contiguous(), D, **options)


def _causal_conv(x, weight, bias=None, activation=None):
    from torch.nn import functional

    d, taps = weight.shape
    y = functional.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=d)[..., : x.shape[-1]]
    return functional.silu(y) if activation else y


def _rms_norm():
    import torch

    class RMSNorm(torch.nn.Module):
        def __init__(self, d, eps=1e-5, device=None, dtype=None):
            super().__init__()
            self.eps, self.weight, self.bias = eps, torch.nn.Parameter(torch.ones(d, dtype=dtype)), None

        def forward(self, x):
            return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)

    return RMSNorm


def _vmamba(source: pathlib.Path, config: Any):
    """The network of `vmamba.py`, of the form of VMamba-T[s1l8] in any size."""
    module = load_source("peer_vmamba", source, _timm() | _unused_by_vmamba())
    return module.VSSM(
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        depths=list(config.depths),
        dims=list(config.dims),
        ssm_d_state=config.d_state,
        ssm_ratio=config.ssm_ratio,
        ssm_conv_bias=config.conv_bias,
        mlp_ratio=config.mlp_ratio,
        forward_type="v05_noz",
        norm_layer="ln2d",
        downsample_version="v3",
        patchembed_version="v2",
        imgsize=config.img_size,
    )


_BUILDERS = {
    "vim": ("vim/models_mamba.py", _vim, vim.convert),
    "vmamba": ("vmamba.py", _vmamba, vmamba.convert),
}
"""By our class the file, what builds the network, and what converts its weights."""


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


def _timm() -> dict[str, types.ModuleType]:
    """What the two take from timm: initial values, and what acts in training only."""
    import torch

    class DropPath(torch.nn.Identity):
        """Does nothing in a forward pass of a trained model."""

    parts = dict(
        DropPath=DropPath,
        trunc_normal_=torch.nn.init.trunc_normal_,
        lecun_normal_=torch.nn.init.kaiming_normal_,
        to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x),
        register_model=lambda function: function,
    )
    transformer = dict(VisionTransformer=object, _cfg=dict, _load_weights=None)
    return {
        "timm": types.ModuleType("timm"),
        "timm.models": _module("timm.models", register_model=parts["register_model"]),
        "timm.models.layers": _module("timm.models.layers", **parts),
        "timm.models.registry": _module("timm.models.registry", **parts),
        "timm.models.vision_transformer": _module("timm.models.vision_transformer", **transformer),
    }


def _unused_by_vmamba() -> dict[str, types.ModuleType]:
    """What `vmamba.py` counts operations with, and the compiler of kernels that it decorates functions for."""
    names = ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count")
    language = _module("triton.language", constexpr=int, tensor=object)
    return {
        "fvcore": types.ModuleType("fvcore"),
        "fvcore.nn": _module("fvcore.nn", **dict.fromkeys(names)),
        "triton": _module("triton", jit=lambda function: function, language=language),
        "triton.language": language,
    }
