"""The experiment's manners: bad input ends in one message at once, and each run has files of its own."""

import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import vim_cifar
from experiments.shared import common, image
from experiments.vim_cifar import Config
from ssmjax.data import AugmentConfig
from tests.repo.sources import ROOT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "cifar"}, "Unknown data set 'cifar'.*'cifar10'"),
        ({"recipe": "bst"}, "Unknown recipe 'bst'.*'best'"),
        ({"optimizer": "adam"}, "Unknown optimizer 'adam'.*'adamw'"),
        ({"model": "vim_nanno"}, "Unknown model 'vim_nanno'.*'vim_nano'"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite"),
        ({"label_smoothing": 5.0}, "label_smoothing must be at least 0 and less than 1"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"dtype": "float8"}, "dtype must be auto"),
    ],
)
def test_bad_settings(changed, message):
    with pytest.raises(ValueError, match=message):
        vim_cifar.main(Config(**{"data": "digits", **changed}))


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="runs_dir: .*file' cannot be written to.*--runs-dir"):
        vim_cifar.main(Config(data="digits", runs_dir=tmp_path / "file"))


def test_only_the_recipe_writes_the_claim():
    def name(**changed):
        config = vim_cifar.resolve(Config(**changed))
        experiment = vim_cifar.experiment(config)
        return image.result_name(experiment, image.resolve(experiment, config))

    assert name() == name(seeds=3) == "vim_cifar"
    assert name(data="mnist") == "vim_cifar_mnist"
    assert name(smoke=True) == "vim_cifar_smoke"
    assert name(recipe="best") == "vim_cifar_best"
    assert name(patch_size=4) == "vim_cifar_small", "a command recorded before there were recipes"
    assert name(data="mnist", steps=5).startswith("vim_cifar_mnist_vim_nano_")
    assert name(optimizer="muon").startswith("vim_cifar_vim_compact_small_")


def test_mixing_ends_before_the_training_does():
    data = image.load(Config(data="digits", smoke=True))
    augmentation = AugmentConfig(0, flip=False, trivial=False, erase_probability=0.0, mix_probability=1.0)
    prepare = image.make_prepare(data, augmentation, Config(), unmixed=0.2)
    batch = {"image": data.train_images[:8], "label": data.train_labels[:8]}
    early, late = (prepare(batch, jax.random.key(3), True, progress) for progress in (0.79, 0.8))
    plain = image.make_prepare(data, AugmentConfig.none(), Config())(batch, None, False)["image"]
    chex.assert_trees_all_close(late["image"], plain, atol=1e-6)
    assert jnp.abs(early["image"] - plain).max() > 0.1


def test_command_leaves_out_folders_and_defaults(tmp_path):
    config = Config(data="digits", seeds=3, resume=False, out_dir=tmp_path, progress=False)
    assert common.command("vim_cifar", config, Config()) == (
        "python -m experiments.vim_cifar --data digits --seeds 3 --no-resume"
    )


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "10.0", "bfloat16"),
        ("gpu", "gfx942", "bfloat16"),
    ],
)
def test_accelerator_dtype(monkeypatch, platform, capability, dtype):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert common.accelerator_dtype() == dtype


def test_the_command_line_says_it_in_one_message():
    command = [sys.executable, "-m", "experiments.vim_cifar", "--data", "cifarr"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown data set 'cifarr'. Did you mean 'cifar10'")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_smoke_run_then_the_same_command(tmp_path):
    config = Config(data="digits", smoke=True, out_dir=tmp_path, runs_dir=tmp_path / "runs", progress=False)
    first, second = vim_cifar.main(config), vim_cifar.main(config)
    assert first["metrics"] == second["metrics"] and first["curves"] == second["curves"]
    assert (tmp_path / "figures" / "vim_cifar_digits_smoke.png").is_file()
    assert first["config"]["smoke"]
