"""S4ND from the original's layout: what follows the layer, one to three axes, both kernels, both contractions."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, expit

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import s4nd
from ssmjax.layers import S4ND
from tests.layers import quick
from tests.parity.families.s4nd import build, flat, nested

D, SIDES = 4, (3, 5, 4)
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case[2:] not in (((3, 1), 1), ((1, 1), 2))))
    for case in itertools.product([None, "glu", "tanh"], ["diag", "dplr"], [(2, 0), (1, 1), (2, 1), (3, 1)], [1, 2])
]


@pytest.mark.parametrize(("final_act", "mode", "form", "channels"), CASES)
def test_what_follows_the_layer(final_act, mode, form, channels):
    """Names both ways, and for some the output against the formula."""
    axes, contraction = form
    theirs = {"d_model": D, "d_state": 4, "dim": axes, "mode": mode, "channels": channels, "n_ssm": 1}
    theirs |= {"init": "legs" if mode == "dplr" else "diag-lin", "linear": False, "final_act": final_act}
    theirs |= {"contract_version": contraction}
    rng = np.random.default_rng(0)
    own = {"axes": axes, "channels": channels, "d_state": 4, "copies": 1, "kernel": "s4" if mode == "dplr" else "s4d"}
    own |= {"l_max": SIDES[:axes]} if mode == "dplr" else {"init": "diag-lin"}
    shapes = model_arrays(nnx.eval_shape(lambda: S4ND(D, **own, rngs=nnx.Rngs(0))))
    arrays = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    out = D * (2 if final_act == "glu" else 1)
    arrays |= {"output_linear.kernel": rng.standard_normal((channels * D, out)).astype(np.float32)}
    arrays |= {"output_linear.bias": rng.standard_normal(out).astype(np.float32)}
    state = s4nd.to_reference(arrays, final_act)
    assert ("output_linear.weight" in state) == (final_act is None)
    assert state["output_linear.weight" if final_act is None else "output_linear.0.weight"].shape == (out, channels * D)
    if mode == "dplr":
        state |= {f"kernel.{i}.l_kernel": np.array(length) for i, length in enumerate(SIDES[:axes])}

    arguments = s4nd.layer_arguments(theirs, state)
    converted = s4nd.convert(state, arguments)
    assert sorted(converted) == sorted(arrays)
    model = nnx.eval_shape(lambda: build(arguments, True, final_act))
    set_model_arrays(model, nested(converted, True))
    assert sorted(map(flat, model_arrays(model))) == sorted(arrays)
    if (axes, mode) != (3, "dplr") and (axes, channels) != (2, 2):
        return

    @jax.jit
    def run(x):
        return model(x), model.layer(x)

    x = jax.random.normal(jax.random.key(0), (2, *SIDES[:axes], D))
    got, y = map(np.asarray, run(x))
    y = y.astype(np.float64)
    z = (0.5 * y * (1 + erf(y / 2**0.5))) @ arrays["output_linear.kernel"] + arrays["output_linear.bias"]
    wanted = {None: lambda: z, "tanh": lambda: np.tanh(z), "glu": lambda: z[..., :D] * expit(z[..., D:])}[final_act]()
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_three_axes_are_three_kernels():
    """The layer of three axes with S4's kernels against the convolution with their product, tap by tap."""
    layer = quick.made(
        lambda: S4ND(2, axes=3, d_state=4, kernel="s4", l_max=SIDES, bidirectional="none", rngs=nnx.Rngs(0))
    )
    x = jax.random.normal(jax.random.key(0), (1, *SIDES, 2))
    a, b, c = (np.asarray(jax.jit(lambda k=k, l=l: k(l))())[0] for k, l in zip(layer.kernels, SIDES, strict=True))
    wanted = np.asarray(layer.D[...])[0] * np.asarray(x)
    for i, j, k in np.ndindex(*SIDES):
        taps = a[i] * b[j] * c[k]
        wanted[:, i:, j:, k:] += taps * np.asarray(x)[:, : SIDES[0] - i, : SIDES[1] - j, : SIDES[2] - k]
    np.testing.assert_allclose(jax.jit(layer)(x), wanted, atol=1e-4 * np.abs(wanted).max())
