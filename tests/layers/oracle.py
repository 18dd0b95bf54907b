"""Mamba mixers as loops over time in float64 numpy, straight from the equations; nothing shared with the library."""

import numpy as np
from flax import nnx


def parameters(layer) -> dict:
    return {".".join(map(str, path)): np.asarray(x[...], np.float64) for path, x in nnx.to_flat_state(nnx.state(layer))}


def silu(x):
    return x / (1 + np.exp(-x))


def direction(p, x, suffix="", A_log="A_log", convolved=None):
    """One direction before the gate: (b l e) to (b l e), and the convolved input (which v1 reuses)."""
    kernel, bias = p[f"conv1d{suffix}.kernel"], p[f"conv1d{suffix}.bias"]
    taps = len(kernel)
    if convolved is None:
        convolved = np.zeros_like(x)
        for t in range(x.shape[1]):
            for i in range(taps):
                if t - (taps - 1) + i >= 0:
                    convolved[:, t] += kernel[i] * x[:, t - (taps - 1) + i]
        convolved = silu(convolved + bias)
    x = convolved
    n = p[A_log].shape[1]
    mixed = x @ p[f"x_proj{suffix}.kernel"]
    low_rank, B, C = np.split(mixed, [mixed.shape[-1] - 2 * n, mixed.shape[-1] - n], axis=-1)
    dt = np.log1p(np.exp(low_rank @ p[f"dt_proj{suffix}.kernel"] + p[f"dt_proj{suffix}.bias"]))
    A, h, ys = -np.exp(p[A_log]), np.zeros((x.shape[0], *p[A_log].shape)), []
    for t in range(x.shape[1]):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + p[f"D{suffix}"] * x[:, t])
    return np.stack(ys, axis=1), (x, dt, B, C)


def scan_from_the_end(p, inputs, A_log, D):
    x, dt, B, C = inputs
    A, h, ys = -np.exp(p[A_log]), np.zeros((x.shape[0], *p[A_log].shape)), {}
    for t in reversed(range(x.shape[1])):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys[t] = (h * C[:, t, None]).sum(-1) + p[D] * x[:, t]
    return np.stack([ys[t] for t in range(x.shape[1])], axis=1)


def mixer(layer, u, variant="none", divide_out=True):
    p, u = parameters(layer), np.asarray(u, np.float64)
    x, z = np.split(u @ p["in_proj.kernel"] + p.get("in_proj.bias", 0), 2, axis=-1)
    y, inputs = direction(p, x)
    if variant == "v1":
        y = y + scan_from_the_end(p, inputs, "A_b_log", "D")
    if variant == "v2":
        backward, _ = direction(p, x[:, ::-1], "_b", "A_b_log")
        y = (y + backward[:, ::-1]) / (2 if divide_out else 1)
    return (y * silu(z)) @ p["out_proj.kernel"] + p.get("out_proj.bias", 0)
