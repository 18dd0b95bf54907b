"""Tiny archives in the official formats: the whole path is tested with no network and no data beside the clone."""

import dataclasses
import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ssmjax.data.archives import ARCHIVES, sha256_of

COUNTS = {"train": 20, "test": 10}


@dataclasses.dataclass(frozen=True)
class FakeArchives:
    """A data set's archives in a folder, and what they hold."""

    name: str
    folder: Path
    splits: Mapping[str, Mapping[str, np.ndarray]]


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def _write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _rows(split: Mapping[str, np.ndarray], labels: tuple[str, ...]) -> bytes:
    planes = split["image"].transpose(0, 3, 1, 2).reshape(len(split["image"]), -1)
    return np.concatenate([*(split[label][:, None] for label in labels), planes], axis=1).tobytes()


def _write(name: str, folder: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    if name.endswith("mnist"):
        for split, prefix in (("train", "train"), ("test", "t10k")):
            _write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", splits[split]["image"][..., 0])
            _write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", splits[split]["label"])
    elif name == "cifar10":
        rows, size = _rows(splits["train"], ("label",)), 4 * 3073
        batches = {f"data_batch_{i + 1}.bin": rows[i * size : (i + 1) * size] for i in range(5)}
        names = "airplane automobile bird cat deer dog frog horse ship truck".split()
        others = {
            "test_batch.bin": _rows(splits["test"], ("label",)),
            "batches.meta.txt": "\n".join([*names, ""]).encode(),
        }
        files = {f"cifar-10-batches-bin/{key}": value for key, value in {**others, **batches}.items()}
        _write_tar(folder / "cifar-10-binary.tar.gz", files)
    else:
        files = {f"{split}.bin": _rows(splits[split], ("coarse_label", "label")) for split in splits}
        files["fine_label_names.txt"] = "\n".join(f"fine_{i}" for i in range(100)).encode()
        files["coarse_label_names.txt"] = "\n".join(f"coarse_{i}" for i in range(20)).encode()
        _write_tar(folder / "cifar-100-binary.tar.gz", {f"cifar-100-binary/{key}": v for key, v in files.items()})


@pytest.fixture
def fake_archives(tmp_path, monkeypatch):
    """A function from a data set's name to tiny archives of it, which then count as the official ones."""

    def make(name: str, seed: int = 0) -> FakeArchives:
        rng = np.random.default_rng(seed)
        shape, classes = (
            ((28, 28, 1), 10) if name.endswith("mnist") else ((32, 32, 3), 100 if name == "cifar100" else 10)
        )
        splits = {}
        for split, count in COUNTS.items():
            splits[split] = {
                "image": rng.integers(0, 256, (count, *shape), np.uint8),
                "label": rng.integers(0, classes, count, np.uint8),
            }
            if name == "cifar100":
                splits[split]["coarse_label"] = rng.integers(0, 20, count, np.uint8)
        folder = tmp_path / f"archives of {name}"
        folder.mkdir()
        _write(name, folder, splits)
        official = [dataclasses.replace(a, sha256=sha256_of(folder / a.filename)) for a in ARCHIVES[name].archives]
        monkeypatch.setitem(ARCHIVES, name, dataclasses.replace(ARCHIVES[name], archives=tuple(official)))
        return FakeArchives(name, folder, splits)

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Every connection fails at once, as it does on a machine that cannot look up a host's name."""
    import urllib.error
    import urllib.request

    asked = []

    def refuse(url, timeout):
        asked.append(url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked
