"""easy-VQA: pictures of 64 x 64 with one flat shape, and questions in words about them (V. Zhou, MIT licence)."""

import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from ssmjax.data import DataUnavailable

__all__ = ["EasyVQA", "Part", "load"]

HOW = "Fetch the folder `data` of https://github.com/vzhou842/easy-VQA and pack it: `tar czf easy-vqa.tar.gz data`."


@dataclasses.dataclass(frozen=True)
class Part:
    """Pictures with all their questions.

    Attributes:
        images: (b 64 64 3) uint8.
        questions: (b q t) int32, words, filled with 0 on the left; q is the most that a picture has.
        answers: (b q) int32.
        counts: (b) int32, how many questions there are about each picture.
    """

    images: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class EasyVQA:
    """Both parts.

    Attributes:
        train: 4,000 pictures.
        test: 1,000 pictures.
        words: The words of questions and answers; the number of a word is its token, and 0 is no word.
        answers: How many of the first words are answers.
        sha256: The checksum of the archive.
    """

    train: Part
    test: Part
    words: tuple[str, ...]
    answers: int
    sha256: str


def load(archive: Path, most: int | None = None) -> EasyVQA:
    """Reads the archive.

    Args:
        archive: A tar file, of which every path may have a folder before `train/` and `test/`.
        most: The most pictures of a part, for a check of the plumbing.

    Raises:
        DataUnavailable: There is no such file.
        ValueError: It is another archive.
    """
    if not archive.is_file():
        raise DataUnavailable(f"easy-VQA: {str(archive)!r} is no file. {HOW}")
    from PIL import Image

    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = "/".join(member.name.split("/")[-3:])
            index = name.rsplit("/", 1)[-1].removesuffix(".png")
            wanted = name.endswith((".json", "answers.txt")) or (
                index.isdigit() and (most is None or int(index) < most)
            )
            if member.isfile() and wanted:
                files["/".join(name.split("/")[-3 if index.isdigit() else -2 :])] = tar.extractfile(member).read()  # type: ignore[union-attr]
    try:
        listed = next(value for name, value in files.items() if name.endswith("answers.txt")).decode().split()
        asked = {part: json.loads(files[f"{part}/questions.json"]) for part in ("train", "test")}
    except (StopIteration, KeyError, ValueError) as error:
        raise ValueError(f"easy-VQA: {str(archive)!r} is another archive ({error!r}). {HOW}") from error
    texts = sorted({word for question, _, _ in asked["train"] for word in _words(question)} - set(listed))
    words = ("", *listed, *texts)
    number = {word: i for i, word in enumerate(words)}
    length = max(len(_words(question)) for part in asked.values() for question, _, _ in part)
    parts = {}
    for part, rows in asked.items():
        count = 1 + max(image for _, _, image in rows)
        count = count if most is None else min(count, most)
        images = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(files[f"{part}/images/{i}.png"])).convert("RGB"), np.uint8)
                for i in range(count)
            ]
        )
        found: list[list[tuple[list[int], int]]] = [[] for _ in range(count)]
        for question, answer, image in rows:
            if image < count:
                found[image].append(([number.get(word, 0) for word in _words(question)], number[answer]))
        parts[part] = _packed(images, found, length)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return EasyVQA(parts["train"], parts["test"], words, 1 + len(listed), digest)


def _words(question: str) -> list[str]:
    return question.lower().replace("?", " ?").split()


def _packed(images: np.ndarray, found: list[list[tuple[list[int], int]]], length: int) -> Part:
    most = max(map(len, found))
    questions, answers = np.zeros((len(found), most, length), np.int32), np.zeros((len(found), most), np.int32)
    for i, rows in enumerate(found):
        for j, (question, answer) in enumerate(rows):
            questions[i, j, length - len(question) :] = question
            answers[i, j] = answer
    return Part(images, questions, answers, np.array([len(rows) for rows in found], np.int32))
