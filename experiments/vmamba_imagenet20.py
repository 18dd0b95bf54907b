"""VMamba on 20 classes of ImageNet: from scratch with four and with two directions, and fine-tuned.

The claim, against a published course study (1,000 images, 80 % of them for training; top-1): VMamba from scratch 27.0 %
both with four and with two directions, equal because its build ran one path for both; fine-tuned 99.5, 92.5 and 74.0 %
at 224, 128 and 64 pixels, from a checkpoint that had seen the classes. Here two directions are two (rows and reversed
rows, a set of parameters each), the classes are 20 of Tiny ImageNet's 200, at 64 pixels, and a backbone for fine-tuning
comes from the other 180, or from `--pretrained`.

Recipes (device, minutes a seed, expected top-1 of the last epoch):
    python -m experiments.vmamba_imagenet20 --folder F                      one Hopper GPU, 2, above 27 %
    python -m experiments.vmamba_imagenet20 --folder F --directions two     one Hopper GPU, 2
    python -m experiments.vmamba_imagenet20 --folder F --split full         one Hopper GPU, 8, about 70 %
    (the same) --split full --start finetuned --pretrained W                one Hopper GPU, 4, 80 % or more
    python -m experiments.vmamba_imagenet20 --folder F180 --split backbone  one Hopper GPU, 25; its weights are W
    python -m experiments.vmamba_imagenet20 --split digits                  two CPU cores, 10; a stand-in, no download

F is a folder or an archive with `train/CLASS` and `val/CLASS`. "study" takes the 50 validation images of each class, 40
to train and 10 to test; "full" the 500 of `train`, tested on those 50. Without F, "study" reads the same 20 classes of
TensorFlow Datasets' `imagenet2012` in `--data-dir`. `--split digits` has scikit-learn's digits in place of the
photographs. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import ssmjax
from experiments.shared import common, image
from ssmjax.data import AugmentConfig, ImageData, load_image_folders, load_imagenet_validation
from ssmjax.errors import bad_argument, require_known
from ssmjax.training.evaluate import classification_sums

NAME = "vmamba_imagenet20"
CLASSES = {
    "n01698640": "American alligator",
    "n01917289": "brain coral",
    "n02085620": "Chihuahua",
    "n02129165": "lion",
    "n02279972": "monarch",
    "n02480495": "orangutan",
    "n02788148": "bannister",
    "n02837789": "bikini",
    "n02950826": "cannon",
    "n03100240": "convertible",
    "n03400231": "frying pan",
    "n03649909": "lawn mower",
    "n03837869": "obelisk",
    "n03980874": "poncho",
    "n04133789": "sandal",
    "n04311004": "steel arch bridge",
    "n04465501": "tractor",
    "n04596742": "wok",
    "n07720875": "bell pepper",
    "n09193705": "alp",
}
"""The 20 of Tiny ImageNet's classes, by their WordNet numbers."""


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the split."""

    folder: Path | None = None
    """Class folders with `train` and `val`, or an archive of them; None is imagenet2012 as TFDS prepared it."""
    split: str = "study"
    """study (40 + 10 images a class), full (500 + 50), backbone (as full, of other classes) or digits (embedded)."""
    directions: str = "cross"
    """cross (four directions) or two (rows and reversed rows)."""
    start: str = "scratch"
    """scratch, or finetuned: from the weights in `pretrained`."""
    pretrained: Path | None = None
    """A folder that `save_pretrained` wrote; the head is new, and of four directions `two` takes rows, both ways."""
    img_size: int = 64
    """The side of the images in pixels; the study's table has 224, 128 and 64."""
    data: str = "imagenet20"
    """Has no other value here: see `split`."""
    model: str | None = None
    """vmamba_micro, vmamba_nano (which digits have), vmamba_tiny or another VMamba."""


