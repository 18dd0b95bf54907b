"""The gated norm: against numpy in both orders; its parity with the original is in tests/parity."""

import numpy as np
import pytest

from ssmjax.layers import GatedRMSNorm, gated_rms_norm


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group", [None, 2])
def test_equals_numpy(before, group):
    rng = np.random.default_rng(0)
    x, z, scale, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 6), (2, 3, 6), 6, 6))
    gate = z / (1 + np.exp(-z))
    grouped = (x if before else x * gate).reshape(2, 3, -1, group or 6)
    y = (grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + 1e-5)).reshape(x.shape) * scale + bias
    wanted = y * gate if before else y
    got = gated_rms_norm(x, scale, z, bias, group=group, norm_before_gate=before)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    with pytest.raises(ValueError, match="gated_rms_norm: group must be a divisor of the 6 channels, got 4"):
        gated_rms_norm(np.ones((1, 6)), np.ones(6), group=4)
    with pytest.raises(ValueError, match="norm_before_gate must be True or False"):
        GatedRMSNorm(4, norm_before_gate="yes")
