"""Folders of transformers' vision-language models: towers, language models, LLaVA. Images there are channels first."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

import ssmjax
import vlmjax.models
from ssmjax.checkpoints.arrays import model_arrays, read_safetensors, set_model_arrays
from ssmjax.models import registry
from tests.parity.harness import Dump, family

assert vlmjax.models  # registers the families

Arrays = Mapping[str, np.ndarray]


def load(folder: Path, name: str) -> nnx.Module:
    """The model in a folder of the Hugging Face form."""
    layout, *_ = registry.hf_layouts(registry.get_family(name))
    description = json.loads((folder / "config.json").read_text())
    assert layout.accepts(description)
    config = layout.read(description)
    model = nnx.eval_shape(lambda: registry.build(name, config))
    source = read_safetensors((folder / "model.safetensors").read_bytes(), str(folder))
    table = layout.table(config)
    arrays = table.to_ours(source, model_arrays(model), str(folder))
    assert layout.read(layout.write(config)) == config
    back = table.to_source(arrays)
    spelled = table.canonical(source, model_arrays(model))
    assert set(back) == set(spelled)
    assert all(np.array_equal(back[key], spelled[key]) for key in back)
    set_model_arrays(model, arrays)
    return model


def images_of(pixel_values: np.ndarray) -> jax.Array:
    return jnp.asarray(rearrange(pixel_values, "b d y x -> b y x d"))


def outputs(**named: jax.Array) -> dict[str, np.ndarray]:
    return {f"out/{name}": np.asarray(x) for name, x in named.items()}


@family("clip", inputs=("pixel_values", "input_ids", "attention_mask", "interp_pixel_values"))
def clip(dump: Dump) -> Arrays:
    model = load(dump.folder / "hf", "clip")
    given = dump.section("in/")
    images, tokens, mask = images_of(given["pixel_values"]), given["input_ids"], given["attention_mask"] != 0
    texts = jnp.asarray(tokens)
    states = model.vision.hidden_states(images)
    text_states = model.text.hidden_states(texts, mask=mask)
    logits = model(images, texts, mask=mask)
    count = min(len(images), len(texts))
    return outputs(
        logits_per_image=logits,
        logits_per_text=logits.T,
        image_embeds=model.embed_images(images),
        text_embeds=model.embed_texts(texts, mask=mask),
        vision_hidden_states=states,
        vision_last=states[-1],
        vision_pooled=model.vision(images),
        text_hidden_states=text_states,
        text_last=model.text.norm(text_states[-1]),
        text_pooled=model.text(texts, mask=mask),
        interp_last=model.vision.hidden(images_of(given["interp_pixel_values"])),
        square_loss=vlmjax.models.contrastive_loss(logits[:count, :count]),
    )


@family("clip_vision", inputs=("pixel_values",))
def clip_vision(dump: Dump) -> Arrays:
    model = load(dump.folder / "hf", "clip_vision")
    images = images_of(dump.section("in/")["pixel_values"])
    weights = [model.attention_weights(images, layer) for layer in range(model.config.depth)]
    return outputs(hidden_states=model.hidden_states(images), attentions=jnp.stack(weights), pooled=model(images))


@family("siglip_vision", inputs=("pixel_values",))
def siglip_vision(dump: Dump) -> Arrays:
    model = load(dump.folder / "hf", "siglip_vision")
    images = images_of(dump.section("in/")["pixel_values"])
    states = model.hidden_states(images)
    return outputs(hidden_states=states, last=model.post_norm(states[-1]), pooled=model(images))


@family("llama", "qwen2", inputs=("input_ids", "left_mask", "right_mask"))
def language(dump: Dump) -> Arrays:
    model = load(dump.folder / "hf", dump.family)
    given = dump.section("in/")
    tokens = jnp.asarray(given["input_ids"])
    left, right = (jnp.asarray(given[f"{side}_mask"]) != 0 for side in ("left", "right"))
    logits = model(tokens)
    new = dump.arrays["out/greedy"].shape[1] - tokens.shape[1]
    greedy, greedy_logits = ssmjax.generate(model, tokens, max_new_tokens=new, return_logits=True)
    padded = functools.partial(ssmjax.generate, model, tokens, attention_mask=left, return_logits=True)
    left_greedy, left_logits = padded(max_new_tokens=new)
    return outputs(
        logits=logits,
        hidden_states=model.hidden_states(model.embed(tokens)),
        loss=next_token_loss(logits, tokens, jnp.ones_like(tokens, bool)),
        left_logits=_at(left, model(tokens, mask=left), dump.arrays["out/left_logits"]),
        right_logits=_at(right, model(tokens, mask=right), dump.arrays["out/right_logits"]),
        greedy=jnp.concatenate([tokens, greedy], axis=1),
        greedy_logits=greedy_logits,
        left_greedy=jnp.concatenate([tokens, left_greedy], axis=1),
        left_greedy_logits=left_logits,
    )


@family(
    "llava",
    inputs=("pixel_values", "ids_a", "ids_b", "ids_pad", "mask_pad", "pos_pad", "labels_a"),
)
def llava(dump: Dump) -> Arrays:
    return llava_outputs(load(dump.folder / "hf", "llava"), dump)


def llava_outputs(model: nnx.Module, dump: Dump) -> Arrays:
    given = dump.section("in/")
    images = images_of(given["pixel_values"])
    ids = {name: jnp.asarray(given[f"ids_{name}"]) for name in ("a", "b", "pad")}
    mask = jnp.asarray(given["mask_pad"]) != 0
    new = dump.arrays["out/greedy_a"].shape[1] - ids["a"].shape[0]
    first = images[: _count(model, ids["a"])]
    parts = {"a": first, "b": images[len(first) :]}  # text a has the first image, text b the others
    logits = {name: model(ids[name][None], images=part)[0] for name, part in parts.items()}
    greedy, greedy_logits = ssmjax.generate(model, ids["a"][None], max_new_tokens=new, return_logits=True, images=first)
    pad_greedy, pad_logits = ssmjax.generate(
        model, ids["pad"], max_new_tokens=new, attention_mask=mask, return_logits=True, images=images
    )
    embedded = model.embed(ids["a"][None], model.projector(model.visual_tokens(first)))
    labels = jnp.asarray(given["labels_a"])
    return outputs(
        image_features=model.projector(model.visual_tokens(images)),
        vision_hidden_states=model.vision.hidden_states(images),
        logits_a=logits["a"],
        logits_b=logits["b"],
        hidden_a=model.language.hidden_states(embedded)[:, 0],
        logits_pad=_at(mask, model(ids["pad"], images=images, mask=mask), dump.arrays["out/logits_pad"]),
        loss_a=next_token_loss(logits["a"][None], jnp.maximum(labels, 0), labels >= 0),
        greedy_a=jnp.concatenate([ids["a"][None], greedy], axis=1),
        greedy_logits_a=greedy_logits,
        greedy_pad=jnp.concatenate([ids["pad"], pad_greedy], axis=1),
        greedy_logits_pad=pad_logits,
    )


def next_token_loss(logits: jax.Array, tokens: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean cross entropy of each counted token, from the logits of the one before."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)[..., 0]
    return (losses * counted[:, 1:]).sum() / counted[:, 1:].sum()


def _count(model: nnx.Module, tokens: jax.Array) -> int:
    """How many images a text has places for."""
    return int((tokens == model.config.image_token).sum()) // model.config.tokens_per_image


def _at(mask: jax.Array, ours: jax.Array, theirs: np.ndarray) -> jax.Array:
    """Ours at real tokens. What stands at padding is no output: there, theirs."""
    return jnp.where(mask[..., None], ours, theirs)