_SMALL = {"model": "vmamba_micro", "epochs": 200, "batch_size": 64, "learning_rate": 1e-3}
_LARGE = {"model": "vmamba_micro", "epochs": 60, "batch_size": 128, "learning_rate": 1e-3}
RECIPES = {
    "study": _SMALL,
    "full": _LARGE,
    "backbone": {**_LARGE, "epochs": 40, "batch_size": 256},
    "digits": {"model": "vmamba_nano", "epochs": 15, "batch_size": 64, "learning_rate": 2e-3},
}
FINE_TUNED = {"study": {**_SMALL, "epochs": 60, "learning_rate": 3e-4}, "full": {**_LARGE, "epochs": 30}}

PHOTOGRAPHS = AugmentConfig(crop_padding=8, mixup_alpha=0.8)
"""Shifts of up to 8 pixels, mirroring, one random operation an image, erasing, and mixup or cutmix."""


def load(config: Config) -> ImageData:
    """The images of the split; the study's are those of `val`, of which the first 40 of each class train."""
    if config.split == "digits":
        return image.load(dataclasses.replace(config, data="digits", smoke=False)).resized(16)
    if config.folder is None and config.split == "study":
        data = load_imagenet_validation(CLASSES, size=config.img_size, data_dir=config.data_dir)
        return dataclasses.replace(data, name="imagenet20_study")
    if config.folder is None:
        remedy = "Or --split digits, an embedded stand-in that needs no download."
        raise bad_argument(NAME, "folder", None, "a folder or an archive with train/CLASS and val/CLASS", remedy)
    data = load_image_folders(config.folder, size=config.img_size, name=f"imagenet20_{config.split}")
    return _study(data) if config.split == "study" else data


def _study(data: ImageData) -> ImageData:
    """Of the test images of each class, which follow each other, four fifths to train and the others to test."""
    chosen: dict[bool, list[int]] = {True: [], False: []}
    for label in range(data.num_classes):
        places = [int(i) for i in (data.test_labels == label).nonzero()[0]]
        cut = round(0.8 * len(places))
        chosen[True] += places[:cut]
        chosen[False] += places[cut:]
    train, test = chosen[True], chosen[False]
    return dataclasses.replace(
        data,
        train_images=data.test_images[train],
        train_labels=data.test_labels[train],
        test_images=data.test_images[test],
        test_labels=data.test_labels[test],
    )


def build(config: Config, data: ImageData, seed: int) -> Any:
    """The classifier, fresh or from weights with a new head."""
    options = dict(
        num_classes=data.num_classes,
        seed=seed,
        dtype=config.dtype,
        img_size=data.image_shape[0],
        drop_path_rate=config.drop_path,
        directions=config.directions,
    )
    if config.start == "finetuned":
        return ssmjax.load_pretrained(config.pretrained, **options)
    return ssmjax.create_model(config.model, in_channels=data.image_shape[2], **options)


def sums(model: Any, batch: Any) -> dict[str, jax.Array]:
    """The sums of a classifier, and how often the true class is among the five that the model finds likeliest."""
    logits = model(batch["image"])
    own = jnp.take_along_axis(logits, batch["label"][:, None], 1)
    among_five = jnp.sum(logits > own, axis=1) < 5
    mask = batch.get("mask", jnp.ones(batch["label"].shape, bool))
    return {**classification_sums(lambda _: logits, batch), "top5": jnp.sum(mask & among_five, dtype=jnp.int32)}


def experiment(config: Config) -> image.Experiment:
    """The experiment of a split."""
    require_known("start", config.start, ["scratch", "finetuned"])
    if (config.start == "finetuned") != (config.pretrained is not None):
        raise bad_argument(NAME, "pretrained", config.pretrained, "given with --start finetuned, and only then")
    recipes = FINE_TUNED if config.start == "finetuned" else RECIPES
    require_known("split", config.split, recipes)
    require_known("directions", config.directions, ["cross", "two"])
    return image.Experiment(
        NAME,
        {config.data: recipes[config.split]},
        augment=lambda config: image.SETS["digits"].augment if config.split == "digits" else PHOTOGRAPHS,
        unmixed=0.2,
        variants=("split", "start", "directions", "img_size"),
        load=load,
        build=build,
        metric_fn=sums,
        timed=True,
    )


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(split="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return image.run(experiment(config), config)


if __name__ == "__main__":
    common.run_cli(main, Config)
