"""DiS: published sizes and key layout, equivalent ways to run it, what drops and what does not, options, messages."""

import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch import dis
from ssmjax.models.dis import DiS, DiSConfig
from ssmjax.models.summary import count_parameters
from tests.layers import quick

TINY = DiSConfig(img_size=8, patch_size=4, num_classes=5, d_model=16, depth=4, d_state=4)
LAYOUT = Path(__file__).parents[1] / "golden" / "layouts" / "dis_huge.json"


def make(**options):
    return quick.lively(lambda: DiS(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))


def inputs(seed=1, size=(8, 8)):
    images = jax.random.normal(jax.random.key(seed), (2, *size, 3))
    return images, jnp.array([3, 700]), jnp.array([1, 4])


def run(model, *args, **options):
    definition, state = nnx.split(model)
    return quick.jit(lambda state, args: nnx.merge(definition, state)(*args, **options))(state, args)


@pytest.mark.parametrize(
    ("name", "millions"),
    quick.first([("small", 28.5), ("base", 119.2), ("medium", 229.5), ("large", 404.1), ("huge", 900.7)]),
)
def test_parameter_counts_are_the_published_ones(name, millions):
    count = count_parameters(nnx.eval_shape(lambda: ssmjax.create_model(f"dis_{name}")))
    assert abs(count / 1e6 - millions) < 0.01 * millions


def test_the_key_layout_of_the_largest_model():
    layout = json.loads(LAYOUT.read_text())
    model = nnx.eval_shape(lambda: ssmjax.create_model("dis_huge_latent256"))
    assert count_parameters(model) == layout["n_params"] == 906_966_560
    wanted = {name: tuple(x.shape) for name, x in dis.TABLE.source_specs(model_arrays(model)).items()}
    prefix, blocks = "{i}", range(24)  # the blocks of an arm are alike, so that the file lists one of each
    found = {}
    for name, shape in layout["tensors"].items():
        for i in blocks if prefix in name else [0]:
            found[name.replace(prefix, str(i))] = tuple(shape)
    assert found == wanted


