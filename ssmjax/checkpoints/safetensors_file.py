"""The safetensors format: read through a memory map, and written one array at a time.

A file is the length of a header (8 bytes), the header (JSON: the dtype, shape and place of each array), and the arrays
one after the other. The header of a foreign file is not trusted: every array must lie within the file, with the number
of bytes that its shape and dtype need, without gaps or overlaps. It is read here and not by the `safetensors` package,
whose numpy interface knows no bfloat16 and copies.
"""

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["SafetensorsFile", "dtype_code", "parse_safetensors", "write_safetensors_files"]

MAX_HEADER = 100_000_000  # bytes; the format's own limit

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def parse_safetensors(data: Any, where: str) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a safetensors file, as views of them.

    Args:
        data: Bytes, or a memory map.
        where: The file's name, for the message.

    Raises:
        ValueError: These are not the bytes of a safetensors file, or not all of them; or it holds a dtype that numpy
            lacks.

    >>> parse_safetensors(b"", "empty.safetensors")
    Traceback (most recent call last):
    ValueError: empty.safetensors: not a safetensors file, or a damaged one (it has 0 bytes).
    """
    if len(data) < 8:
        raise _damaged(where, f"it has {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise _damaged(where, f"its header would have {length} bytes, and {len(data) - 8} follow")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _damaged(where, "its header is no JSON object")
    arrays, places = {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            dtype, shape, start, end = _entry(name, entry, where)
            places.append((start, end, name, dtype, shape))
    end_of_last = 0
    for start, end, name, dtype, shape in sorted(places, key=lambda place: place[:2]):
        if start != end_of_last or end - start != math.prod(shape) * dtype.itemsize:
            raise _damaged(where, f"the bytes of {name} are not where its shape {shape} and the others put them")
        end_of_last = end
        if 8 + length + end > len(data):
            raise _damaged(
                where, f"{name} ends at byte {8 + length + end}, and the file has {len(data)}: it is cut off"
            )
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), 8 + length + start).reshape(shape)
    if 8 + length + end_of_last != len(data):
        raise _damaged(where, f"{len(data) - 8 - length - end_of_last} bytes follow its last array")
    return {name: arrays[name] for name in header if name in arrays}


def _entry(name: str, entry: Any, where: str) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """What a header says of one array."""
    try:
        code, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(where, f"its header says nothing sensible of {name}") from error
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, end)):
        raise _damaged(where, f"its header says nothing sensible of {name}")
    if code not in _DTYPES:
        raise ValueError(f"{where}: holds {code} arrays ({name}); known are {', '.join(_DTYPES)}.")
    return _DTYPES[code], shape, start, end


def _damaged(where: str, what: str) -> ValueError:
    return ValueError(f"{where}: not a safetensors file, or a damaged one ({what}).")


class SafetensorsFile:
    """A safetensors file in a memory map: its arrays are read from the disk when they are looked at.

    Args:
        path: The file.

    Attributes:
        arrays: Views of the map, read-only, by name. What is kept beyond this object is to be copied.
        data: The whole map.

    Raises:
        ValueError: It is no safetensors file, or it is cut off.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_safetensors_files({path: {"w": np.float32([1, 2])}}, [("w", np.float32([1, 2]))])
    >>> SafetensorsFile(path).arrays["w"].tolist()
    [1.0, 2.0]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = map_file(path)
        self.arrays = parse_safetensors(self.data, str(path))

    def release(self) -> None:
        """Gives up the memory of what was read so far; it is read again if it is looked at again."""
        release_map(self.data)


def map_file(path: Path) -> mmap.mmap | bytes:
    """A file as a read-only memory map, which gives its bytes; an empty file has no map.

    >>> map_file(Path("/dev/null"))
    b''
    """
    with open(path, "rb") as file:
        if not path.is_file() or path.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def release_map(data: Any) -> None:
    """Gives up the memory of a map's pages, where the system can.

    >>> release_map(b"")
    """
    if isinstance(data, mmap.mmap) and hasattr(data, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def write_safetensors_files(
    files: Mapping[Path, Mapping[str, Any]],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays into one or several files as they come, so that one at a time is in memory.

    Args:
        files: What goes where: the arrays, or their specs, by name, for each path.
        arrays: Every one of them, in any order.
        metadata: The header's own entry.

    Raises:
        ValueError: One of the arrays has another shape or dtype than was announced, or one did not come.
    """
    places, handles = {}, {}
    try:
        for path, specs in files.items():
            handles[path] = open(path, "wb")
            header, offset = ({"__metadata__": dict(metadata)} if metadata else {}), 0
            for name, x in specs.items():
                size = math.prod(x.shape) * np.dtype(x.dtype).itemsize
                header[name] = {
                    "dtype": dtype_code(x.dtype),
                    "shape": list(x.shape),
                    "data_offsets": [offset, offset + size],
                }
                places[name] = (path, offset, tuple(x.shape), np.dtype(x.dtype))
                offset += size
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # so that the arrays are aligned
            handles[path].write(len(text).to_bytes(8, "little") + text)
            places |= {name: (path, 8 + len(text) + places[name][1], *places[name][2:]) for name in specs}
        for name, x in arrays:
            path, start, shape, dtype = places.pop(name)
            if (x.shape, x.dtype) != (shape, dtype):
                raise ValueError(f"{path}: {name} is {x.shape} {x.dtype}, and {shape} {dtype} was announced.")
            handles[path].seek(start)
            handles[path].write(np.asarray(x, order="C").reshape(-1).view(np.uint8).data)
        if places:
            raise ValueError(f"These arrays were announced and did not come: {', '.join(sorted(places))}.")
    finally:
        for handle in handles.values():
            handle.close()


def dtype_code(dtype: Any) -> str:
    """The format's name of a dtype.

    Raises:
        ValueError: It has none.

    >>> dtype_code(np.float32)
    'F32'
    """
    if np.dtype(dtype) not in _CODES:
        raise ValueError(f"safetensors has no arrays of dtype {dtype}; it has {', '.join(map(str, _CODES))}.")
    return _CODES[np.dtype(dtype)]
