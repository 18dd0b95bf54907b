"""Folders of Qwen2-VL and Qwen2.5-VL: images, several of them, videos, both rules of positions, greedy tokens."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

import ssmjax
from tests.parity.families.vlm import load
from tests.parity.harness import Dump, family
from vlmjax.models import Qwen2VL
from vlmjax.processing import PackedPatches, pack_patches

Arrays = dict[str, np.ndarray]
OLD = "transformers_4_57"

INPUTS = ("*.input_ids", "*.attention_mask", "*.mm_token_type_ids", "*.pixel_values*", "*_grid_thw", "*.second_per_*")


@family("qwen2vl", "qwen25vl", inputs=INPUTS)
def qwen2_vl(dump: Dump) -> Mapping[str, np.ndarray]:
    model = load(dump.folder / "hf", "qwen2_vl")
    given = dump.section("in/")
    eras = {"": "plane", f"{OLD}/": "span"}
    found: Arrays = {}
    for start, rule in eras.items():
        model.config = dataclasses.replace(model.config, position_rule=rule)
        for case in sorted({name.split(".")[0] for name in given}):
            wanted = {
                name.removeprefix(f"out/{start}{case}."): x
                for name, x in dump.arrays.items()
                if name.startswith(f"out/{start}{case}.")
            }
            inputs = {name.removeprefix(f"{case}."): x for name, x in given.items() if name.startswith(f"{case}.")}
            if wanted:
                found |= {f"out/{start}{case}.{name}": x for name, x in outputs(model, inputs, wanted).items()}
    return found


def packed(model: Qwen2VL, inputs: Arrays, **options) -> PackedPatches | None:
    """The images and videos of a case, in the order in which they stand in the text."""
    tokens = inputs["input_ids"][inputs["attention_mask"] != 0]
    config, images, first = model.config, {}, {}
    for kind, suffix, token in (("image", "", config.image_token), ("video", "_videos", config.video_token)):
        if f"pixel_values{suffix}" not in inputs:
            continue
        grids = [tuple(grid) for grid in inputs[f"{kind}_grid_thw"].tolist()]
        cuts = np.cumsum([np.prod(grid) for grid in grids])[:-1]
        images[kind] = list(zip(np.split(inputs[f"pixel_values{suffix}"], cuts), grids, strict=True))
        first[kind] = int(np.argmax(tokens == token))
    if not images:
        return None
    ordered = [image for kind in sorted(first, key=first.__getitem__) for image in images[kind]]
    seconds = inputs.get("second_per_grid_ts", np.ones(1))
    return pack_patches(ordered, seconds=float(seconds[0]), **options)


def outputs(model: Qwen2VL, inputs: Arrays, wanted: Arrays) -> Arrays:
    """What a case asks for."""
    tokens, mask = jnp.asarray(inputs["input_ids"]), jnp.asarray(inputs["attention_mask"]) != 0
    images = packed(model, inputs)
    visual = None if images is None else model.encode(images, room=tokens.size)
    positions = model.positions(tokens, visual, mask)
    embedded = model.embed(tokens, visual, mask)
    x, _ = model.language.decode(embedded, mask=mask, positions=positions)
    logits = model.language.logits(x)
    found = {
        "logits": np.where(mask[..., None], logits, wanted["logits"]),
        "position_ids": positions.transpose(2, 0, 1),
        "rope_delta": model.rope_delta(positions, mask)[:, None],
        "hidden_states": model.language.hidden_states(embedded, mask=mask, positions=positions),
    }
    if "greedy" in wanted:
        new = wanted["greedy"].shape[1] - tokens.shape[1]
        options = dict(max_new_tokens=new, attention_mask=mask, return_logits=True, visual=visual)
        greedy, greedy_logits = ssmjax.generate(model, tokens, **options)
        found |= {"greedy": np.concatenate([tokens, greedy], axis=1), "greedy_logits": greedy_logits}
        if "greedy_margin" not in wanted:  # without margins every token counts
            del found["greedy_logits"]
    if "vision_merged" in wanted:
        found |= vision_outputs(model, inputs, wanted)
    return {name: np.asarray(x) for name, x in found.items() if name in wanted or name == "greedy_logits"}


def vision_outputs(model: Qwen2VL, inputs: Arrays, wanted: Arrays) -> Arrays:
    """The tower's outputs, for one kind of input: that whose patches are as many as theirs."""
    count = len(wanted["vision_merged"])
    kinds = {
        suffix: {name: x for name, x in inputs.items() if not name.startswith((other, f"pixel_values{left}"))}
        for suffix, other, left in (("", "video", "_videos"), ("_videos", "image", ""))
    }
    for suffix, own in kinds.items():
        if f"pixel_values{suffix}" not in inputs:
            continue
        own = {**own, f"pixel_values{suffix}": inputs[f"pixel_values{suffix}"]}
        images = packed(model, own, separate=False, length=-1)
        if images.count == count:
            states = model.vision.hidden_states(images)[:, 0]
            merged = model.vision(images)[:count]
            return {"vision_hidden_states": states, "vision_last": states[-1], "vision_merged": merged}
    raise ValueError(f"no input has the {count} visual tokens of the dump")
