"""Float32 gradients of S4's kernel where poles lie on top of nodes, feature by feature, against the reference in
float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.init import hippo
from tests.layers import quick


def system(measure, size, channels, steps, features=8):
    """A, P, B, C, dt as a layer begins with them, and a cotangent, in float32."""
    rng = np.random.default_rng(0)
    modes = hippo.nplr(measure, size)
    A = np.minimum(modes.A.real, -1e-4) + 1j * modes.A.imag
    A, P, B = (np.repeat(v[..., None, :], features, axis=-2) for v in (A, modes.P, modes.B))
    C = rng.normal(size=(2, channels, features, size // 2))
    args = *(v.astype(np.complex64) for v in (A, P, B, C[0] + 1j * C[1])), np.geomspace(*steps, features)
    return (*args[:4], args[4].astype(np.float32)), rng


def kernel_and_gradients(args, length, cotangent, implementation="auto"):
    def loss(args):
        K = ops.dplr_kernel(*args, length, implementation=implementation)
        return jnp.sum(K * cotangent), K

    gradients, K = jax.jit(jax.grad(loss, has_aux=True))(args)
    return [np.moveaxis(K, -1, 0), *(np.moveaxis(v, -2, 0) for v in gradients[:4]), np.asarray(gradients[4])]


@pytest.fixture(autouse=True)
def single_precision_after():
    yield
    jax.config.update("jax_enable_x64", False)


def worst(measure, size, length, channels, steps):
    """The largest error of K, dA, dP, dB, dC, ddt, each relative to the largest value of the same feature."""
    args, rng = system(measure, size, channels, steps)
    cotangent = rng.normal(size=(channels, length, len(args[4]))).astype(np.float32)
    got = kernel_and_gradients(args, length, cotangent)
    jax.config.update("jax_enable_x64", True)
    wide = [jnp.asarray(v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)) for v in args]
    wanted = kernel_and_gradients(wide, length, jnp.asarray(cotangent, jnp.float64), "reference")
    pairs = [(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in zip(got, wanted, strict=True)]
    return {
        name: (abs(a - b).max(1) / abs(b).max(1)).max()
        for name, (a, b) in zip(("K", "dA", "dP", "dB", "dC", "ddt"), pairs, strict=True)
    }


def test_undamped_modes_on_the_nodes():
    """Of the sums with all modes in them, dA had 2e-2 and ddt 2e-1, over all digits lost for some step sizes."""
    errors = worst("legt", 20, 131, channels=3, steps=(0.1, 1))
    assert errors.pop("K") < 2e-6
    assert max(errors.values()) < 1e-4, errors


def test_a_rank_of_two_couples_the_pair_that_stays():
    """With one column and a phase that makes it real, a wrong sign between the two unknowns would not show."""
    rng = np.random.default_rng(1)
    A = -0.5 + 1j * np.array([[3.0, 1.0, -1.0, -3.0]]).repeat(2, 0)
    P, B, C = (rng.normal(size=(2, c, 2, 4)) for c in (2, 1, 3))
    P, B, C = (jnp.asarray(v[0] + 1j * v[1], jnp.complex64) for v in (0.3 * P, B, C))
    args = jnp.asarray(A, jnp.complex64), P, B[0], C, jnp.full((2,), 0.1)
    K, wanted = quick.jit(lambda *args: [ops.dplr_kernel(*args, 16, implementation=x) for x in ("xla", "reference")])(
        *args
    )
    np.testing.assert_allclose(K, wanted, atol=1e-5 * abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize(("size", "length"), [(4, 131), (64, 131), (64, 1024)])
def test_all_measures(measure, size, length):
    errors = worst(measure, size, length, channels=1, steps=(1e-3, 1))
    assert errors.pop("K") < 4e-6
    assert max(errors.values()) < 2e-4, errors
