"""The ops in float64 numpy loops, written independently of the library, and random problems for them."""

import numpy as np

__all__ = ["QUICK_COMPILE", "causal_conv1d", "linear_scan", "scan_problem", "selective_scan", "softplus"]

QUICK_COMPILE = {"xla_backend_optimization_level": 0}
"""Compiler options that halve the compile time, for tests that compile many variants of a call once each."""


def softplus(v):
    return np.logaddexp(v, 0)


def _silu(v):
    return v / (1 + np.exp(-v))


def _wide(v):
    v = np.asarray(v)
    return v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)


def linear_scan(a, x, h0=None, reverse=False):
    """All states (b l *f) and the last one."""
    a, x = _wide(a), _wide(x)
    h = np.zeros_like(x[:, 0] + a[:, 0]) if h0 is None else _wide(h0)
    out = np.zeros_like(x + a)
    for t in range(x.shape[1])[:: -1 if reverse else 1]:
        h = a[:, t] * h + x[:, t]
        out[:, t] = h
    return out, h


def selective_scan(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, h0=None, segment_ids=None, reverse=False
):
    """y (b l e) and the last state (b e n)."""
    x, dt, A, B, C = map(_wide, (x, dt, A, B, C))
    b, l, e = x.shape
    n = A.shape[1]
    dt = dt if dt_bias is None else dt + _wide(dt_bias)
    dt = softplus(dt) if dt_softplus else dt
    h = np.zeros((b, e, n), A.dtype) if h0 is None else _wide(h0) + np.zeros((), A.dtype)
    y = np.zeros((b, l, e))

    def row(M, i, t, c):
        if M.ndim == 2:
            return M[c]
        return M[i, t] if M.ndim == 3 else M[i, t, c // (e // M.shape[2])]

    back = 1 if reverse else -1
    for i in range(b):
        for t in range(l)[:: back * -1]:
            if segment_ids is not None and 0 <= t + back < l and segment_ids[i, t + back] != segment_ids[i, t]:
                h[i] = 0
            for c in range(e):
                h[i, c] = np.exp(dt[i, t, c] * A[c]) * h[i, c] + dt[i, t, c] * row(B, i, t, c) * x[i, t, c]
                s = np.sum(row(C, i, t, c) * h[i, c])
                y[i, t, c] = 2 * s.real if np.iscomplexobj(A) else s
    y = y if D is None else y + x * _wide(D)
    y = y if z is None else y * _silu(_wide(z))
    return y, h


def causal_conv1d(x, weight, bias=None, activation=None, state=None, segment_ids=None, reverse=False):
    """y (b l e)."""
    x, weight = _wide(x), _wide(weight)
    (b, l, _), k = x.shape, weight.shape[0]
    y = np.zeros_like(x) if bias is None else np.zeros_like(x) + _wide(bias)
    for i in range(b):
        for t in range(l):
            for j in range(k):  # j steps away from t, towards the past (the future with reverse)
                s = t + j if reverse else t - j
                near = range(t, min(s, l - 1) + 1) if reverse else range(max(s, 0), t + 1)
                if segment_ids is not None and len({int(segment_ids[i, p]) for p in near}) > 1:
                    break
                if 0 <= s < l:
                    y[i, t] += weight[k - 1 - j] * x[i, s]
                elif state is not None:
                    y[i, t] += weight[k - 1 - j] * _wide(state)[i, s - l if reverse else s + k - 1]
    return _silu(y) if activation == "silu" else y


def scan_problem(l, *, b=2, e=4, n=3, groups=None, complex_A=False, complex_BC=None, fixed="", seed=0):
    """Random arguments of a selective scan with every option, float32 or complex64, by name; `fixed` lists B, C."""
    rng = np.random.default_rng(seed)
    complex_BC = complex_A if complex_BC is None else complex_BC

    def real(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def maybe_complex(wanted, *shape):
        return real(*shape) + (1j * real(*shape) if wanted else 0)

    def matrix(name):
        return maybe_complex(
            complex_BC, *((e, n) if name in fixed else (b, l, n) if groups is None else (b, l, groups, n))
        )

    A = -np.exp(0.5 * real(e, n)) + (1j * real(e, n) if complex_A else 0)
    return {
        "x": real(b, l, e),
        "dt": real(b, l, e) - 1,
        "A": A.astype(np.complex64 if complex_A else np.float32),
        "B": matrix("B").astype(np.complex64 if complex_BC else np.float32),
        "C": matrix("C").astype(np.complex64 if complex_BC else np.float32),
        "D": real(e),
        "z": real(b, l, e),
        "dt_bias": real(e),
        "h0": maybe_complex(complex_A, b, e, n).astype(np.complex64 if complex_A else np.float32),
    }
