"""Models of this package are made, saved and loaded by name, whichever towers and language models they have."""

import chex
import jax.numpy as jnp
import pytest
from flax import nnx

import vlmjax
from vlmjax.models import Qwen2Config, SiglipVisionConfig

TOWER = dict(img_size=8, patch_size=4, d_model=16, depth=1, heads=2, d_mlp=16)
LANGUAGE = dict(vocab=32, d_model=16, depth=1, heads=2, d_mlp=16, max_length=32)


def test_a_model_of_other_parts_is_saved_and_loaded(tmp_path):
    parts = dict(vision=SiglipVisionConfig(**TOWER), text=Qwen2Config(**LANGUAGE, kv_heads=1), image_token=31)
    model = vlmjax.create_model("llava_nano", **parts)
    vlmjax.save_pretrained(model, tmp_path / "model")
    loaded = vlmjax.load_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    chex.assert_trees_all_equal(nnx.state(loaded), nnx.state(model))


@pytest.mark.slow
def test_a_padded_batch_with_images_is_each_prompt_alone():
    import ssmjax

    model = vlmjax.create_model("llava_nano", vision=TOWER, text=LANGUAGE, image_token=31)
    images = jnp.stack([jnp.full((8, 8, 3), value) for value in (0.3, -0.6)])
    long, short = [7, 31, 31, 31, 31, 5, 6], [31, 31, 31, 31, 9]
    tokens = jnp.array([long, [0, 0, *short]])
    mask = jnp.array([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    both = ssmjax.generate(model, tokens, max_new_tokens=3, attention_mask=mask, images=images)
    for row, prompt in enumerate((long, short)):
        alone = ssmjax.generate(model, jnp.array([prompt]), max_new_tokens=3, images=images[row : row + 1])
        assert both[row].tolist() == alone[0].tolist()
