"""Readers of damaged archives, and the download of one: the cases that a wrong sha256 does not cover."""

import gzip
import threading
import time
import urllib.request

import pytest

from ssmjax.data.archives import ARCHIVES, Archive, DataUnavailable, sha256_of
from ssmjax.data.download import download


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-12], "ended before|end-of-stream"),
        (lambda content: b"<html>not found</html>", "[Nn]ot a gzipped file"),
        (lambda content: gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd"), "magic number"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "reshape"),
        (lambda content: gzip.compress(b""), "magic number"),
    ],
)
def test_a_damaged_idx_file_is_one_message(damage, reason, fake_archives):
    fake = fake_archives("mnist")
    path = fake.folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataUnavailable, match=f"t10k-labels.* cannot be read: .*({reason}).*truncated or damaged"):
        ARCHIVES["mnist"].read(fake.folder)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_truncated_tar_is_one_message(name, fake_archives):
    fake = fake_archives(name)
    path = next(fake.folder.iterdir())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataUnavailable, match="cannot be read.*truncated or damaged"):
        ARCHIVES[name].read(fake.folder)


def test_a_tar_without_the_files_names_them(fake_archives):
    ten, hundred = fake_archives("cifar10"), fake_archives("cifar100")
    path = ten.folder / "cifar-10-binary.tar.gz"
    path.write_bytes(next(hundred.folder.iterdir()).read_bytes())
    with pytest.raises(DataUnavailable, match="it lacks cifar-10-batches-bin/batches.meta.txt, .*data_batch_1.bin"):
        ARCHIVES["cifar10"].read(ten.folder)


@pytest.fixture
def served(tmp_path):
    """A file behind a URL that needs no network."""
    path = tmp_path / "server" / "archive.gz"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 100)
    return Archive(path.as_uri(), sha256_of(path))


def test_download_writes_the_file_and_nothing_else(served, tmp_path):
    path = download(served, tmp_path / "new" / "folder")
    assert path.read_bytes() == bytes(range(256)) * 100
    assert list(path.parent.iterdir()) == [path]


def test_a_download_of_something_else_is_not_kept(served, tmp_path):
    with pytest.raises(DataUnavailable, match=r"(?s)sent 25,600 bytes.*expected sha256  00.*proxy"):
        download(Archive(served.url, "00"), tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_absent_url_is_an_oserror(served, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        download(Archive(served.url + "x", served.sha256), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_silent_server_is_given_up(served, tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: release.wait(30))
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.2 s"):
        download(served, tmp_path / "folder", timeout=0.2)
    assert time.monotonic() - start < 5
    release.set()
