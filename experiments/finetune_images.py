"""A user's own images: one folder a class, a model of any family, and a page that shows what it predicts.

    python -m experiments.finetune_images --data DIR --model vmamba_micro                    from scratch
    python -m experiments.finetune_images --data DIR --model vmamba_micro --pretrained W     from weights

DIR is a folder or an archive with one folder a class, or with `train/CLASS` and `val/CLASS`; without `val` a fifth of
each class, the last by name, is kept for testing. W is a folder that `save_pretrained` wrote: head and image size are
changed to fit. The results file, the figure and `predictions.html` (thumbnails, the wrong ones first) are written as
for every experiment. About a minute an epoch for 1,000 images of 64 pixels on two cores; a GPU takes seconds.

`--smoke` is a check of the plumbing on the first images, not a result.
"""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ssmjax
from experiments.shared import common, image
from ssmjax.data import AugmentConfig, ImageData, eval_batches, load_image_folders
from ssmjax.errors import bad_argument

NAME = "finetune_images"
SHOWN = 200


@dataclasses.dataclass(frozen=True)
class Config(image.Config):
    """Every field is a flag; a field that is None takes the recipe's value."""

    data: str = ""
    """The folder or the archive of images."""
    model: str = "vmamba_micro"
    """Any image model, see ssmjax.list_models()."""
    img_size: int | None = None
    """The side that the images are brought to; None is the model's own."""
    pretrained: Path | None = None
    """Weights to start from; their configuration is used in place of the model's."""


SCRATCH = {"epochs": 60, "batch_size": 64, "learning_rate": 1e-3}
FINE_TUNED = {"epochs": 20, "batch_size": 64, "learning_rate": 3e-4}
VARIED = AugmentConfig(mixup_alpha=0.2)


def load(config: Config) -> ImageData:
    """The images at the model's size."""
    own = ssmjax.model_config(config.model).img_size
    if config.pretrained is not None and config.img_size is None:
        own = ssmjax.load_pretrained(config.pretrained).config.img_size
    side = config.img_size or (own if isinstance(own, int) else min(own))
    return load_image_folders(config.data, size=side, name=Path(config.data).name)


def build(config: Config, data: ImageData, seed: int) -> Any:
    """The classifier, fresh or from weights with a new head."""
    options = dict(
        num_classes=data.num_classes,
        seed=seed,
        dtype=config.dtype,
        img_size=data.image_shape[0],
        drop_path_rate=config.drop_path,
    )
    if config.pretrained is not None:
        return ssmjax.load_pretrained(config.pretrained, **options)
    return ssmjax.create_model(config.model, **options)


def experiment(config: Config) -> image.Experiment:
    """The experiment of these images."""
    recipe = SCRATCH if config.pretrained is None else FINE_TUNED
    return image.Experiment(
        NAME,
        {config.data: recipe, Config().data: recipe},
        augment=lambda config: VARIED,
        load=load,
        build=build,
        variants=(),
        timed=True,
    )


def predictions(weights: Path, config: Config) -> tuple[ImageData, np.ndarray]:
    """The images, and the probabilities that a trained model gives to the first test images."""
    data, model = load(config), ssmjax.load_pretrained(weights)
    chosen = slice(None, None, max(1, len(data.test_images) // SHOWN))
    data = dataclasses.replace(data, test_images=data.test_images[chosen], test_labels=data.test_labels[chosen])
    prepare = image.make_prepare(data, AugmentConfig.none(), config)
    run = jax.jit(lambda batch: jax.nn.softmax(model(prepare(batch, None, False)["image"])))
    batches = eval_batches(data.test_images, data.test_labels, min(32, len(data.test_images)))
    return data, np.concatenate([np.asarray(run(batch))[np.asarray(batch["mask"])] for batch in batches])


def page(title: str, names: Sequence[str], images: np.ndarray, labels: np.ndarray, chances: np.ndarray) -> str:
    """An HTML page without outside parts: a thumbnail of each image with what it is and what it was taken for.

    Args:
        title: The heading.
        names: The names of the classes.
        images: (b y x d) uint8.
        labels: (b), what they are.
        chances: (b v), the probabilities.
    """
    predicted = chances.argmax(-1)
    order = np.lexsort((-chances.max(-1), predicted == labels))  # wrong ones first, the surest of them on top
    right = int((predicted == labels).sum())
    figures = []
    for i in order:
        best = np.argsort(-chances[i])[:3]
        lines = " · ".join(f"{html.escape(names[k])} {100 * chances[i, k]:.0f}&nbsp;%" for k in best)
        kind = "right" if predicted[i] == labels[i] else "wrong"
        figures.append(
            f'<figure class="{kind}"><img alt="{html.escape(names[labels[i]])}" src="{_png(images[i])}">'
            f"<figcaption><b>{html.escape(names[labels[i]])}</b><br>{lines}</figcaption></figure>"
        )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body{{font:14px/1.4 system-ui,sans-serif;margin:24px;background:#fff;color:#222}}
main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}}
figure{{margin:0;padding:8px;border:2px solid #2f7d32;border-radius:6px}}.wrong{{border-color:#b3261e}}
img{{width:100%;image-rendering:auto}}figcaption{{font-size:12px}}</style>
<h1>{html.escape(title)}</h1><p>{right} of {len(labels)} are right. In bold what an image is; below it, the three
likeliest classes. Wrong ones are first and have a red border.</p><main>{"".join(figures)}</main></html>
"""


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains, evaluates, writes the results file, the figure and the page, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="photos", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, the folder of the first seed's `weights`, and the `page`.
    """
    if not config.data:
        raise bad_argument(NAME, "data", config.data, "a folder or an archive with one folder of images a class")
    report = image.run(experiment(config), config)
    data, chances = predictions(report["weights"], config)
    path = report["weights"].parent / "predictions.html"
    path.write_text(page(f"{data.name}: {config.model}", data.class_names, data.test_images, data.test_labels, chances))
    print(f"page    {path}")
    return report | {"page": path}


if __name__ == "__main__":
    common.run_cli(main, Config)
