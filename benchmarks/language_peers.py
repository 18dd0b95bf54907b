"""The peers of `benchmarks.language`: transformers and mamba_ssm, where they are installed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ssmjax

__all__ = ["Job", "mamba_ssm", "transformers"]


@dataclasses.dataclass(frozen=True)
class Job:
    """What is timed.

    Attributes:
        task: decode, prefill or train.
        tokens: (b l).
        new: How many tokens `decode` makes.
        dtype: float32 or bfloat16.
    """

    task: str
    tokens: np.ndarray
    new: int
    dtype: str


def transformers(model: Any, job: Job, folder: Path) -> Callable[[], Any]:
    """Our model in transformers."""
    import torch
    import transformers

    ssmjax.save_pretrained(model, folder / "model", format="hf")
    stored = torch.float32 if job.task == "train" else getattr(torch, job.dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=stored)
    theirs = theirs.to(_device(torch))
    tokens = torch.tensor(job.tokens, dtype=torch.long, device=_device(torch))
    if job.task == "train":
        return _training(torch, theirs, lambda: theirs(tokens, use_cache=False).logits, tokens, job.dtype)
    theirs.eval()

    def decode():
        with torch.inference_mode():
            options = dict(max_new_tokens=job.new, min_new_tokens=job.new, do_sample=False)
            return theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **options)[:, tokens.shape[1] :]

    def prefill():
        with torch.inference_mode():
            return theirs(tokens, use_cache=True, logits_to_keep=1).logits

    return _finished(decode if job.task == "decode" else prefill)


def mamba_ssm(model: Any, job: Job, folder: Path) -> Callable[[], Any]:
    """The original, of the same size with random weights; it generates with a CUDA graph."""
    import torch
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    del folder
    ours = model.config
    layer = {"mamba": "Mamba1", "mamba2": "Mamba2", "mamba3": "Mamba3"}[ours.mixer]
    sizes = dict(d_model=ours.d_model, n_layer=ours.depth, vocab_size=ours.vocab_size)
    config = MambaConfig(**sizes, ssm_cfg={"layer": layer}, pad_vocab_size_multiple=ours.vocab_multiple)
    stored = torch.float32 if job.task == "train" else getattr(torch, job.dtype)
    theirs = MambaLMHeadModel(config, device="cuda", dtype=stored)
    tokens = torch.tensor(job.tokens, dtype=torch.long, device="cuda")
    if job.task == "train":
        return _training(torch, theirs, lambda: theirs(tokens).logits, tokens, job.dtype)
    theirs.eval()

    def decode():
        length = tokens.shape[1] + job.new
        return theirs.generate(tokens, max_length=length, top_k=1, cg=True)[:, tokens.shape[1] :]

    def prefill():
        with torch.inference_mode():
            return theirs(tokens, num_last_tokens=1).logits

    return _finished(decode if job.task == "decode" else prefill)


def _device(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _finished(call: Callable[[], Any]) -> Callable[[], np.ndarray]:
    """A call that ends when its result is there."""

    def run():
        return call().float().cpu().numpy()

    return run


def _training(torch: Any, model: Any, logits: Callable[[], Any], tokens: Any, dtype: str) -> Callable[[], Any]:
    """Forward and backward under autocast with float32 weights, and AdamW."""
    model.train()
    on_gpu = tokens.is_cuda
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=on_gpu)
    labels = tokens.roll(-1, dims=1).flatten()

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(tokens.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = torch.nn.functional.cross_entropy(logits().flatten(0, 1), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return run
