"""A lock on a folder, which the operating system gives up when the process ends, however it ends."""

import errno
import logging
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["FolderLock"]

logger = logging.getLogger(__name__)

_NAME = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """Lets one holder at a time work in a folder.

    Where the system or the file system has no locks (Windows, some network drives), every `acquire` succeeds, with a
    line in the log.

    Args:
        directory: The folder, made if missing.
        name: The file in it that is locked; holders of other names do not see each other.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> first, second = FolderLock(folder), FolderLock(folder)
    >>> first.acquire(), second.acquire()
    (True, False)
    >>> first.release()
    >>> second.acquire()
    True
    >>> second.release()
    >>> with FolderLock(folder) as mine:
    ...     mine
    True
    """

    def __init__(self, directory: Path, name: str = _NAME) -> None:
        self._path = directory / name
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Takes the lock; False if somebody else has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a")
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, "no file locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.close()
                return False
            logger.info("%s is not locked (%s): do not run two trainings there at once.", self._path.parent, error)
        self._file = file
        return True

    def release(self) -> None:
        """Gives the lock up; does nothing without it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()
