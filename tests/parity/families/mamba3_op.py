"""Mamba-3's scan as the original has it in one op: biases, rotation, skip and gate included."""

import jax
import jax.numpy as jnp
import numpy as np

import ssmjax.ops
from ssmjax.layers.selective.rotation import accumulate_angles, rotate
from tests.parity.families.ops import outputs_and_grads, results
from tests.parity.harness import Dump, family

STATE = ("S0", "S1", "S2", "S3")


@family("mamba3_siso")
def run(dump: Dump) -> dict[str, np.ndarray]:
    names = ["Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias", "Angles", "D", "Z", "gy"]
    inputs = dump.inputs(names, STATE)
    gy = inputs.pop("gy")

    def loss(inputs):
        outputs = _scan(inputs)
        return jnp.sum(outputs["y"] * gy), outputs

    return results(*jax.jit(lambda inputs: outputs_and_grads(loss, inputs))(inputs))


def _scan(inputs):
    """(b h l) of the step sizes is (b l h) here; a state of none is zeros."""
    dt, log_a, blend = (inputs[name].swapaxes(1, 2) for name in ("DT", "ADT", "Trap"))
    (b, _, h, s), p, n = inputs["Angles"].shape, inputs["V"].shape[-1], inputs["K"].shape[-1]
    shapes = (b, h, s), (b, h, p, n), (b, h, n), (b, h, p)
    angle, ssm, k, v = (
        inputs.get(name, np.zeros(shape, np.float32)) for name, shape in zip(STATE, shapes, strict=True)
    )
    theta = accumulate_angles(jnp.pi * jnp.tanh(inputs["Angles"]) * dt[..., None], angle)

    def vectors(name):
        M = jnp.repeat(inputs[name], h // inputs[name].shape[2], axis=2) + inputs[f"{name}_bias"][None, None]
        return rotate(M, theta, "pairs")[:, :, None]

    state = ssmjax.ops.TrapezoidalState(ssm, v[:, None], k[:, None])
    y, after = ssmjax.ops.trapezoidal_ssd(
        inputs["V"][:, :, None],
        dt,
        log_a,
        jax.nn.sigmoid(blend),
        vectors("K"),
        vectors("Q"),
        state,
        chunk=16,
        return_state=True,
    )
    y = (y[:, :, 0] + inputs["D"][None, None, :, None] * inputs["V"]) * jax.nn.silu(inputs["Z"])
    return {"y": y, "angle": theta[:, -1], "ssm": after.ssm, "k": after.B[:, 0], "v": after.x[:, 0]}
