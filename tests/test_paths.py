"""Paths as users give them: the home expands, and an address is written through fsspec or refused before any work."""

import ast
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ssmjax
import vlmjax
from experiments.shared.classifier import Config
from ssmjax import data
from ssmjax.checkpoints import from_torch
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.store import CheckpointStore
from ssmjax.checkpoints.torch_file import read_torch_file
from ssmjax.paths import LocalPaths, address_of, local_path
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.fit import FitConfig
from ssmjax.training.profiling import ProfileWindow
from ssmjax.training.recorder import Recorder, read_records
from ssmjax.training.report import write_report
from tests.repo.sources import parse, python_files
from vlmjax.conversation import load_tokenizer
from vlmjax.processing import read_image


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder and a home that are empty."""
    home = tmp_path / "home"
    for folder in (home, tmp_path / "here"):
        folder.mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="module")
def model():
    return ssmjax.create_model("vim_nano", depth=1, d_model=8, d_state=2)


ENTRIES = {
    "CheckpointStore": CheckpointStore,
    "FitConfig.checkpoint_dir": lambda path: FitConfig(checkpoint_dir=path),
    "FitConfig.tensorboard_dir": lambda path: FitConfig(tensorboard_dir=path),
    "FitConfig.profile_dir": lambda path: FitConfig(profile_dir=path),
    "ProfileWindow": lambda path: ProfileWindow(path, 1),
    "Recorder": Recorder,
    "Recorder.tensorboard_dir": lambda path: Recorder(None, tensorboard_dir=path),
    "enable_compilation_cache": enable_compilation_cache,
    "experiment": lambda path: Config(runs_dir=Path(path)),
    "from_torch": lambda path: from_torch.vim.load(path, "vim_tiny"),
    "load_images.data_dir": lambda path: data.load_images("mnist", data_dir=path),
    "load_images.download_dir": lambda path: data.load_images("mnist", download_dir=path),
    "load_image_folders": data.load_image_folders,
    "load_imagenet_validation": lambda path: data.load_imagenet_validation({}, size=8, data_dir=path),
    "load_merger": vlmjax.load_merger,
    "load_spoken_digits": lambda path: data.load_spoken_digits(data_dir=path),
    "load_tokenizer": load_tokenizer,
    "read_image": read_image,
    "read_records": read_records,
    "read_torch_file": read_torch_file,
    "save_merger": lambda path: vlmjax.save_merger(None, path),
    "write_report": lambda path: write_report(path, {}),
}


@pytest.mark.parametrize("entry", list(ENTRIES))
@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_refused_where_a_local_path_is_needed(entry, address):
    with pytest.raises(ValueError, match=f"must be a folder of this machine, got '{address}'. Mount the bucket"):
        ENTRIES[entry](address)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_that_nothing_here_can_open_is_refused(model, kind):
    for call in (lambda path: ssmjax.save_pretrained(model, path), ssmjax.load_pretrained):
        with pytest.raises(ValueError, match=r"path must be a path that fsspec can open .* got 'gs://bucket/best'"):
            call(kind("gs://bucket/best"))
        with pytest.raises(ValueError, match="Give a folder of this machine"):
            call(kind("nothing://bucket/best"))
    assert list(Path().iterdir()) == []


def test_a_model_at_an_address_is_as_one_in_a_folder(model):
    fsspec = pytest.importorskip("fsspec")
    for seed in range(2):  # the second takes the place of the first
        ssmjax.save_pretrained(ssmjax.create_model("vim_nano", depth=1, d_model=8, seed=seed), "memory://models/best")
    ssmjax.save_pretrained(model, "memory://models/best")
    loaded = ssmjax.load_pretrained("memory://models/best")
    for name, x in model_arrays(model).items():
        np.testing.assert_array_equal(x, model_arrays(loaded)[name])
    fsspec.filesystem("memory").pipe_file("/models/other/notes.txt", b"mine")
    with pytest.raises(ValueError, match=r"memory://models/other holds other files \(notes.txt\)"):
        ssmjax.save_pretrained(model, "memory://models/other")
    with pytest.raises(ValueError, match="there is no folder 'memory://models/missing'"):
        ssmjax.load_pretrained("memory://models/missing")
    assert list(Path().iterdir()) == []


def test_the_home_expands(model, elsewhere):
    ssmjax.save_pretrained(model, "~/vim")
    assert (elsewhere / "vim" / "config.json").is_file()
    assert ssmjax.load_pretrained("~/vim").config == model.config
    assert ssmjax.create_model("vim_nano", pretrained=Path("~/vim")).config == model.config
    with CheckpointStore("~/run") as store:
        store.save(1, {"w": jnp.ones(2)})
    assert (elsewhere / "run" / "1").is_dir()
    assert FitConfig(checkpoint_dir="~/run").checkpoint_dir == str(elsewhere / "run")
    assert Config(out_dir=Path("~/out")).out_dir == elsewhere / "out"
    write_report("~/results/demo.json", {"name": "demo"})
    assert (elsewhere / "results" / "demo.json").is_file()
    assert list(Path().iterdir()) == []


def test_every_path_among_settings():
    @dataclasses.dataclass(frozen=True)
    class Settings(LocalPaths):
        text: Path | None = None
        images: tuple[Path, ...] = ()
        teacher: Path | None = None
        steps: int = 3

    settings = Settings(Path("~/text"), (Path("~/a.png"), Path("b.png")), Path("gs://bucket/model"))
    assert settings.text == Path("~/text").expanduser() and settings.images == (
        Path("~/a.png").expanduser(),
        Path("b.png"),
    )
    assert settings.teacher == Path("gs://bucket/model") and Settings(teacher=Path("~/t")).teacher.is_absolute()
    assert vars(Settings()) == {"text": None, "images": (), "teacher": None, "steps": 3}
    for refused in ({"text": Path("gs://bucket/x")}, {"text": "gs://bucket/x"}, {"images": (Path("gs://bucket/x"),)}):
        with pytest.raises(
            ValueError, match=f"settings: {next(iter(refused))} must be a folder of this machine, got 'gs://"
        ):
            Settings(**refused)


def test_all_settings_have_local_paths():
    """Each `Config` of experiments and benchmarks, where a path enters, inherits it."""
    for path in python_files("experiments", "benchmarks"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and node.name == "Config" and "Path" in ast.unparse(node):
                assert node.bases, f"{path}: Config(LocalPaths)"


def test_what_is_an_address():
    assert [address_of(path) for path in ("c:/models", "gs:/models", "a:b", "./gs://b", "")] == [None] * 5
    assert address_of("abfs+x://b/c") == "abfs+x://b/c"
    assert local_path("test", "path", "file:///tmp/x") == Path("/tmp/x")
