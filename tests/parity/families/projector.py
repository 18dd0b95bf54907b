"""What stands between tower and language model in LLaVA, VILA 1.5 and NVILA: outputs and gradients."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.mapping import KeyTable
from tests.parity.harness import Dump, family
from vlmjax.checkpoints.hf_original import projector_rules
from vlmjax.layers import Projector
from vlmjax.models import (
    anyres_order,
    best_size,
    block_grids,
    dynamic_tokens,
    interleave,
    multiscale_tokens,
    pack,
    place,
    pool_frames,
    tile_boxes,
    tile_grid,
)

Arrays = Mapping[str, np.ndarray]


@family("projector")
def projector(dump: Dump) -> Arrays:
    return {"project": project, "dynamic_s2": dynamic_s2, "s2": s2}[str(dump.config["op"])](dump)


def project(dump: Dump) -> Arrays:
    model, table = load(dump)
    x, gy = (jnp.asarray(v) for v in dump.inputs(["x", "gy"]).values())
    definition, state = nnx.split(model)

    def compute(state, x):
        return {"y": nnx.merge(definition, state)(x)}

    found, (grad_state, grad_x) = with_gradients(compute, {"y": gy}, state, x)
    return found | gradients(definition, grad_state, table) | {"grad_in/x": np.asarray(grad_x)}


def dynamic_s2(dump: Dump) -> Arrays:
    model, table = load(dump)
    config = dump.config
    given = dump.section("in/")
    features = jnp.asarray(given.pop("tower_features"))
    blocks = [None if block is None else tuple(block) for block in config["block_sizes"]]
    definition, state = nnx.split(model)
    options = dict(index=config["s2_resize_output_to_scale_idx"])

    def compute(state, features):
        ys = dynamic_tokens(features, blocks, config["s2_scales"], nnx.merge(definition, state), **options)
        return {f"y_{i}": y for i, y in enumerate(ys)}

    weights = {name.replace("gy", "y"): jnp.asarray(g) for name, g in given.items()}
    found, (grad_state, grad_features) = with_gradients(compute, weights, state, features)
    return found | gradients(definition, grad_state, table) | {"grad_in/tower_features": np.asarray(grad_features)}


def s2(dump: Dump) -> Arrays:
    config, parameters = dump.config, dump.section("param/")
    given = dump.inputs(["images", "gy"])
    p = config["patch_size"]

    def compute(weight, bias, images):
        def tower(images):
            x = rearrange(images, "b (y p) (x q) i -> b (y x) (i p q)", p=p, q=p)
            return x @ rearrange(weight, "d i p q -> (i p q) d") + bias

        x = rearrange(images, "b i y x -> b y x i")
        options = dict(index=config["s2_resize_output_to_scale_idx"])
        return {"y": multiscale_tokens(tower, x, config["s2_scales"], config["s2_max_split_size"], **options)}

    arrays = [jnp.asarray(x) for x in (parameters["weight"], parameters["bias"], given["images"])]
    found, grads = with_gradients(compute, {"y": jnp.asarray(given["gy"])}, *arrays)
    names = ("grad/weight", "grad/bias", "grad_in/images")
    return found | {name: np.asarray(g) for name, g in zip(names, grads, strict=True)}


@family("splice")
def splice(dump: Dump) -> Arrays:
    return {"splice": spliced, "pack": spliced, "tiling": tiling}[str(dump.config["op"])](dump)


def spliced(dump: Dump) -> Arrays:
    config, given = dump.config, dump.section("in/")
    values = {f"grad_in/{name}": jnp.asarray(x) for name, x in given.items() if "features" in name}
    parameters = {f"grad/{name}": jnp.asarray(x) for name, x in dump.section("param/").items()}
    cutting = config["model"] != "nvila" or config["training"]
    media, order = media_of(config, {name.removeprefix("grad_in/"): x for name, x in values.items()})
    ends = config.get("end_token_ids", {})
    batch = interleave(
        given["input_ids"],
        media,
        mask=given["attention_mask"],
        labels=given["labels"],
        image_token=0,
        ends={config["media_token_ids"][kind]: tokens for kind, tokens in ends.items()},
        dummies=config["model"] == "llava",
        max_length=config["max_length"] if cutting else None,
        padding=str(config["padding_side"]),
    )
    batch = pack(batch) if config["op"] == "pack" else batch

    def compute(parameters, values):
        x = jnp.where(batch.mask[..., None], parameters["grad/embed_tokens.weight"][batch.tokens], 0)
        visual = visual_of(config, parameters, values, order)
        return {"inputs_embeds": place(x, visual, jnp.asarray(batch.places))}

    weights = {"inputs_embeds": jnp.asarray(given["gy"])}
    found, (grads, grad_values) = with_gradients(compute, weights, parameters, values)
    found |= {name: np.asarray(g) for name, g in (grads | grad_values).items()}
    whole = {"attention_mask": batch.mask, "labels": batch.labels, "position_ids": batch.positions}
    return found | {f"out/{name}": x.astype(int) for name, x in whole.items()}


def media_of(config, values):
    """The spans of all media, and for anyres images which token stands where."""
    d = next(iter(values.values())).shape[-1]
    if "image_sizes" in config:  # (width, height) there
        sizes = [tuple(size[::-1]) for size in config["image_sizes"]]
        pinpoints = [tuple(size[::-1]) for size in config["image_grid_pinpoints"]]
        tile, side = config["vision_image_size"], config["num_patches_per_side"]
        grids = [tuple(length // tile for length in best_size(size, pinpoints)) for size in sizes]
        options = dict(merge=config["mm_patch_merge_type"], digits=None)
        orders = [anyres_order([size], [grid], side, **options) for size, grid in zip(sizes, grids, strict=True)]
        order = anyres_order(sizes, grids, side, **options)
        return {config["image_token_index"]: [[len(each)] for each in orders]}, order
    if config["model"] != "nvila":
        n, m, _ = values["image_features"].shape
        return {config["image_token_index"]: [[m]] * n}, None
    ids, media = config["media_token_ids"], {}
    if "image_features" in values:
        n, m, _ = values["image_features"].shape
        media[ids["image"]] = [[m]] * n
    videos = [x for name, x in values.items() if name.startswith("video")]
    windows = config.get("pool_sizes", [[1, 1, 1]])
    pooled = [[y.shape[:2] for y in pool_frames(np.zeros((*x.shape[:2], d)), windows)] for x in videos]
    media[ids["video"]] = [[m for frames, m in shapes for _ in range(frames)] for shapes in pooled]
    return media, None


def visual_of(config, parameters, values, order):
    d = next(iter(values.values())).shape[-1]
    parts = []
    for name, x in values.items():
        pooled = pool_frames(x, config["pool_sizes"]) if "pool_sizes" in config else [x]
        parts += [y.reshape(-1, d) for y in pooled] if "video" in name else [x.reshape(-1, d)]
    visual = jnp.concatenate(parts)
    if order is None:
        return visual
    newlines = jnp.broadcast_to(parameters["grad/image_newline"], (len(order), d))
    return place(newlines, visual, jnp.asarray(order))


def tiling(dump: Dump) -> Arrays:
    config, sizes = dump.config, dump.inputs(["sizes"])["sizes"][:, ::-1].tolist()
    tile, scales = config["image_size"], config["s2_scales"]
    limits = dict(least=config["min_tiles"], most=config["max_tiles"])
    grids = [tile_grid(size, tile, **limits) for size in sizes]
    least = (scales[-1] // scales[0]) ** 2
    blocks = [tile_grid(size, scales[0], least=least, most=config["max_tiles"]) for size in sizes]
    boxes = [tile_boxes(grid, tile, thumbnail=config["use_thumbnail"]) for grid in grids]
    return {
        "out/grid": np.array(grids)[:, ::-1],
        "out/num_tiles": np.array([len(each) for each in boxes]),
        "out/s2_block_size": np.array(blocks),
        "out/s2_num_tiles": np.array([sum(y * x for y, x in block_grids(block, scales)) for block in blocks]),
        "out/boxes_of_one": boxes[config["boxes_index"]],
    }


def with_gradients(compute: Callable, weights: Mapping[str, jax.Array], *arguments):
    """The outputs under their names in a dump, and the gradients of their sum with these weights."""

    def loss(*arguments):
        ys = compute(*arguments)
        return sum((ys[name] * weight).sum() for name, weight in weights.items()), ys

    grads, ys = jax.grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)
    return {f"out/{name}": np.asarray(y) for name, y in ys.items()}, grads


def gradients(definition, state, table: KeyTable) -> dict[str, np.ndarray]:
    arrays = table.to_source(model_arrays(nnx.merge(definition, state)))
    return {f"grad/{name}": g for name, g in arrays.items()}


def load(dump: Dump) -> tuple[Projector, KeyTable]:
    config = dump.config
    kind = str(config["mm_projector_type"])
    by_columns = config["model"] == "vila1.5"
    model = Projector(kind, config["mm_hidden_size"], config["hidden_size"], by_columns=by_columns, rngs=nnx.Rngs(0))
    table = KeyTable(projector_rules(kind, "layers." if "downsample" in kind else "", ""))
    set_model_arrays(model, table.to_ours(dump.section("param/"), model_arrays(model)))
    return model, table
