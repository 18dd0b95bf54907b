"""Downloads one archive: bounded waiting, a progress bar, a checked sha256, and no partial file under the real name."""

import hashlib
import logging
import os
import threading
import urllib.request
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ssmjax.data.archives import Archive, DataUnavailable

__all__ = ["TIMEOUT", "download"]

_log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds to wait for a server's first answer, and for each piece after it."""


def _open(url: str, timeout: float) -> Any:
    """Opens a URL within `timeout` seconds in all.

    urllib's own timeout bounds neither the look-up of the host's name nor the trials of its several addresses, so that
    a machine without a network may hang for minutes: the wait happens in a daemon thread, which can be abandoned.
    """
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(urllib.request.urlopen(url, timeout=timeout))
        except Exception as error:  # the waiting thread raises it
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise TimeoutError(f"no answer within {timeout:g} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def download(archive: Archive, folder: Path, timeout: float = TIMEOUT) -> Path:
    """Fetches an archive into a folder.

    Args:
        archive: What to fetch.
        folder: Where to; made if it is missing.
        timeout: Seconds to wait for the server.

    Returns:
        The path of the file, whose sha256 was checked.

    Raises:
        OSError: If the server cannot be reached, answers with an error or falls silent, or the folder is not writable.
        http.client.HTTPException: If the connection breaks.
        DataUnavailable: If the file that came is not the official one.
    """
    path, part = folder / archive.filename, folder / f"{archive.filename}.{os.getpid()}.part"
    digest = hashlib.sha256()
    _log.info("downloading %s to %s", archive.url, path)
    try:
        with _open(archive.url, timeout) as response:
            folder.mkdir(parents=True, exist_ok=True)
            total = int(response.headers.get("Content-Length", 0)) or None
            with part.open("wb") as file, tqdm(total=total, unit="B", unit_scale=True, desc=archive.filename) as bar:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        if digest.hexdigest() != archive.sha256:
            raise DataUnavailable(
                f"{archive.url} sent {part.stat().st_size:,} bytes that are not the official archive.\n"
                f"  expected sha256  {archive.sha256}\n"
                f"  got              {digest.hexdigest()}\n"
                "Try again; if it stays so, a proxy answers in the server's place, or the file was moved."
            )
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
