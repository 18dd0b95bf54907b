"""Fresh, random towers, language models and LLaVAs of transformers, read and written: `make parity-torch`."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import vlmjax
from ssmjax.checkpoints.arrays import model_arrays
from tests.torch.random_weights import lively
from vlmjax.processing import anyres_crops

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IMAGE = 60


def language_options(kind, rng):
    heads = int(rng.choice([2, 4]))
    options = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=int(rng.choice([48, 80])),
        num_hidden_layers=int(rng.choice([1, 3])),
        num_attention_heads=heads,
        num_key_value_heads=int(rng.choice([1, 2])),
        rms_norm_eps=float(rng.choice([1e-5, 1e-6])),
        max_position_embeddings=256,
        tie_word_embeddings=bool(rng.integers(2)),
        rope_parameters={"rope_type": "default", "rope_theta": float(rng.choice([1e4, 5e5]))},
    )
    if kind == "Llama":
        options |= {"attention_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
    return options


def tower_options(rng, activation="quick_gelu"):
    return dict(
        image_size=int(rng.choice([16, 24])),
        patch_size=int(rng.choice([4, 8])),
        hidden_size=32,
        intermediate_size=int(rng.choice([48, 64])),
        num_hidden_layers=int(rng.choice([2, 3])),
        num_attention_heads=int(rng.choice([2, 4])),
        hidden_act=str(rng.choice(["gelu", activation])),
    )


def pixels(rng, count, size):
    """Images as they are there, channels first."""
    return rng.standard_normal((count, 3, size, size)).astype(np.float32)


def last(images):
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def near(ours, theirs):
    theirs = theirs.numpy()
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def there_and_back(theirs, run, tmp_path):
    """What we make of a folder of theirs is compared by `run`; a folder of ours gives the same there, bit for bit."""
    theirs.save_pretrained(tmp_path / "theirs")
    ours = vlmjax.load_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        wanted = run(theirs, ours)
    vlmjax.save_pretrained(ours, tmp_path / "ours", format="hf")
    chex.assert_trees_all_equal(model_arrays(vlmjax.load_pretrained(tmp_path / "ours")), model_arrays(ours))
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        for one, other in zip(run(again, None), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_language_models(kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    config = getattr(transformers, f"{kind}Config")(**language_options(kind, rng))
    theirs = lively(getattr(transformers, f"{kind}ForCausalLM")(config), seed)
    tokens = rng.integers(0, 64, (2, 13))
    mask = np.ones_like(tokens)
    mask[1, :4] = 0

    def run(model, ours):
        plain = model(torch.tensor(tokens)).logits
        padded = model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits[:, 4:]
        if ours is not None:
            near(ours(jnp.asarray(tokens)), plain)
            near(ours(jnp.asarray(tokens), mask=jnp.asarray(mask) != 0)[:, 4:], padded)
        return [plain.numpy()]

    there_and_back(theirs, run, tmp_path)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["CLIPVision", "SiglipVision"])
def test_towers(kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    config = getattr(transformers, f"{kind}Config")(**tower_options(rng, "gelu_pytorch_tanh"))
    theirs = lively(getattr(transformers, f"{kind}Model")(config), seed)
    images = pixels(rng, 2, config.image_size)

    def run(model, ours):
        found = model(torch.tensor(images), output_hidden_states=True)
        if ours is not None:
            near(ours(last(images)), found.pooler_output)
            near(ours.hidden_states(last(images)), torch.stack(found.hidden_states))
        return [found.pooler_output.numpy()]

    there_and_back(theirs, run, tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_clip(seed, tmp_path):
    rng = np.random.default_rng(seed)
    text = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    text |= {"max_position_embeddings": 12, "eos_token_id": 63 if seed else 2}
    options = dict(text_config=text, vision_config=tower_options(rng), projection_dim=int(rng.choice([16, 24])))
    config = transformers.CLIPConfig(**options)
    theirs = lively(transformers.CLIPModel(config), seed)
    images, tokens = pixels(rng, 2, config.vision_config.image_size), rng.integers(3, 60, (3, 9))
    tokens[:, 6] = 63

    def run(model, ours):
        logits = model(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(images)).logits_per_image
        if ours is not None:
            near(ours(last(images), jnp.asarray(tokens)), logits)
        return [logits.numpy()]

    there_and_back(theirs, run, tmp_path)


def llava_parts(rng, seed):
    kind, tower = (("Llama", "CLIPVision"), ("Qwen2", "SiglipVision"))[seed % 2]
    text = getattr(transformers, f"{kind}Config")(**language_options(kind, rng))
    vision = getattr(transformers, f"{tower}Config")(**tower_options(rng))
    strategy = "default" if tower == "CLIPVision" else "full"
    return dict(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=bool(rng.integers(2)),
        tie_word_embeddings=text.tie_word_embeddings,
    )


@pytest.mark.parametrize("seed", range(3))
def test_llava(seed, tmp_path):
    rng = np.random.default_rng(seed)
    theirs = lively(
        transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**llava_parts(rng, seed))), seed
    )
    size = theirs.config.vision_config
    images = pixels(rng, 2, size.image_size)
    n = (size.image_size // size.patch_size) ** 2
    words = rng.integers(0, 50, (1, 7)).tolist()[0]
    tokens = np.array([words[:2] + [IMAGE] * n + words[2:4] + [IMAGE] * n + words[4:]])

    def run(model, ours):
        logits = model(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(images)).logits
        if ours is not None:
            near(ours(jnp.asarray(tokens), images=last(images)), logits)
        return [logits.numpy()]

    there_and_back(theirs, run, tmp_path)


def test_crops_of_llava_next():
    pinpoints = [(28, 56), (56, 28), (56, 56), (84, 28), (28, 84)]
    size = {"height": 28, "width": 28}
    processor = transformers.LlavaNextImageProcessorPil(
        size=size, crop_size=size, image_grid_pinpoints=[list(each) for each in pinpoints]
    )
    rng = np.random.default_rng(0)
    for shape in [(20, 60), (100, 45), (50, 50), (10, 13), (56, 84), (31, 29)]:
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        wanted = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(anyres_crops(image, pinpoints, 28).transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("seed", [0, 2])
def test_llava_next(seed, tmp_path):
    rng = np.random.default_rng(seed)
    parts = llava_parts(rng, 0)
    side = parts["vision_config"].image_size
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    config = transformers.LlavaNextConfig(**parts, image_grid_pinpoints=[[y * side, x * side] for y, x in grids])
    theirs = lively(transformers.LlavaNextForConditionalGeneration(config), seed)
    sizes = [tuple(rng.integers(10, 200, 2).tolist()) for _ in range(2)]

    def run(model, ours):
        rng = np.random.default_rng(9)
        found = vlmjax.load_pretrained(tmp_path / "theirs") if ours is None else ours
        counts = [1 + y * x for y, x in map(found.config.grid, sizes)]
        crops = [pixels(rng, count, side) for count in counts]
        padded = np.zeros((2, max(counts), 3, side, side), np.float32)
        for i, crop in enumerate(crops):
            padded[i, : len(crop)] = crop
        n = [len(found.order([size])) for size in sizes]
        tokens = np.array([[5, *[IMAGE] * n[0], 6, 7, *[IMAGE] * n[1], 8, 9]])
        given = dict(pixel_values=torch.tensor(padded), image_sizes=torch.tensor(sizes))
        logits = model(input_ids=torch.tensor(tokens), **given).logits
        if ours is not None:
            images = last(np.concatenate(crops))
            near(ours(jnp.asarray(tokens), images=images, order=ours.order(sizes)), logits)
        return [logits.numpy()]

    there_and_back(theirs, run, tmp_path)
