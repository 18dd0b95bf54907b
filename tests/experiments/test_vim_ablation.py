"""The ablation's plumbing: every variant is a model, several processes share the runs, and effects are compared."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import ssmjax
from experiments import vim_ablation
from experiments.shared import image
from experiments.shared.shared_runs import share
from experiments.vim_ablation import BASES, VARIANTS, Config
from ssmjax.models.summary import count_parameters


def test_every_variant_is_a_model_of_about_the_same_size():
    sizes = {}
    for name, variant in VARIANTS.items():
        make = lambda v=variant: ssmjax.create_model(BASES[v.base], img_size=32, drop_path_rate=0.05, **v.model)  # noqa: E731
        sizes[name] = count_parameters(nnx.eval_shape(make))
    for name, variant in VARIANTS.items():
        lost = sizes[name] / sizes[variant.base]
        assert 0.85 < lost < 1.15, (name, sizes)


def test_a_variant_changes_the_training():
    config = vim_ablation.resolve(Config(smoke=True))
    chosen = {name: vim_ablation.experiment(name, config) for name in VARIANTS}
    assert not chosen["no_trivial"].augment(config).trivial and chosen["compact"].augment(config).trivial
    assert chosen["mixing_to_the_end"].unmixed == 0 < chosen["compact"].unmixed
    folders = {image.run_folder(each, config, 0) for each in chosen.values()}
    assert len(folders) == len(VARIANTS)


def test_only_the_recipe_writes_the_claim():
    def name(**changed):
        return vim_ablation._result_name(vim_ablation.resolve(Config(**changed)))

    assert name() == "vim_ablation" and name(data="digits") == "vim_ablation_digits"
    assert name(smoke=True) == "vim_ablation_smoke"
    assert vim_ablation.resolve(Config(smoke=True)).variants == ("plain", "plain_mean")
    assert vim_ablation.resolve(Config(variants=("ema",))).variants == ("compact", "ema")
    assert name(epochs=3) != "vim_ablation" != name(variants=("ema",))
    with pytest.raises(ValueError, match="Unknown variant 'emma'.*'ema'"):
        name(variants=("emma",))


def test_effects_compare_the_same_seeds():
    def runs(*accuracies):
        return [{"accuracy": a, "loss": 1.0, "train_loss": 1.0, "seconds": 1.0, "parameters": 3} for a in accuracies]

    found = {"compact": runs(0.8, 0.9), "ema": runs(0.85), "v1": runs(0.7, 0.9)}
    rows = {name: vim_ablation._row(name, own, found) for name, own in found.items()}
    np.testing.assert_allclose([rows["ema"]["effect"], rows["v1"]["effect"]], [0.05, -0.05])
    assert vim_ablation._again(Config(effects=1), {**found, "v1": runs(0.5)}) == ["compact", "v1"]


def test_runs_are_shared_and_a_deadline_ends_the_call(tmp_path):
    made = []

    def run(name):
        return lambda minutes: made.append(name) or {"name": name}

    runs = {tmp_path / name: run(name) for name in "ab"}
    assert share(runs) == share(runs) == [{"name": "a"}, {"name": "b"}]
    assert made == ["a", "b"]
    assert share({tmp_path / "c": run("c")}, deadline=0.0) is None
    assert share(runs, fresh=True)[0] == {"name": "a"} and made == ["a", "b", "a", "b"]


def test_held_out_images_are_not_trained_on(tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for kind in range(2):
            folder = tmp_path / "cifar100" / split / f"class{kind}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), 10 * i + kind, np.uint8)).save(folder / f"{i}.png")
    config = Config(data="cifar100", data_dir=tmp_path, held_out=4)
    data, whole = image.load(config), image.load(dataclasses.replace(config, held_out=0))
    kept, held = ({int(x[0, 0, 0]) for x in images} for images in (data.train_images, data.test_images))
    assert len(kept) == 8 and len(held) == 4 and kept | held == {int(x[0, 0, 0]) for x in whole.train_images}
    with pytest.raises(ValueError, match="held_out must be less than 12 images"):
        image.hold_out(whole, 12)


@pytest.mark.slow
def test_smoke_run_then_the_same_command(tmp_path):
    config = Config(data="digits", smoke=True, out_dir=tmp_path, runs_dir=tmp_path / "runs", progress=False)
    first, second = vim_ablation.main(config), vim_ablation.main(config)
    assert first["variants"] == second["variants"] and set(first["variants"]) == {"plain", "plain_mean"}
    assert (tmp_path / "figures" / "vim_ablation_digits_smoke.png").is_file()
