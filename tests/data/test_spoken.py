"""Spoken digits from tiny archives and prepared folders: the split, the padding, and what is said without them."""

import io
import tarfile
import wave

import numpy as np
import pytest

from ssmjax.data import DataUnavailable, load_spoken_digits

NAMES = [f"{digit}_{speaker}_{index}" for digit in (0, 7) for speaker in ("ann", "bob") for index in (0, 4, 5, 30)]


def _recording(name: str) -> np.ndarray:
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(-(2**15), 2**15, rng.integers(20, 60)).astype(np.int16)


def _wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def _archive(path, names=NAMES, rate: int = 8000):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            content = _wav(_recording(name), rate)
            info = tarfile.TarInfo(f"recordings/{name}.wav")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _check(data):
    held_out = [name for name in NAMES if int(name.split("_")[2]) < 5]
    for split, names in (("test", held_out), ("train", [name for name in NAMES if name not in held_out])):
        arrays = getattr(data, split)
        assert arrays["inputs"].shape == (len(names), 50, 1) and arrays["inputs"].dtype == np.int16
        for row, length, label, name in zip(*(arrays[k] for k in ("inputs", "lengths", "label")), names, strict=True):
            wanted = _recording(name)[:50]
            assert (length, label) == (len(wanted), int(name[0]))
            np.testing.assert_array_equal(row[:length, 0], wanted)
            assert not row[length:].any()


@pytest.mark.parametrize("folder", [".", "spoken_digits"])
def test_from_the_archive(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    _archive(tmp_path / folder / "recordings.tar.gz")
    data = load_spoken_digits(data_dir=tmp_path, download_dir=tmp_path, max_length=50)
    _check(data)
    assert data.num_classes == 10 and data.source == "free-spoken-digit-dataset, recordings.tar.gz"


def _example(name: str) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["audio"].int64_list.value.extend(_recording(name).tolist())
    example.features.feature["label"].int64_list.value.append(int(name[0]))
    example.features.feature["audio/filename"].bytes_list.value.append(f"{name}.wav".encode())
    return example.SerializeToString()


def _prepare(folder, form: str):
    """Writes what TFDS does, which needs TensorFlow for it."""
    folder.mkdir(parents=True)
    path = folder / f"spoken_digit-train.{form}-00000-of-00001"
    if form == "array_record":
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1")
        for name in NAMES:
            writer.write(_example(name))
        writer.close()
    else:
        records = [_example(name) for name in NAMES]
        path.write_bytes(b"".join(len(r).to_bytes(8, "little") + b"crc!" + r + b"crc!" for r in records))
    return path


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_from_a_prepared_folder(tmp_path, form):
    _prepare(tmp_path / "spoken_digit" / "1.0.9", form)
    data = load_spoken_digits(data_dir=tmp_path, max_length=50)
    _check(data)
    assert data.source == "tfds spoken_digit:1.0.9"


def test_a_damaged_prepared_folder(tmp_path):
    path = _prepare(tmp_path / "spoken_digit" / "1.0.9", "tfrecord")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataUnavailable, match="incomplete or damaged .*ends within a record.*\n.*Delete"):
        load_spoken_digits(data_dir=tmp_path)
    path.unlink()
    with pytest.raises(DataUnavailable, match="neither an array_record nor a tfrecord"):
        load_spoken_digits(data_dir=tmp_path)


def test_missing_recordings_are_one_message(tmp_path):
    with pytest.raises(DataUnavailable, match="not on this machine") as caught:
        load_spoken_digits(data_dir=tmp_path)
    for words in (str(tmp_path / "spoken_digit"), "--download-dir DIR", "--data touch_tones"):
        assert words in str(caught.value)


def test_a_truncated_archive_is_named(tmp_path):
    path = _archive(tmp_path / "recordings.tar.gz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataUnavailable, match="recordings.tar.gz cannot be read: .*download it again"):
        load_spoken_digits(data_dir=tmp_path, download_dir=tmp_path)


def test_another_sampling_rate_is_refused(tmp_path):
    _archive(tmp_path / "recordings.tar.gz", rate=16000)
    with pytest.raises(DataUnavailable, match=r"is \(2, 1, 16000\), not \(2, 1, 8000\)"):
        load_spoken_digits(data_dir=tmp_path, download_dir=tmp_path)


def test_an_incomplete_set_is_refused(tmp_path):
    _archive(tmp_path / "recordings.tar.gz", names=[name for name in NAMES if name.endswith("_30")])
    with pytest.raises(DataUnavailable, match="no recording for the test set"):
        load_spoken_digits(data_dir=tmp_path, download_dir=tmp_path)


def test_a_bad_length(tmp_path):
    with pytest.raises(ValueError, match="max_length must be positive"):
        load_spoken_digits(data_dir=tmp_path, max_length=0)
