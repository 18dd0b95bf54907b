"""Vim: sizes, options, equivalent ways to run it, randomness, precision, compile time, messages."""

import dataclasses
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.layers import add_norm, apply_rope, axial_rope_table, drop_path_rates
from ssmjax.models import registry
from ssmjax.models.summary import count_parameters
from ssmjax.models.vim import Vim, VimConfig
from tests.layers import quick

# One direction, where the mixer is not what is tested: it compiles in half the time.
TINY = VimConfig(img_size=16, patch_size=8, num_classes=5, d_model=16, depth=2, d_state=4, bidirectional="none")


def make(**options):
    return quick.lively(lambda: Vim(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))


def like(model, **options):
    """A model with the same parameters and other options."""
    definition = nnx.graphdef(
        nnx.eval_shape(lambda: Vim(dataclasses.replace(model.config, **options), rngs=nnx.Rngs(0)))
    )
    return nnx.merge(definition, nnx.state(model))


def tokens_and_features(model):
    definition, state = nnx.split(model)

    @quick.jit
    def run(state, x):
        model = nnx.merge(definition, state)
        return model.tokens(x), model.features(x)

    return run(state, images())


def images(size=(16, 16), batch=2, seed=1):
    return jax.random.normal(jax.random.key(seed), (batch, *size, 3))


@pytest.mark.parametrize(
    ("name", "number"), quick.first([("vim_tiny", 7_148_008), ("vim_small", 25_796_584), ("vim_base", 97_598_440)])
)
def test_parameter_counts_are_the_published_ones(name, number):
    assert count_parameters(nnx.eval_shape(lambda: ssmjax.create_model(name, num_classes=1000))) == number


def test_nano_is_small():
    assert count_parameters(nnx.eval_shape(lambda: ssmjax.create_model("vim_nano"))) == 837_386


@pytest.mark.parametrize(
    "how",
    quick.first(
        [
            {"unroll_layers": True, "remat": True, "scan_together": True},
            {"unroll_layers": True},
            {"remat": True, "scan_together": True},
        ]
    ),
)
def test_scanned_unrolled_and_rematerialized_are_equal(how):
    model = make(bidirectional="v2")

    def outputs(**how):
        definition, state = nnx.split(like(model, **how))
        return quick.jit(jax.value_and_grad(lambda state: (nnx.merge(definition, state)(images()) ** 2).sum()))(state)

    chex.assert_trees_all_close(outputs(**how), outputs(), rtol=1e-4, atol=1e-4)


def test_equals_its_blocks_by_hand():
    model = make(bidirectional="v2", rope=True, layer_scale=0.5, class_token="double", norm="layer")

    def by_hand(model, x):
        definition, state = nnx.split(model.layers)
        head, tail = (jnp.broadcast_to(t[...], (2, 1, 16)) for t in (model.cls_token_head, model.cls_token_tail))
        hidden = jnp.concatenate([head, model.patch_embed(x), tail], axis=1) + model.pos_embed[...]
        residual, angles = jnp.zeros_like(hidden), np.pad(axial_rope_table(2, 2, 16), ((1, 1), (0, 0)))
        for i in range(model.config.depth):
            block = nnx.merge(definition, jax.tree.map(lambda x, i=i: x[i], state))
            residual = residual + apply_rope(hidden, angles)
            hidden = block.mixer(block.norm(residual)) * block.gamma[...][None, None]
        tokens = model.norm_f(residual + hidden)
        features = (tokens[:, 0] + tokens[:, -1]) / 2
        return tokens, features, model.head(features)

    definition, state = nnx.split(model)
    expected = quick.jit(lambda state, x: by_hand(nnx.merge(definition, state), x))(state, images())
    ours = *tokens_and_features(model), quick.apply(model, images())
    chex.assert_trees_all_close(ours, expected, atol=1e-5)


