"""Folders of transformers' LLaVA-NeXT: images of several shapes, each with its crops."""

import jax.numpy as jnp
import numpy as np

import ssmjax
from tests.parity.families.vlm import images_of, load
from tests.parity.harness import Dump, family
from vlmjax.models import anyres_grid, anyres_order, best_size


@family(
    "llava_next",
    inputs=("*.pixel_values", "*.image_sizes", "*.input_ids"),
)
def llava_next(dump: Dump) -> dict[str, np.ndarray]:
    model = load(dump.folder / "hf", "llava_next")
    given = dump.section("in/")
    found = {}
    for case in sorted({name.partition(".")[0] for name in given}):
        images = images_of(given[f"{case}.pixel_values"][0])
        size = tuple(given[f"{case}.image_sizes"][0].tolist())
        tokens = jnp.asarray(given[f"{case}.input_ids"])
        inputs = dict(images=images, order=model.order([size]))
        new = dump.arrays[f"out/{case}.greedy"].shape[1] - tokens.shape[1]
        greedy = ssmjax.generate(model, tokens, max_new_tokens=new, **inputs)
        found |= {
            f"out/{case}.features": model.project(**inputs)[0],
            f"out/{case}.logits": model(tokens, **inputs),
            f"out/{case}.greedy": jnp.concatenate([tokens, greedy], axis=1),
            f"out/{case}.best": best_size(size, model.config.pinpoints),
            f"out/{case}.grid": model.config.grid(size),
        }
    table = dump.arrays["out/token_table_h_w_gh_gw_n"]
    published = type(model.config)()  # of the published size, whose numbers of tokens are in the table
    rows = []
    for size in table[:, :2].tolist():
        grid = anyres_grid(size, published.pinpoints, 336)
        rows.append([*size, *grid, len(anyres_order([size], [grid], published.vision.side))])
    found["out/token_table_h_w_gh_gw_n"] = np.array(rows)
    return {name: np.asarray(x) for name, x in found.items()}
