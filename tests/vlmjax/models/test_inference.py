"""Models as they run fastest compute what they computed before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
import vlmjax
from tests.layers import quick
from vlmjax.models import for_inference

TEXT = {"vocab": 32, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 32, "max_length": 64}
TOWER = {"img_size": 8, "patch_size": 4, "d_model": 16, "depth": 2, "heads": 2, "d_mlp": 16}


@pytest.fixture(params=quick.first(["llama_nano", "llava_nano", "qwen2_nano"], 2))
def case(request):
    if request.param == "llava_nano":
        model = vlmjax.create_model("llava_nano", vision=TOWER, text=TEXT, image_token=31)
        return model, {"images": jnp.ones((1, 8, 8, 3))}, jnp.array([[31, 31, 31, 31, 5, 6]])
    model = vlmjax.create_model(request.param, **TEXT)
    return model, {}, jnp.array([[1, 2, 3]])


def test_the_same_logits_and_tokens(case):
    model, inputs, tokens = case
    logits = quick.apply(model, tokens, **inputs)
    new = ssmjax.generate(model, tokens, max_new_tokens=3, **inputs)
    numbers = sum(x.size for x in jax.tree.leaves(nnx.state(model)))
    fast = for_inference(model, jnp.float32)
    assert fast is model and sum(x.size for x in jax.tree.leaves(nnx.state(fast))) == numbers
    np.testing.assert_allclose(quick.apply(fast, tokens, **inputs), logits, atol=1e-5)
    assert ssmjax.generate(fast, tokens, max_new_tokens=3, **inputs).tolist() == new.tolist()
    assert {x.dtype for x in jax.tree.leaves(nnx.state(for_inference(fast)))} == {jnp.dtype("bfloat16")}


def test_abstract_models_of_full_size():
    model = nnx.eval_shape(lambda: for_inference(vlmjax.create_model("llava_1_5_7b")))
    leaves = jax.tree.leaves(nnx.state(model))
    assert sum(x.size for x in leaves) == 7_063_427_072
    assert model.language.layers[31].mlp.gate_up.kernel.shape == (4096, 2 * 11008)
