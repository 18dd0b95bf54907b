"""A manifest of sha256 sums, written last, that tells a finished and undamaged folder from any other.

Verification renders the manifest anew from the files on disk and compares it with the stored one byte by byte, so that
damage to the manifest itself is found by the same comparison as damage to a file it lists.
"""

import hashlib
import json
import os
from pathlib import Path

__all__ = ["MANIFEST", "sha256_of", "verify_manifest", "write_atomically", "write_manifest"]

MANIFEST = "manifest.json"


def sha256_of(path: str | Path) -> str:
    """Returns the hexadecimal sha256 sum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: str | Path, text: str) -> None:
    """Writes a text file so that a crash, or a power cut, leaves the old content or the new, never a mixture.

    Args:
        path: The file; its folder must exist.
        text: The whole new content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _render(folder: Path, label: str) -> str:
    """The manifest of a folder as it is now."""
    own = {folder / MANIFEST, folder / f".{MANIFEST}.tmp"}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    return json.dumps({"label": label, "sha256": sums}, indent=1) + "\n"


def write_manifest(folder: str | Path, label: str) -> None:
    """Writes the manifest of a folder, atomically.

    Args:
        folder: The folder; every file in it and below is listed.
        label: What the folder holds, so that two intact folders cannot be exchanged unnoticed.
    """
    folder = Path(folder)
    write_atomically(folder / MANIFEST, _render(folder, label))


def verify_manifest(folder: str | Path, label: str) -> str | None:
    """Compares a folder with its manifest.

    Args:
        folder: The folder.
        label: The label it was written with.

    Returns:
        None if everything is as it was written, else what differs, in a few words.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    stored, actual = (folder / MANIFEST).read_bytes(), _render(folder, label)
    return None if stored == actual.encode() else _difference(stored, json.loads(actual), label)


def _difference(stored: bytes, actual: dict, label: str) -> str:
    """Names the first thing in which a stored manifest and the folder differ."""
    try:
        wanted = json.loads(stored)
        wanted_sums, wanted_label = dict(wanted["sha256"]), wanted["label"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} itself is damaged"
    for name in sorted(wanted_sums.keys() | actual["sha256"].keys()):
        if name not in actual["sha256"]:
            return f"{name} is missing"
        if name not in wanted_sums:
            return f"{name} is not in {MANIFEST}"
        if wanted_sums[name] != actual["sha256"][name]:
            return f"{name} does not have the sha256 that {MANIFEST} lists"
    if wanted_label != label:
        return f"{MANIFEST} says that this is {wanted_label!r}, not {label!r}"
    return f"{MANIFEST} itself is damaged"
