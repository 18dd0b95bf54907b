"""The vision experiments' settings: claims have names of their own, and what cannot work ends in one message."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mambavision_cifar100, vmamba_imagenet20
from experiments.shared import image
from experiments.vmamba_imagenet20 import Config
from ssmjax.data import ImageData


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
        ({}, "folder must be a folder or an archive.*--split digits"),
        ({"split": "half"}, "Unknown split 'half'"),
        ({"start": "finetuned"}, "pretrained must be given with --start finetuned"),
        ({"pretrained": "weights"}, "pretrained must be given with --start finetuned"),
        ({"directions": "rows"}, "Unknown directions 'rows'"),
    ],
)
def test_bad_settings(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vmamba_imagenet20.main(Config(runs_dir=tmp_path, out_dir=tmp_path, **changed))


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
