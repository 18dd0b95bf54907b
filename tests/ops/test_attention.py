"""Attention against float64 loops, gradients against autodiff of the reference, padding, packing, and the cache."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.attention.cost import attention_cost
from tests.layers import quick
from tests.ops import oracle


def problem(l, m, *, b=2, h=4, g=2, p=8, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"q": (b, l, h, p), "k": (b, m, g, p), "v": (b, m, g, p)}
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def by_hand(q, k, v, *, causal=False, mask=None, segment_ids=None, key_segment_ids=None, bias=None, offset=None):
    """Loops over rows, heads and queries, each with the list of keys that it sees."""
    (b, l, h, p), (m, g) = q.shape, k.shape[1:3]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    bias = None if bias is None else np.broadcast_to(bias[:, None, None] if bias.ndim == 2 else bias, (b, h, l, m))
    key_segment_ids = segment_ids if key_segment_ids is None else key_segment_ids
    first = np.broadcast_to(m - l if offset is None else offset, (b,))
    y = np.zeros((b, l, h, p))
    for row, query, head in np.ndindex(b, l, h):
        seen = [
            key
            for key in range(m)
            if not (causal and key > first[row] + query)
            and (mask is None or mask[row, key])
            and (segment_ids is None or segment_ids[row, query] == key_segment_ids[row, key])
        ]
        if not seen:
            continue
        group = head // (h // g)
        logits = k[row, seen, group] @ q[row, query, head] / np.sqrt(p)
        if bias is not None:
            logits = logits + bias[row, head, query][seen]
        weights = np.exp(logits - logits.max())
        y[row, query, head] = weights @ v[row, seen, group] / weights.sum()
    return y


def options_of(kind, b, l, m):
    rng = np.random.default_rng(5)
    mask = rng.random((b, m)) > 0.3
    mask[0] = np.arange(m) >= m // 2  # padding on the left
    return {
        "plain": {},
        "causal": {"causal": True},
        "padded": {"mask": mask, "causal": True},
        "packed": {"segment_ids": np.sort(rng.integers(0, 3, (b, l))), "key_segment_ids": rng.integers(0, 3, (b, m))},
        "biased": {"bias": rng.standard_normal((b, m)).astype(np.float32), "causal": True},
        "full bias": {"bias": rng.standard_normal((1, 4, l, m)).astype(np.float32)},
        "offset": {"causal": True, "offset": np.array([0, max(m - l, 0)])},
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "causal", "padded", "packed", "biased", "full bias", "offset"])
@pytest.mark.parametrize(("l", "m"), quick.first([(1, 9), (7, 13), (1, 1), (5, 5)], 2))
def test_values_and_gradients(l, m, kind):
    p, options = problem(l, m), options_of(kind, 2, l, m)
    np.testing.assert_allclose(jax.jit(lambda p: ops.attention(**p, **options))(p), by_hand(**p, **options), atol=2e-6)

    def grads(implementation):
        loss = jax.grad(lambda p: jnp.sin(ops.attention(**p, **options, implementation=implementation)).sum())
        return jax.jit(loss, compiler_options=oracle.QUICK_COMPILE)(p)

    chex.assert_trees_all_close(grads("xla"), grads("reference"), rtol=1e-5, atol=2e-6)


def test_weights():
    p = problem(5, 5)
    options = options_of("padded", 2, 5, 5)
    weights = ops.attention_weights(p["q"], p["k"], **options)
    y = jnp.einsum("bhlm,bmhp->blhp", weights, jnp.repeat(p["v"], 2, axis=2))
    np.testing.assert_allclose(y, ops.attention(**p, **options), atol=1e-6)
    seen = np.where((options["mask"][:, None] & np.tri(5, dtype=bool)).any(-1), 1, 0)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(seen[:, None], (2, 4, 5)), atol=1e-6)


def test_two_equal_keys_are_one_of_size_two():
    p = problem(3, 5)
    doubled = {name: np.concatenate([p[name], p[name][:, -1:]], axis=1) for name in ("k", "v")}
    size = np.ones((2, 5), np.float32)
    size[:, -1] = 2
    merged = ops.attention(**p, bias=np.log(size))
    np.testing.assert_allclose(merged, ops.attention(p["q"], **doubled), atol=5e-7)


def test_what_stands_at_padding_changes_no_bit():
    p, mask = problem(4, 6), np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0]], bool)

    def loss(q, k, v):
        y = ops.attention(q, k, v, mask=mask, causal=True)
        return (y**2).sum(), y

    program = quick.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    def run(fill):
        k, v = (np.where(mask[..., None, None], p[name], fill).astype(np.float32) for name in ("k", "v"))
        return program(p["q"], k, v)

    chex.assert_trees_all_equal(run(np.nan), run(0.0), run(1e30))


def test_a_cache_gives_what_the_whole_gives():
    p, bias = problem(7, 7), np.log(np.random.default_rng(1).integers(1, 4, (2, 7))).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7], bool)

    @quick.jit
    def run(p, mask, bias):
        whole = ops.attention(**p, causal=True, mask=mask, bias=bias)
        cache, pieces = ops.empty_cache(2, 9, 2, 8), []
        for start, end in ((0, 4), (4, 5), (5, 7)):
            span = slice(start, end)
            k = jnp.where(mask[:, span, None, None], p["k"][:, span], jnp.nan)
            cache = ops.append_keys(cache, k, p["v"][:, span], mask=mask[:, span], bias=bias[:, span])
            q = p["q"][:, span]
            offset = cache.length - q.shape[1]
            pieces.append(ops.attention(q, cache.keys, cache.values, bias=cache.bias, causal=True, offset=offset))
        return jnp.concatenate(pieces, axis=1), whole, cache

    together, whole, cache = run(p, mask, bias)
    np.testing.assert_allclose(together, whole, atol=1e-6)
    assert int(cache.length) == 7
    assert cache.bias[:, 7:].tolist() == [[-np.inf] * 2] * 2


def test_vmap_empty_and_low_precision():
    p = problem(5, 6)
    stacked = {name: np.stack([x, 0.5 * x]) for name, x in p.items()}
    run = quick.jit(lambda p, causal=False: ops.attention(**p, causal=causal), static_argnames="causal")
    wanted = np.stack([run({name: x[i] for name, x in stacked.items()}) for i in range(2)])
    chex.assert_trees_all_close(quick.jit(jax.vmap(lambda p: ops.attention(**p)))(stacked), wanted, atol=1e-6)
    for b, l, m in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        y = run(problem(l, m, b=b), causal=True)
        chex.assert_shape(y, (b, l, 4, 8))
        assert not np.any(y)
    low = {name: jnp.asarray(x, jnp.bfloat16) for name, x in p.items()}
    y, exact = run(low), by_hand(**{name: np.asarray(x, np.float32) for name, x in low.items()})
    plain = jax.nn.dot_product_attention(low["q"], *(jnp.repeat(low[name], 2, axis=2) for name in "kv"))
    assert y.dtype == jnp.bfloat16
    worst = [np.abs(np.asarray(x, np.float64) - exact).max() for x in (y, plain)]
    assert worst[0] <= 2 * worst[1]


def test_large_logits_do_not_overflow():
    p = problem(4, 4, scale=100.0)
    np.testing.assert_allclose(ops.attention(**p), by_hand(**p), rtol=1e-4, atol=1e-3)


def test_cudnn_by_name_says_what_is_missing():
    p = problem(4, 4)
    with pytest.raises(NotImplementedError, match="cuDNN takes bfloat16 or float16, not float32"):
        ops.attention(**p, implementation="cudnn")
    low = {name: jnp.asarray(x, jnp.bfloat16) for name, x in p.items()}
    with pytest.raises(NotImplementedError, match="masks, segments"):
        ops.attention(**low, mask=np.ones((2, 4), bool), implementation="cudnn")


def test_cost():
    b, l, h, p = 2, 6, 4, 8
    cost = attention_cost(b, l, l, h, p)
    args = [jnp.ones((b, l, h, p))] * 3
    analysis = jax.jit(ops.attention).lower(*args).cost_analysis()
    products = analysis["flops"] - cost.flops
    assert 0 < products <= 8 * cost.transcendentals  # the softmax, some operations for each pair
    assert attention_cost(b, l, l, h, p, causal=True).flops == cost.flops * (l + 1) / (2 * l)
    assert cost.bytes == 4 * 4 * b * l * h * p


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 3, 4)}, r"q must be of rank 4, \(b l h p\), got \(2, 3, 4\)"),
        ({"k": (2, 5, 3, 8), "v": (2, 5, 3, 8)}, "g a divisor of the 4 heads of q"),
        ({"q": (2, 4, 5, 8), "k": (2, 4, 3, 8), "v": (2, 4, 3, 8)}, "g a divisor of the 5 heads"),
        ({"q": (2, 4, 6, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 8)}, r"fit \(b h l p\)"),
        ({"v": (2, 4, 2, 8)}, "v must be of the shape of k"),
        ({"mask": (2, 5)}, "mask must be a boolean array"),
        ({"bias": (2, 4)}, r"bias must be \(b m\) = \(2, 5\), or of rank 4"),
        ({"segment_ids": jnp.zeros((2, 3), int)}, "key_segment_ids must be given"),
        ({"causal": True, "offset": jnp.zeros(3, int)}, r"offset must be an int, or an integer array \(b\) = \(2,\)"),
        ({"causal": 1}, "causal must be True or False"),
    ],
)
def test_errors(change, message):
    arguments = {"q": (2, 3, 4, 8), "k": (2, 5, 2, 8), "v": (2, 5, 2, 8)} | change
    arguments = {name: jnp.ones(x) if isinstance(x, tuple) else x for name, x in arguments.items()}
    with pytest.raises(ValueError, match=message):
        ops.attention(**arguments)


@pytest.mark.parametrize("kind", quick.first(["padded", "packed", "full bias", "plain", "causal", "offset"], 3))
def test_blocks_of_queries_are_the_whole(kind, monkeypatch):
    """With room for few logits the queries are taken in blocks, whose number need not divide them."""
    arrays, options = problem(7, 9), options_of(kind, 2, 7, 9)

    def run(q, k, v):
        def loss(q, k, v):
            y = ops.attention(q, k, v, **options, implementation="xla")
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

        return quick.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    expected = run(arrays["q"], arrays["k"], arrays["v"])
    monkeypatch.setattr(sys.modules["ssmjax.ops.attention.xla"], "MOST", 2 * 4 * 9 * 3)  # three queries at once
    chex.assert_trees_all_close(run(arrays["q"], arrays["k"], arrays["v"]), expected, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_are_a_mask_of_the_first(causal):
    arrays, lengths = problem(5, 5), np.array([3, 0])
    mask = np.arange(5)[None] < lengths[:, None]
    expected = ops.attention(**arrays, causal=causal, mask=mask)
    chex.assert_trees_all_equal(ops.attention(**arrays, causal=causal, key_lengths=lengths), expected)
    assert not np.asarray(expected[1]).any()
    dirty = arrays | {name: np.where(mask[..., None, None], arrays[name], np.nan) for name in "kv"}
    chex.assert_trees_all_equal(ops.attention(**dirty, causal=causal, key_lengths=lengths), expected)
    with pytest.raises(ValueError, match="key_lengths must be"):
        ops.attention(**arrays, key_lengths=np.array([1, 2, 3]))