def test_conversion_is_strict_and_exact_both_ways():
    arrays = {name: np.asarray(x) for name, x in model_arrays(make()).items()}
    theirs = dis.to_reference(arrays)
    chex.assert_trees_all_equal(dis.convert(theirs, TINY), arrays)
    theirs["in_blocks.2.mixer.D"] = theirs.pop("in_blocks.1.mixer.D")
    theirs["final_layer.linear.bias"] = theirs["final_layer.linear.bias"][1:]
    with pytest.raises(ValueError) as error:
        dis.convert(theirs, TINY)
    for part in ("unknown: in_blocks.2.mixer.D", "missing: in_blocks.1.mixer.D", "final_layer.linear.bias: got (95,)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="Unknown argument 'embed_dims'. Did you mean 'embed_dim'"):
        dis.config_from_reference({"embed_dims": 8})


def test_a_file_is_loaded(tmp_path):
    from safetensors.numpy import save_file

    model = make()
    save_file(dis.to_reference(model_arrays(model)), tmp_path / "dis.safetensors")
    arguments = dict(img_size=8, patch_size=4, embed_dim=16, depth=4, num_classes=5)
    loaded = dis.load(tmp_path / "dis.safetensors", arguments, d_state=4)
    chex.assert_trees_all_equal(model_arrays(loaded), model_arrays(model))
    with pytest.raises(ValueError, match="variant must be a DiS model, got 'vim_tiny'"):
        dis.load(tmp_path / "dis.safetensors", "vim_tiny")


@pytest.mark.slow  # several seconds to compile; Vim's is a default test
def test_scanned_unrolled_and_rematerialized_are_equal():
    model = make(drop_path_rate=0.3)

    def outputs(**how):
        config = dataclasses.replace(model.config, **how)
        definition = nnx.graphdef(nnx.eval_shape(lambda: DiS(config, rngs=nnx.Rngs(0))))

        def loss(state):
            return (nnx.merge(definition, state)(*inputs(), train=True, key=jax.random.key(5)) ** 2).sum()

        return quick.jit(jax.value_and_grad(loss))(nnx.state(model))

    # Both in units of each array's largest number: its small ones are differences of those.
    scanned = outputs()
    size = jax.tree.map(lambda v: jnp.maximum(jnp.abs(v).max(), 1e-30), scanned)
    other, scanned = (
        jax.tree.map(lambda v, s: v / s, tree, size)
        for tree in (outputs(unroll_layers=True, remat=True, scan_together=True), scanned)
    )
    chex.assert_trees_all_close(other, scanned, rtol=0, atol=2e-5)


def test_labels_are_dropped_in_training_only():
    model = make(label_drop_rate=0.999)
    images, times, labels = inputs()
    without = run(model, images, times)
    dropped = run(model, images, times, labels, train=True, key=jax.random.key(0))
    chex.assert_trees_all_close(dropped, without, atol=1e-5)
    chex.assert_trees_all_close(run(model, images, times, jnp.array([5, 5])), without, atol=1e-5)  # the null class
    assert np.abs(np.subtract(run(model, images, times, labels), without)).max() > 1e-3


def test_images_need_not_be_square():
    model = make(img_size=(8, 16), num_classes=0, learn_sigma=False, skip=False)
    images, times, _ = inputs(size=(8, 16))
    chex.assert_shape(run(model, images, times), (2, 8, 16, 3))
    assert model.null_label is None and model.image_shape == (8, 16, 3)


def test_each_patch_goes_back_to_its_place():
    """Where only the patches' own tokens reach the final layer, a changed patch changes its own pixels alone."""
    model = make(num_classes=0)
    for stack in (model.in_blocks, model.mid_block, model.out_blocks):
        stack.mixer.out_proj.kernel[...] = jnp.zeros_like(stack.mixer.out_proj.kernel[...])
    model.out_blocks.skip_linear.kernel[...] = jnp.zeros_like(model.out_blocks.skip_linear.kernel[...])
    images, times, _ = inputs()
    changed = images.at[:, 4:, :4].add(1.0)
    difference = jnp.abs(run(model, images, times) - run(model, changed, times)).max(axis=(0, 3))
    assert float(difference[4:, :4].min()) > 0
    assert float(difference.at[4:, :4].set(0).max()) < 1e-6


def test_position_embeddings_follow_the_size(tmp_path):
    model = make()
    ssmjax.save_pretrained(model, tmp_path / "dis")
    larger = ssmjax.load_pretrained(tmp_path / "dis", img_size=16)
    chex.assert_shape(larger.pos_embed[...], (1, 2 + 16, 16))
    chex.assert_trees_all_equal(larger.pos_embed[...][:, :2], model.pos_embed[...][:, :2])


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DiSConfig(img_size=30, patch_size=4),
            "DiSConfig: img_size must be a multiple of patch_size=4, got 30. R",
        ),
        (lambda: DiSConfig(img_size=(8, 10), patch_size=4), r"a multiple of patch_size=4, got \(8, 10\)"),
        (lambda: DiSConfig(depth=3), "depth must be even and at least 2, got 3. It counts both arms"),
        (lambda: DiSConfig(d_model=15), "d_model must be even, got 15"),
        (lambda: make(num_classes=0)(*inputs()), "DiS: labels must be None.*num_classes="),
        (lambda: make()(*inputs()[:2], jnp.array([1])), r"labels must be \(b\) = \(2\), got \(1,\)"),
        (lambda: make()(inputs()[0], jnp.array(3)), r"times must be \(b\) = \(2\), got \(\)"),
        (
            lambda: make()(*inputs(), train=True),
            "DiS: train=True with label_drop_rate=0.1 and drop_path_rate=0.0 needs",
        ),
        (lambda: make()(inputs()[0][..., :1], *inputs()[1:]), "in_channels=1"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_time_and_class_are_added_to_every_patch():
    plain, conditioned = make(), make(condition_patches=True)
    images, times, labels = inputs()
    before, condition = plain._embed(images, times, labels)
    after, _ = conditioned._embed(images, times, labels)
    extra = plain.config.extra_tokens
    np.testing.assert_array_equal(after[:, :extra], before[:, :extra])
    wanted = jnp.broadcast_to(condition[:, None], before[:, extra:].shape)
    np.testing.assert_allclose(after[:, extra:] - before[:, extra:], wanted, atol=1e-5)