def test_alternate_layers_sum_a_flipped_pair():
    model = make(alternate_layers=True, class_token="none")

    def by_hand(model, x):
        definition, state = nnx.split(model.layers)
        first, second = (nnx.merge(definition, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(2))
        x = model.patch_embed(x) + model.pos_embed[...]
        hidden = first.mixer(first.norm(x)) + jnp.flip(second.mixer(second.norm(jnp.flip(x, 1))), 1)
        return add_norm(model.norm_f, hidden, x + x)[0]

    definition, state = nnx.split(model)
    expected = quick.jit(lambda state, x: by_hand(nnx.merge(definition, state), x))(state, images())
    for how in ({}, {"unroll_layers": True}):
        chex.assert_trees_all_close(tokens_and_features(like(model, **how))[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("class_token", "positions"), [("middle", (2,)), ("head", (0,)), ("double", (0, 5)), ("none", ())]
)
def test_class_tokens_stand_where_the_configuration_says(class_token, positions):
    model = make(class_token=class_token)
    assert model.config.class_positions == positions
    everything, features = tokens_and_features(model)
    chex.assert_shape(everything, (2, 4 + len(positions), 16))
    if positions:
        chex.assert_trees_all_close(features, everything[:, np.array(positions)].mean(1), atol=1e-5)


def test_pooling_without_class_token():
    model = make(class_token="none")
    everything, features = tokens_and_features(like(model, pool="max"))
    expected = {
        "last": model.head(everything[:, -1]),
        "mean": model.head(everything.mean(1)),
        "max": model.head(everything).max(1),
        "all": model.head(everything),
    }
    for pool, logits in expected.items():
        chex.assert_trees_all_close(quick.apply(like(model, pool=pool), images()), logits, atol=1e-5)
    chex.assert_trees_all_close(features, everything, atol=1e-5)


def test_rope_leaves_class_tokens_alone_or_follows_the_original():
    head, middle = (make(class_token=place, rope=True, pos_embed=False) for place in ("head", "middle"))
    by_rule, by_place = (
        [quick.apply(like(model, rope_skips=skips), images()) for model in (head, middle)]
        for skips in ("first", "class")
    )
    chex.assert_trees_all_close(by_rule[0], by_place[0])
    assert float(abs(by_rule[1] - by_place[1]).max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({"img_size": 24}, (3, 3)),
        ({"img_size": (16, 24)}, (2, 3)),
        ({"stride": 4}, (3, 3)),
        ({"img_size": 32, "patch_size": 4, "stem": "conv"}, (8, 8)),
        ({"img_size": 30, "patch_size": 4, "stem": "conv"}, (8, 8)),
        ({"in_channels": 1}, (2, 2)),
        ({"pos_embed": False}, (2, 2)),
        ({"float32_residual": False, "dtype": "bfloat16"}, (2, 2)),
    ],
)
def test_other_sizes_just_work(options, grid):
    model = nnx.eval_shape(lambda: Vim(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))
    assert model.config.grid == grid
    definition, state = nnx.split(model)
    x = jnp.ones((2, *model.config.size, model.config.in_channels))
    out = jax.eval_shape(lambda state: (nnx.merge(definition, state)(x), nnx.merge(definition, state).tokens(x)), state)
    chex.assert_shape(out, [(2, 5), (2, grid[0] * grid[1] + 1, 16)])


def test_without_a_head_the_output_is_the_features():
    model = make(num_classes=0)
    assert model.head is None
    chex.assert_trees_all_close(quick.apply(model, images()), tokens_and_features(model)[1])


def test_a_sample_does_not_depend_on_its_batch():
    model, x = make(), images(batch=3)
    chex.assert_trees_all_close(quick.apply(model, x)[1:2], quick.apply(model, x[1:2]), atol=1e-5)
    chex.assert_shape(quick.apply(model, x[:0]), (0, 5))


def test_training_randomness_comes_from_the_key():
    model, x = make(drop_path_rate=0.5, drop_rate=0.1), images(batch=8)
    definition, state = nnx.split(model)
    run = quick.jit(lambda state, key: nnx.merge(definition, state)(x, train=True, key=key))
    first, again, other = (run(state, jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert float(abs(first - other).max()) > 1e-2
    definition, state = nnx.split(like(model, unroll_layers=True))
    unrolled = quick.jit(lambda state, key: nnx.merge(definition, state)(x, train=True, key=key))
    chex.assert_trees_all_close(unrolled(state, jax.random.key(0)), first, atol=1e-5)


def test_without_drop_rates_no_key_is_needed():
    model = make()
    chex.assert_trees_all_equal(quick.apply(model, images()), quick.apply(like(model, drop_path_rate=0.5), images()))
    assert jax.eval_shape(lambda: model(images(), train=True)).shape == (2, 5)
    with pytest.raises(
        ValueError, match=r"train=True with .*drop_path_rate=0.5 needs a random key: .*key=jax.random.key"
    ):
        make(drop_path_rate=0.5)(images(), train=True)


def test_the_final_drop_is_at_the_full_rate():
    model = make(drop_path_rate=0.5, class_token="none", pool="mean")
    assert drop_path_rates(2, 0.5).tolist() == [
        0.0,
        0.0,
    ]  # so only the final drop acts: the output is dropped or doubled
    definition, state = nnx.split(model)
    x = jnp.broadcast_to(images(batch=1), (256, 16, 16, 3))
    run = quick.jit(lambda state, key: nnx.merge(definition, state).features(x, train=True, key=key))
    values, counts = np.unique(np.asarray(run(state, jax.random.key(0)))[:, 0].round(4), return_counts=True)
    assert len(values) == 2 and abs(counts[0] - 128) < 5 * 8


def test_low_precision():
    model = make(bidirectional="v2")
    exact = quick.apply(model, images())
    for dtype, tolerance in (("bfloat16", 0.1), ("float16", 0.02)):
        low = quick.apply(like(model, dtype=dtype), images())
        assert low.dtype == jnp.float32
        chex.assert_trees_all_close(low, exact, atol=tolerance * float(abs(exact).max()))


def test_the_program_does_not_grow_with_depth():
    def lines(depth):
        definition, state = nnx.split(nnx.eval_shape(lambda: make(depth=depth)))
        step = jax.jit(jax.grad(lambda state, x: nnx.merge(definition, state)(x).sum()))
        return len(step.lower(state, images()).as_text().splitlines())

    assert lines(24) == lines(4)


@pytest.mark.slow
def test_compile_time_does_not_grow_with_depth():
    salt = time.time_ns() % 1000 + 1.0  # a program that no cache has seen

    def seconds(depth):
        definition, state = nnx.split(nnx.eval_shape(lambda: ssmjax.create_model("vim_tiny", depth=depth)))
        x = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        lowered = jax.jit(jax.grad(lambda state, x: salt * nnx.merge(definition, state)(x).sum())).lower(state, x)
        start = time.process_time()
        lowered.compile()
        return time.process_time() - start

    seconds(2)
    assert seconds(24) <= 1.3 * seconds(4)


def test_initial_values():
    model = registry.build("vim", dataclasses.replace(TINY, depth=16, d_model=64, img_size=64))
    assert 0.019 < float(model.pos_embed[...].std()) < 0.021
    assert 0.018 < float(model.head.kernel[...].std()) < 0.022
    assert not model.head.bias[...].any() and not model.patch_embed.proj.bias[...].any()
    fan_in = 8 * 8 * 3
    assert abs(float(model.patch_embed.proj.kernel[...].std()) * fan_in**0.5 - 1) < 0.03
    bound = 128**-0.5 / 16**0.5
    assert 0.99 * bound < float(abs(model.layers.mixer.out_proj.kernel[...]).max()) <= bound


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.zeros((8, 3, 16, 16), np.float32),
            r"\(b, y, x, d\) = \(8, 16, 16, 3\), got \(8, 3, 16, 16\).*'b d y x -> b y x d'",
        ),
        (
            np.zeros((16, 16, 3), np.float32),
            r"\(b, 16, 16, 3\), got \(16, 16, 3\) float32. One image\? Add the batch axis",
        ),
        (np.zeros((2, 16, 16, 1), np.float32), "Create the model with in_channels=1"),
        (np.zeros((2, 20, 20, 3), np.float32), "create the model with img_size=20"),
        (np.zeros((2, 20, 16, 3), np.float32), r"create the model with img_size=\(20, 16\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), "of a floating dtype, got .* uint8. Normalize first"),
        (np.zeros((2, 5), np.float32), "got .2, 5. float32. Images are a batch, channels last"),
    ],
)
def test_wrong_images(x, message):
    model = nnx.eval_shape(make)  # the check needs no parameters
    with pytest.raises(ValueError, match=f"Vim: images must be .*{message}"):
        model(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"depth": True}, "depth must be an integer, got True"),
        ({"img_size": 4}, "img_size must be at least the patch size 8"),
        ({"img_size": 20}, r"img_size must be 8 plus a multiple of 8, .* got \(20, 20\). The last 4 rows or columns"),
        ({"img_size": (16, 19), "stride": 4}, r"img_size must be 8 plus a multiple of 4, .* to \(16, 16\)"),
        ({"dt_min": 0.2}, "dt_min must be positive, and at most dt_max=0.1, got 0.2"),
        ({"dt_init": "zeros"}, "dt_init must be 'random' or 'constant', got 'zeros'"),
        ({"img_size": (16, 16, 16)}, r"img_size must be an integer or \(an integer, an integer\)"),
        ({"class_token": "center"}, "class_token must be 'middle' or 'head' or 'double' or 'none', got 'center'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
        ({"drop_rate": float("nan")}, "drop_rate must be a number, got nan"),
        ({"stem": "conv", "patch_size": 6}, "patch_size must be a power of two for stem='conv', got 6"),
        ({"alternate_layers": True, "depth": 3}, "depth must be even with alternate_layers=True"),
        ({"rope": True, "d_model": 18}, "d_model must be a multiple of 4 with rope=True"),
        ({"rope": True, "rope_skips": "first", "class_token": "double"}, "rope_skips must be consistent"),
        ({"dt_rank": 0}, "dt_rank must be at least 1, or None, got 0"),
        ({"norm_eps": 0.0}, "norm_eps must be positive"),
        ({"num_classes": -1}, "num_classes must be at least 0"),
    ],
)
def test_wrong_configurations(options, message):
    with pytest.raises(ValueError, match=f"VimConfig: {message}"):
        dataclasses.replace(TINY, **options)


def test_json_lists_become_tuples():
    assert dataclasses.replace(TINY, img_size=[16, 24]).img_size == (16, 24)
    assert dataclasses.replace(TINY, drop_rate=0).drop_rate == 0.0
