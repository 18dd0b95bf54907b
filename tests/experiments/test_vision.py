"""The vision experiments' settings: claims have names of their own, and what cannot work ends in one message."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import finetune_images, mambavision_cifar100, vision_shootout, vmamba_imagenet20
from experiments.shared import image
from experiments.vmamba_imagenet20 import Config
from ssmjax.data import DataUnavailable, ImageData
from ssmjax.models.summary import count_parameters


def test_each_row_of_the_table_is_a_claim_of_its_own():
    def name(**changed):
        experiment = vmamba_imagenet20.experiment(config := Config(**changed))
        return image.result_name(experiment, image.resolve(experiment, config))

    assert name() == name(seeds=3) == name(folder="F") == "vmamba_imagenet20"
    assert name(directions="two") == "vmamba_imagenet20_two"
    assert name(split="full", start="finetuned", pretrained="W") == "vmamba_imagenet20_full_finetuned"
    assert name(split="full", start="finetuned", pretrained="W", img_size=128) == "vmamba_imagenet20_full_finetuned_128"
    assert name(smoke=True).endswith("smoke")
    assert name(epochs=1).startswith("vmamba_imagenet20_vmamba_micro_")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "full"}, "folder must be a folder or an archive.*--split digits"),
        ({"split": "half"}, "Unknown split 'half'"),
        ({"start": "finetuned"}, "pretrained must be given with --start finetuned"),
        ({"pretrained": "weights"}, "pretrained must be given with --start finetuned"),
        ({"directions": "rows"}, "Unknown directions 'rows'"),
    ],
)
def test_bad_settings(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vmamba_imagenet20.main(Config(runs_dir=tmp_path, out_dir=tmp_path, **changed))


def test_without_a_folder_the_study_is_of_imagenet2012(tmp_path):
    with pytest.raises(DataUnavailable, match="(?s)'imagenet2012' is not on this machine.*--split digits"):
        vmamba_imagenet20.load(Config(data_dir=tmp_path))
    assert len(vmamba_imagenet20.CLASSES) == 20


def test_the_study_takes_forty_and_ten_of_each_class():
    labels = np.repeat(np.arange(3), 50).astype(np.int32)
    images = np.arange(150, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    moments = np.zeros(3, np.float32), np.ones(3, np.float32)
    data = ImageData("x", images[:6], labels[:6], images, labels, ("a", "b", "c"), *moments, "", "")
    study = vmamba_imagenet20._study(data)
    assert np.bincount(study.train_labels).tolist() == [40] * 3 and np.bincount(study.test_labels).tolist() == [10] * 3
    assert not set(study.train_images[:, 0, 0, 0]) & set(study.test_images[:, 0, 0, 0])


def test_top_five():
    logits = jnp.asarray(np.tile(np.arange(7.0), (3, 1)))
    batch = {"image": logits, "label": jnp.array([6, 2, 1]), "mask": jnp.array([True, True, True])}
    sums = vmamba_imagenet20.sums(lambda x: x, batch)
    assert int(sums["top5"]) == 2 and int(sums["accuracy"]) == 1


def test_mambavision_names_its_claims():
    config = image.resolve(mambavision_cifar100.EXPERIMENT, mambavision_cifar100.Config())
    assert image.result_name(mambavision_cifar100.EXPERIMENT, config) == "mambavision_cifar100"
    config = image.resolve(mambavision_cifar100.EXPERIMENT, dataclasses.replace(config, data="digits", model=None))
    assert config.model == "mambavision_nano"


def test_the_page_escapes_names_and_puts_wrong_ones_first():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    chances = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    text = finetune_images.page("t", ["<b>", "dog"], images, np.array([0, 0, 1]), chances)
    assert "1 of 3 are right" in text and "&lt;b&gt;" in text and "<b><b>" not in text
    kinds = [part[:5] for part in text.split('<figure class="')[1:]]
    assert kinds == ["wrong", "wrong", "right"]
    assert text.index("dog 80&nbsp;%") < text.index("&lt;b&gt; 60&nbsp;%")


def test_finetune_images_wants_a_folder():
    with pytest.raises(ValueError, match="data must be a folder or an archive"):
        finetune_images.main()


def test_the_shootout_is_of_equal_sizes():
    sizes = {}
    for label in vision_shootout.MODELS:
        config = dataclasses.replace(vision_shootout.Config(), dtype="float32")
        model = nnx.eval_shape(lambda label=label, config=config: vision_shootout.create(config, label, 64, 10, 3, 0))
        sizes[label] = count_parameters(model)
    assert min(sizes.values()) > 2_600_000 and max(sizes.values()) < 3_050_000, sizes


def test_the_shootout_refuses_an_unknown_model():
    with pytest.raises(ValueError, match="Unknown model 'resnet'"):
        vision_shootout.resolve(vision_shootout.Config(models=("resnet",)))


def test_a_seed_is_one_run_whichever_command_asks_for_it(monkeypatch):
    images, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8, dtype=np.int32) % 2
    data = ImageData("x", images, labels, images, labels, ("a", "b"), np.zeros(3), np.ones(3), "", "")
    found = []
    monkeypatch.setattr(image.classifier, "train", lambda job, *_: found.append((job.run_dir, dict(job.identity))))

    def trained(asked_for, **settings):
        config = vision_shootout.resolve(vision_shootout.Config(sizes=(64,), batch_size=4, **settings))
        experiment = dataclasses.replace(vision_shootout.experiment("vit"), build=lambda *_: None)
        image.train_seed(experiment, vision_shootout.one(config, "vit"), data, asked_for)
        return found[-1]

    assert trained(1, seeds=3) == trained(1, seed=1, models=("vit",)) != trained(0)
