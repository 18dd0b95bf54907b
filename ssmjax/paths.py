"""Paths as users give them: `~` is their home, and `gs://bucket/model` is no folder of this machine."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from ssmjax.errors import bad_argument

__all__ = ["LocalPaths", "address_of", "filesystem", "local_path"]

# At least two letters: `c:/models` is a drive. A `Path` has made one slash of two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs"}


def address_of(path: str | os.PathLike) -> str | None:
    """The address that a path is, such as `"gs://bucket/model"`; None for a path of this machine.

    >>> address_of("gs://bucket/model"), address_of(Path("gs://bucket/model")), address_of("models/gs")
    ('gs://bucket/model', 'gs://bucket/model', None)
    """
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found is None or found[1] == "file" or (isinstance(path, str) and len(found[2]) < 2):
        return None
    return f"{found[1]}://{found[3]}"


def local_path(where: str, argument: str, path: str | os.PathLike) -> Path:
    """A path of this machine, with `~` expanded.

    Args:
        where: The public function, for the message.
        argument: The argument's name.
        path: What came.

    Raises:
        ValueError: It is an address of another machine.

    >>> local_path("fit", "checkpoint_dir", "~/run") == Path.home() / "run"
    True
    >>> local_path("fit", "checkpoint_dir", "gs://bucket/run")
    Traceback (most recent call last):
    ValueError: fit: checkpoint_dir must be a folder of this machine, got 'gs://bucket/run'. Mount the bucket...
    """
    address = address_of(path)
    if address is not None:
        remedy = "Mount the bucket as a folder (gcsfuse, s3fs), or give a local folder and copy it afterwards."
        raise bad_argument(where, argument, address, "a folder of this machine", remedy)
    text = os.fspath(path)
    return Path(text.removeprefix("file://")).expanduser()


class LocalPaths:
    """A base of dataclasses of settings: `~` expands in each path, and an address is refused before any work.

    A field is a path if its annotation says so. The models in `OPENED_ANYWHERE` may be addresses: `load_pretrained`
    opens them.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Settings(LocalPaths):
    ...     out_dir: Path = Path(".")
    >>> Settings(Path("~/out")).out_dir == Path.home() / "out"
    True
    >>> Settings("s3://bucket/out")
    Traceback (most recent call last):
    ValueError: settings: out_dir must be a folder of this machine, got 's3://bucket/out'. Mount the bucket...
    """

    OPENED_ANYWHERE = ("pretrained", "teacher")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # what inherits is a dataclass
            if "Path" in str(field.type):
                object.__setattr__(self, field.name, self._local(field.name, getattr(self, field.name)))

    def _local(self, name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._local(name, each) for each in value)
        if value is None or (name in self.OPENED_ANYWHERE and address_of(value) is not None):
            return value
        return local_path("settings", name, value)


def filesystem(where: str, address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Args:
        where: The public function, for the message.
        address: Such as `"gs://bucket/model"`.

    Raises:
        ValueError: No installed package knows addresses of that kind.

    >>> filesystem("example", "memory://models/vim")[1]
    '/models/vim'
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        kind = address.partition(":")[0]
        package = _PACKAGES.get(kind)
        remedy = f"Install it: pip install {package}." if package else "Give a folder of this machine."
        wanted = f"a path that fsspec can open (it cannot open {kind}:// here: {error})"
        raise bad_argument(where, "path", address, wanted, remedy) from error
