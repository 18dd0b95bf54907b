"""Spoken digits as raw 8 kHz waveforms: the Free Spoken Digit Dataset, from its archive or a prepared TFDS folder."""

import io
import os
import re
import tarfile
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ssmjax.data import tfds
from ssmjax.data.archives import DataUnavailable
from ssmjax.data.sequences import SequenceData, sequence_data
from ssmjax.errors import bad_argument

__all__ = ["HELD_OUT", "load_spoken_digits"]

HELD_OUT = 5
"""Recordings 0 .. 4 of each speaker and digit are the test set, as the data set's authors propose."""

_HOME = "https://github.com/Jakobovski/free-spoken-digit-dataset"
_ARCHIVES = ("recordings.tar.gz", "free-spoken-digit-dataset-1.0.10.tar.gz", "free-spoken-digit-dataset-1.0.9.tar.gz")
_FILE = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav")
_RATE = 8000


def load_spoken_digits(
    *,
    data_dir: str | os.PathLike | None = None,
    download_dir: str | os.PathLike | None = None,
    max_length: int = 8192,
) -> SequenceData:
    """Loads recordings of the ten digits (Jackson et al., CC BY-SA 4.0).

    Looked for in this order: a folder that TensorFlow Datasets prepared, `data_dir/spoken_digit/version`, in either of
    its formats; an archive of the repository or of its `recordings` folder, in `download_dir/spoken_digits` or
    `download_dir`. The two hold different releases (2,500 and 3,000 recordings), as the source says.

    Args:
        data_dir: The folder of prepared folders. Default: the variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        download_dir: Where archives lie that were placed by hand. Default: `data_dir/downloads/manual`.
        max_length: The samples a waveform is padded to; what a longer one has beyond them is left out.

    Returns:
        `inputs` (N l 1) int16, `lengths` and `label`, sorted by digit, speaker and number.

    Raises:
        ValueError: If `max_length` is not positive.
        DataUnavailable: If the recordings are not here, or damaged; the message is the remedy.

    >>> import tempfile
    >>> load_spoken_digits(data_dir=tempfile.mkdtemp())
    Traceback (most recent call last):
    ssmjax.data.archives.DataUnavailable: The recordings of spoken digits are not on this machine...
    """
    if max_length < 1:
        raise bad_argument("load_spoken_digits", "max_length", max_length, "positive")
    data_dir, manual = tfds.data_folders("load_spoken_digits", data_dir, download_dir)
    places = [folder / name for folder in (manual / "spoken_digits", manual) for name in _ARCHIVES]
    if folder := tfds.find_prepared("spoken_digit", data_dir):
        recordings, source = dict(_read_prepared(folder)), f"tfds spoken_digit:{folder.name}"
    elif archive := next((path for path in places if path.is_file()), None):
        recordings, source = dict(_read_archive(archive)), f"free-spoken-digit-dataset, {archive.name}"
    else:
        raise DataUnavailable(_how_to_get(data_dir, manual))
    return _split(recordings, max_length, source)


_Name = tuple[int, str, int]
"""Digit, speaker and number of a recording."""


def _read_archive(path: Path) -> Iterator[tuple[_Name, np.ndarray]]:
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                found, file = _FILE.fullmatch(member.name), tar.extractfile(member)
                if found and file:
                    yield _name(found), _samples(file.read())
    except (wave.Error, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise DataUnavailable(
            f"{path} cannot be read: {error}. It is truncated or damaged; delete it and download it again from {_HOME}."
        ) from error


def _read_prepared(folder: Path) -> Iterator[tuple[_Name, np.ndarray]]:
    """Reads the records themselves: TFDS needs TensorFlow for a feature of sound, be it only to open the folder."""
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        for record in _records(folder):
            features = tf_example_pb2.Example.FromString(record).features.feature
            filename = features["audio/filename"].bytes_list.value[0].decode()
            found = _FILE.fullmatch(filename)
            if not found:
                raise ValueError(f"a recording has the unknown name {filename!r}")
            yield _name(found), np.array(features["audio"].int64_list.value, np.int16)
    # protobuf and array_record each raise errors of their own on damaged files, down to RuntimeError.
    except Exception as error:
        raise DataUnavailable(
            f"The prepared data set in {folder} is incomplete or damaged ({type(error).__name__}: {error}).\n"
            "Delete that folder, and prepare it anew with TensorFlow Datasets or place the archive by hand."
        ) from error


def _records(folder: Path) -> Iterator[bytes]:
    """The serialized examples of a prepared folder, in the array_record or in TFDS' default format."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    if shards := sorted(folder.glob("*-train.array_record-*")):
        source = ArrayRecordDataSource([str(path) for path in shards])
        yield from (source[index] for index in range(len(source)))
    elif shards := sorted(folder.glob("*-train.tfrecord-*")):
        for path in shards:
            yield from _tfrecords(path.read_bytes())
    else:
        raise ValueError("it has neither an array_record nor a tfrecord file of the split train")


def _tfrecords(content: bytes) -> Iterator[bytes]:
    """A record is its length (8 bytes), a checksum of that (4), the data, and a checksum of them (4)."""
    at = 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        record = content[at + 12 : at + 12 + length]
        if len(record) < length:
            raise EOFError("a tfrecord file ends within a record")
        yield record
        at += 16 + length


def _name(found: re.Match[str]) -> _Name:
    return int(found[1]), found[2], int(found[3])


def _samples(content: bytes) -> np.ndarray:
    """The samples of a wav file: 16 bits, one channel, 8 kHz."""
    with wave.open(io.BytesIO(content)) as file:
        form = file.getsampwidth(), file.getnchannels(), file.getframerate()
        if form != (2, 1, _RATE):
            raise wave.Error(f"(bytes, channels, rate) of a recording is {form}, not (2, 1, {_RATE})")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)


def _split(recordings: dict[_Name, np.ndarray], max_length: int, source: str) -> SequenceData:
    names = sorted(recordings)
    splits = {}
    for split, wanted in (("test", True), ("train", False)):
        chosen = [name for name in names if (name[2] < HELD_OUT) == wanted]
        if not chosen:
            raise DataUnavailable(f"{source}: there is no recording for the {split} set. The set is incomplete.")
        inputs = np.zeros((len(chosen), max_length, 1), np.int16)
        lengths = np.array([min(len(recordings[name]), max_length) for name in chosen])
        for row, name, length in zip(inputs, chosen, lengths, strict=True):
            row[:length, 0] = recordings[name][:length]
        splits[split] = {"inputs": inputs, "label": np.array([name[0] for name in chosen]), "lengths": lengths}
    classes = tuple("zero one two three four five six seven eight nine".split())
    return sequence_data("spoken_digits", splits["train"], splits["test"], classes, source=source)


def _how_to_get(data_dir: Path, download_dir: Path) -> str:
    return f"""The recordings of spoken digits are not on this machine.
  no prepared folder    {data_dir / "spoken_digit"}
  no archive in         {download_dir}

What can be done:
  1. Download {_HOME}/archive/refs/tags/v1.0.10.tar.gz, put it as {_ARCHIVES[1]}
     into a folder DIR, and run again with --download-dir DIR
  2. Use a folder FOLDER in which TensorFlow Datasets prepared 'spoken_digit': --data-dir FOLDER
  3. Use other data, which needs no download: python -m experiments.spoken_digits --data touch_tones"""
