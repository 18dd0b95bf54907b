"""Fresh, random models of Qwen2-VL and Qwen2.5-VL in transformers, converted both ways: `make parity-torch`."""

import dataclasses

import numpy as np
import pytest

import ssmjax
import vlmjax
from tests.torch.random_weights import lively
from vlmjax.processing import pack_patches

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE, VIDEO = 50, 51


def configuration(kind, seed):
    """A random configuration of a kind."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([2, 4]))
    sections = [(2, 1, 1), (1, 1, 2), (4, 2, 2), (2, 3, 3)][int(rng.integers(4))]
    width = 2 * sum(sections) * heads
    text = {
        "vocab_size": 53,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([1, 2])),
        "intermediate_size": 48,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(rng.choice([1e4, 1e6])),
            "mrope_section": list(sections),
        },
    }
    vision = {"depth": 3, "num_heads": 2, "hidden_size": width, "spatial_merge_size": 2, "patch_size": 14}
    if kind == "Qwen2VL":
        vision |= {"embed_dim": int(rng.choice([16, 24])), "mlp_ratio": int(rng.choice([2, 3]))}
    else:
        vision |= {
            "hidden_size": 16,
            "out_hidden_size": width,
            "intermediate_size": 40,
            "window_size": int(rng.choice([56, 84])),
            "fullatt_block_indexes": [int(rng.integers(3))],
            "tokens_per_second": 2,
        }
    config = {"Qwen2VL": transformers.Qwen2VLConfig, "Qwen2_5_VL": transformers.Qwen2_5_VLConfig}[kind]
    return config(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=48,
        vision_end_token_id=49,
        tie_word_embeddings=bool(rng.integers(2)),
    )


def inputs(seed):
    """Two images and a video of random sizes in a text."""
    rng = np.random.default_rng(seed)
    grids = [(1, *(2 * int(n) for n in rng.integers(1, 5, 2))) for _ in range(2)]
    grids.append((int(rng.integers(2, 4)), 4, 2 * int(rng.integers(1, 3))))
    patches = [rng.standard_normal((int(np.prod(grid)), 1176)).astype(np.float32) for grid in grids]
    tokens, kinds = [], []
    for grid, token, kind in zip(grids, (IMAGE, IMAGE, VIDEO), (1, 1, 2), strict=True):
        count = int(np.prod(grid)) // 4
        tokens += [int(rng.integers(1, 40)), 48, *[token] * count, 49]
        kinds += [0, 0, *[kind] * count, 0]
    tokens += rng.integers(1, 40, 4).tolist()
    return patches, grids, np.array([tokens]), np.array([kinds + [0] * 4])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL"])
def test_fresh_models(kind, seed, tmp_path):
    kind_of_model = getattr(transformers, f"{kind}ForConditionalGeneration")
    theirs = lively(kind_of_model(configuration(kind, seed)), seed)
    theirs.save_pretrained(tmp_path / "theirs")
    patches, grids, tokens, kinds = inputs(seed)
    given = dict(
        input_ids=torch.tensor(tokens),
        mm_token_type_ids=torch.tensor(kinds, dtype=torch.int32),
        attention_mask=torch.ones(tokens.shape, dtype=torch.long),
        pixel_values=torch.tensor(np.concatenate(patches[:2])),
        image_grid_thw=torch.tensor(grids[:2]),
        pixel_values_videos=torch.tensor(patches[2]),
        video_grid_thw=torch.tensor(grids[2:]),
    )
    with torch.no_grad():
        wanted = theirs(**given).logits.numpy()
    ours = vlmjax.load_pretrained(tmp_path / "theirs")
    ours.config = dataclasses.replace(ours.config, position_rule="plane")  # that of transformers 5
    images = pack_patches(list(zip(patches, grids, strict=True)))
    found = np.asarray(ours(tokens, images=images))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()

    ssmjax.save_pretrained(ours, tmp_path / "ours", format="hf")
    again = kind_of_model.from_pretrained(tmp_path / "ours").eval()
    named = dict(again.named_parameters())
    for name, x in theirs.named_parameters():
        assert torch.equal(named[name], x), name
    with torch.no_grad():
        np.testing.assert_array_equal(again(**given).logits.numpy(), wanted)
