"""Bipartite soft matching of ToMe: merges, sizes, sources and proportional attention, as numbers."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ssmjax import ops
from tests.parity.harness import Dump, family
from vlmjax.ops.token_merge.bipartite import bipartite_assignment, kth_assignment
from vlmjax.ops.token_merge.state import merge_into, unmerge

STEPS = ("stack0", "stack1", "stack2")


@family(
    "tome",
    inputs=(
        "*.metric",
        "even.x",
        "odd.x",
        "cls.x",
        "half.x",
        "over.x",
        "clip336.x",
        "kth?.x",
        "even.size",
        "odd.size",
        "cls.size",
        "half.size",
        "over.size",
        "clip336.size",
        "*.r",
        "*.cls",
        "stack.input",
        "prop.q",
        "prop.k",
        "prop.v",
    ),
)
def tome(dump: Dump) -> Mapping[str, np.ndarray]:
    given = {name: jnp.asarray(x) for name, x in dump.section("in/").items()}
    found = {}
    for case in ("even", "odd", "cls", "half", "over", "clip336"):
        found |= named(case, one_step(given, case))
    for k in (2, 3, 4):
        found |= named(f"kth{k}", every_kth(given, k))
    found |= stack(given["stack.input"])
    sizes = jnp.asarray(found["out/stack2.size"])[..., 0]
    q, k, v = (rearrange(given[f"prop.{name}"], "b h l p -> b l h p") for name in "qkv")
    found["out/prop.out"] = np.asarray(rearrange(ops.attention(q, k, v, bias=jnp.log(sizes)), "b l h p -> b h l p"))
    return found


def named(case, outputs):
    return {f"out/{case}.{name}": np.asarray(x) for name, x in outputs.items()}


def one_step(given, case):
    x, size = given[f"{case}.x"], given[f"{case}.size"][..., 0]
    assign, places = bipartite_assignment(
        given[f"{case}.metric"], int(given[f"{case}.r"]), protect_first=bool(given[f"{case}.cls"])
    )
    merged = merge_into(x, assign, places, size=size)
    return {
        "wavg": merged.tokens,
        "new_size": merged.size[..., None],
        "mean": merge_into(x, assign, places).tokens,
        "source": assign,
        "unmerged": unmerge(merged.tokens, assign),
    }


def every_kth(given, k):
    x = given[f"kth{k}.x"]
    assign, places = kth_assignment(given[f"kth{k}.metric"], k)
    merged = merge_into(x, assign, places)
    return {
        "wavg": merged.tokens,
        "new_size": merged.size[..., None],
        "unmerged": unmerge(merged.tokens, assign),
    }


def stack(x):
    """Three steps of 6 tokens; what is compared is the tokens themselves."""
    size, source, found = (
        jnp.ones(x.shape[:2]),
        jnp.broadcast_to(jnp.eye(x.shape[1])[None], (len(x), *[x.shape[1]] * 2)),
        {},
    )
    for step in STEPS:
        assign, places = bipartite_assignment(x, 6)
        merged = merge_into(x, assign, places, size=size)
        x, size, source = merged.tokens, merged.size, jnp.einsum("bkm,bmn->bkn", assign, source)
        found |= named(step, {"x": x, "size": size[..., None], "source": source})
    return found
