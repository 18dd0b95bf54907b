"""The experiment with diffusion: one message for a bad setting, batches of one shape, a record of a smoke run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import dis_images
from experiments.dis_images import Config
from experiments.shared import diffusion, judge, plots_diffusion


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "digit"}, "Unknown data set 'digit'. Did you mean 'digits'"),
        ({"sampler": "euler"}, "Unknown sampler 'euler'.*ddim"),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and less than 1"),
        ({"model": "dis_nanno"}, "Unknown model 'dis_nanno'"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        dis_images.main(Config(**changed))


def test_drawing_in_batches_of_one_shape(monkeypatch):
    shapes = []

    def sample(model, labels, *, key, **options):
        shapes.append(labels.shape)
        return np.repeat(labels, 1).reshape(-1, 1, 1, 1).astype(np.float32)

    monkeypatch.setattr(diffusion, "sample", sample)
    labels = np.arange(10)
    drawn = diffusion.draw(None, labels, jax.random.key(0), progress=False, batch=4)
    np.testing.assert_array_equal(drawn.ravel(), labels)
    assert shapes == [(4,)] * 3


def test_bytes_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = np.asarray(judge.to_unit(images))
    assert unit.min() == -1 and unit.max() == 1
    packed = diffusion._packed(unit)
    np.testing.assert_array_equal(diffusion.plots.decode_images(packed), images)
    sheet = plots_diffusion.tiled(np.concatenate([images] * 3), columns=2)
    assert sheet.shape == (35, 35, 1) and (sheet[1:17, 18:34] == images[0]).all()


@pytest.mark.slow
def test_a_smoke_run_leaves_a_record_and_a_figure(tmp_path):
    report = dis_images.main(Config(smoke=True, out_dir=tmp_path, runs_dir=tmp_path / "runs", progress=False))
    record = json.loads((tmp_path / "experiments/results/dis_images_smoke.json").read_text())
    assert set(record["metrics"]) == set(report["metrics"]) >= {"recognised", "frechet_ddim_50", "precision", "recall"}
    assert (tmp_path / "figures/dis_images_smoke.png").stat().st_size > 10_000


def test_how_samples_are_drawn_does_not_make_another_training():
    config = diffusion._resolve("dis_images", dis_images.RECIPES, Config())
    other = dataclasses.replace(config, guidance=4.0, sampler="ddpm", samples=100, seed=3, seeds=2)
    assert diffusion._of_training(config, 3) == dataclasses.replace(diffusion._of_training(other, 3), seeds=1)
    assert diffusion._of_training(config, 3) != diffusion._of_training(config, 4)
