"""Every parameter of the towers, the language models and the stack says what it is."""

import pytest
from flax import nnx

import vlmjax
from ssmjax.training.parameter_info import parameter_info

UNDECAYED = {"A", "D", "dt", "norm", "bias", "position", "token", "scale"}
NAMES = [
    "clip_vision_nano",
    "siglip_vision_nano",
    "llama_nano",
    "qwen2_nano",
    "llava_nano",
    "qwen2_vl_nano",
    "clip_vit_large_336",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_says_what_it_is(name):
    info = parameter_info(nnx.eval_shape(lambda: vlmjax.create_model(name)))
    assert {path for path, known in info.items() if known.kind is None or known.decay is None} == set()
    assert {path for path, known in info.items() if known.kind in UNDECAYED and known.decay} == set()
