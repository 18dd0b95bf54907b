"""Every parameter of every model says what it is, and what must not be decayed is not, whatever its name."""

from typing import get_args

import jax
import pytest
from flax import nnx

import ssmjax
from ssmjax.layers.common.parameters import DECAYED, ParameterKind
from ssmjax.training.optim import decay_mask
from ssmjax.training.parameter_info import parameter_info
from tests.models.sizes import DISTINCT, OTHERS

UNDECAYED = {"A", "D", "dt", "norm", "bias", "position", "token", "scale"}


def test_each_kind_is_decayed_or_not():
    assert DECAYED | UNDECAYED == set(get_args(ParameterKind)) and not DECAYED & UNDECAYED


@pytest.mark.parametrize("name", [*DISTINCT, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_parameter_says_what_it_is(name):
    state = nnx.state(nnx.eval_shape(lambda: ssmjax.create_model(name)), nnx.Param)
    info = parameter_info(state)
    assert {path for path, known in info.items() if known.kind is None or known.decay is None} == set()
    assert {path for path, known in info.items() if known.kind in UNDECAYED and known.decay} == set()
    # What the names of the originals spare is spared.
    named = decay_mask(dict.fromkeys(info, 0))
    assert {path for path, known in info.items() if known.decay and not named[path]} == set()
    assert jax.tree.leaves(decay_mask(state)) == [info[path].decay for path in map(_joined, nnx.to_flat_state(state))]


def _joined(entry):
    return ".".join(map(str, entry[0]))
