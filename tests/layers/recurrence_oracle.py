"""S5 and the LRU as loops over time in float64 numpy, straight from the equations; nothing shared with the library."""

import numpy as np

from ssmjax.layers import LRU
from tests.layers.oracle import parameters


def held(A, time):
    """The response to an input held for that time, for A other than zero."""
    return (np.exp(A * time) - 1) / A


RULES = {
    "zoh": lambda A, dt, step: (np.exp(A * dt), held(A, dt)),
    "bilinear": lambda A, dt, step: ((1 + A * dt / 2) / (1 - A * dt / 2), dt / (1 - A * dt / 2)),
    "euler": lambda A, dt, step: (1 + A * dt, dt),
    "impulse": lambda A, dt, step: (np.exp(A * dt), dt),
    "dirac": lambda A, dt, step: (np.exp(A * dt), np.ones_like(dt)),
    "async": lambda A, dt, step: (np.exp(A * dt), held(A, step)),
}


def system(layer):
    """B (p h), one C (h p) a direction, D, and the decay and gain of a step of the given length."""
    p = parameters(layer)
    if isinstance(layer, LRU):
        log_decay, gamma = -np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]), np.exp(p["gamma_log"])
        C = [p[f"{name}_re"] + 1j * p[f"{name}_im"] for name in ("C", "C2") if f"{name}_re" in p]
        decay, log_decay = np.exp(log_decay), np.log(np.exp(log_decay))  # the angle within [-pi, pi]

        def discretize(rate, dt):
            return np.exp(rate * dt * log_decay), gamma * (np.exp(rate * dt * log_decay) - 1) / (decay - 1)

        return p["B_re"] + 1j * p["B_im"], C, p["D"], discretize
    re = np.minimum(p["Lambda_re"], -1e-4) if layer.clip_eigs else p["Lambda_re"]
    A, step, rule = re + 1j * p["Lambda_im"], np.exp(p["log_step"][:, 0]), RULES[layer.discretization]
    B, *C = ((p[name] @ [1, 1j]) for name in ("B", "C", "C1", "C2") if name in p)
    factor = 2 if layer.conj_sym else 1
    return B, [factor * c for c in C], p["D"], lambda rate, dt: rule(A, rate * dt * step, rate * step)


def run(layer, u, *, dts=None, rate=1.0, state=None):
    """One sequence u (l h): its outputs (l h) and the last state (p)."""
    u = np.asarray(u, np.float64)
    B, C, D, discretize = system(layer)
    length = len(u)
    dts = np.ones(length) if dts is None else np.asarray(dts, np.float64)
    x, ys = np.zeros(len(B), complex) if state is None else np.asarray(state, complex), []
    for t in range(length):
        decay, gain = discretize(rate, dts[t])
        x = decay * x + gain * (B @ u[t])
        ys.append((C[0] @ x).real + D * u[t])
    if layer.bidirectional != "none":
        back = np.zeros(len(B), complex)
        for t in reversed(range(length)):
            decay, gain = discretize(rate, dts[t + 1] if t + 1 < length else 1.0)
            future, back = back, decay * back + gain * (B @ u[t])
            ys[t] = ys[t] + (C[1] @ (back if layer.bidirectional == "inclusive" else future)).real
    return np.reshape(ys, u.shape), x
