"""Fresh, random models of Qwen2-VL and Qwen2.5-VL in transformers, converted both ways: `make parity-torch`."""

import dataclasses

import numpy as np
import pytest

import ssmjax
import vlmjax
from tests.torch.random_weights import lively
from vlmjax.processing import image_patches, pack_patches

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


def ragged(seed):
    """Three prompts padded on the left, with no image, one and several, and videos of odd numbers of frames."""
    rng = np.random.default_rng(seed)
    rows, items = [], []
    for count in rng.permutation([0, 1, 3]):
        row, kinds = [], []
        for _ in range(count):
            shape = rng.integers(5, 130, 2).tolist()
            video = bool(rng.integers(2))
            frames = [int(rng.integers(1, 6))] if video else []
            image = rng.integers(0, 256, (*frames, *shape, 3), dtype=np.uint8)
            patches, grid = image_patches(image, max_pixels=28 * 28 * 24)
            n = len(patches) // 4
            row += [int(rng.integers(1, 40)), 48, *[VIDEO if video else IMAGE] * n, 49]
            kinds += [0, 0, *[2 if video else 1] * n, 0]
            items.append((video, patches, grid))
        text = rng.integers(1, 40, int(rng.integers(1, 7))).tolist()
        rows.append((row + text, kinds + [0] * len(text), [1] * (len(row) + len(text))))
    length = max(len(row) for row, *_ in rows)
    return [np.array([[0] * (length - len(x[i])) + x[i] for x in rows]) for i in range(3)], items


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL"])
def test_ragged_batches(kind, seed, tmp_path):
    theirs = lively(getattr(transformers, f"{kind}ForConditionalGeneration")(configuration(kind, seed)), seed)
    theirs.save_pretrained(tmp_path)
    ours = vlmjax.load_pretrained(tmp_path)
    ours.config = dataclasses.replace(ours.config, position_rule="plane")
    (tokens, kinds, mask), items = ragged(seed)
    given = dict(
        input_ids=torch.tensor(tokens),
        mm_token_type_ids=torch.tensor(kinds, dtype=torch.int32),
        attention_mask=torch.tensor(mask),
    )
    for video, pixels, grid in ((False, "pixel_values", "image"), (True, "pixel_values_videos", "video")):
        mine = [(patches, size) for moving, patches, size in items if moving == video]
        if mine:
            given[pixels] = torch.tensor(np.concatenate([patches for patches, _ in mine]))
            given[f"{grid}_grid_thw"] = torch.tensor([size for _, size in mine])
    if kind == "Qwen2_5_VL" and "video_grid_thw" in given:
        given["second_per_grid_ts"] = torch.ones(len(given["video_grid_thw"]))
    with torch.no_grad():
        wanted = theirs(**given).logits.numpy()
        theirs.model.rope_deltas = None  # of the call before
        options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
        made = theirs.generate(**given, **options, output_logits=True, return_dict_in_generate=True)
    images = pack_patches([(patches, size) for _, patches, size in items])
    found, scale = np.asarray(ours(tokens, images=images, mask=mask != 0)), np.abs(wanted).max()
    assert np.abs(found - wanted)[mask != 0].max() <= 1e-4 * scale
    options = dict(max_new_tokens=4, images=images, attention_mask=mask, return_logits=True)
    _, logits = ssmjax.generate(ours, tokens, **options)
    assert np.abs(np.asarray(logits) - torch.stack(made.logits, 1).numpy()).max() <= 1e-4 * scale


def test_patches_of_any_size():
    processor = transformers.Qwen2VLImageProcessorPil
    rng = np.random.default_rng(0)
    bounds = [(56 * 56, 28 * 28 * 1280), (4 * 28 * 28, 16384 * 28 * 28), (128 * 28 * 28, 768 * 28 * 28), (3136, 6272)]
    for i in range(24):
        shape = rng.integers(5, 40 if i % 3 == 0 else 400, 2)  # of fewer rows theirs could take them for channels
        image, (least, most) = rng.integers(0, 256, (*shape, 3), dtype=np.uint8), bounds[i % 4]
        wanted = processor(min_pixels=least, max_pixels=most)(image, return_tensors="np")
        patches, grid = image_patches(image, min_pixels=least, max_pixels=most)
        assert grid == tuple(wanted["image_grid_thw"][0])
        np.testing.assert_array_equal(patches, wanted["pixel_values"])
