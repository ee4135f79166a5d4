"""The one reader of files that may be damaged, or made to harm: every other reader goes through it.

A damaged file ends in a ValueError that names it; nothing is unpickled; no link is followed to
another file; and nothing is allocated on the word of a header alone, only on what is there.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

StrPath = str | os.PathLike[str]

FREE_BYTES = 64 * 2**20
"""Up to here content may be as small in its file as it likes."""
EXPANSION = 200
"""How many times larger than in its file longer content may be: data sets reach about 30."""


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn what a reader raises on a damaged file into a ValueError that names the file.

    Readers of formats raise anything on a damaged one: RuntimeError, KeyError, TypeError,
    SyntaxError, MemoryError, RecursionError, classes of their own. So only calls into them belong
    inside.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the system, which names the file
        raise ValueError(
            f"cannot read {path}: truncated, corrupt or of another format ({_told(error)}). Get "
            "the file again"
        ) from error


@contextlib.contextmanager
def naming(source: object) -> Iterator[None]:
    """Put what arrays come from before the message of a check of theirs."""
    try:
        yield
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{source}: {error}") from error


def _told(error: Exception) -> str:
    """What an error of a library says, in a line that can be printed."""
    if isinstance(error, AttributeError | TypeError | AssertionError):
        return type(error).__name__  # of its code, and not of the file
    said = " ".join(f"{type(error).__name__}: {error}".split())
    said = re.sub(r"0x[0-9a-f]{6,}", "...", said)  # checksums and addresses
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)[:300]


def existing(name: str, path: StrPath, hint: str = "") -> Path:
    """`path` as a Path, or a FileNotFoundError that names the argument."""
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{name}: {found} does not exist. {hint}".rstrip())
    return found


def check_expansion(path: object, num_bytes: int, stored: int) -> None:
    """Raise if `num_bytes` of content come from so few `stored` bytes that they fill memory only.

    Raises:
        ValueError: both numbers and the largest that is read.
    """
    most = max(FREE_BYTES, EXPANSION * stored)
    if num_bytes > most:
        raise ValueError(
            f"{path} would take {num_bytes:,} bytes of memory, but only {stored:,} are in the "
            f"file, which may grow to {most:,}. It is damaged or made to fill memory: get it "
            "again, or store it less compressed"
        )


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressing .gz, .tgz, .bz2, .xz and .zst."""
    content = io.BytesIO()
    with reading(path):
        stored = path.stat().st_size
        most = max(FREE_BYTES, EXPANSION * stored)
        with _opened(path) as file:
            # In pieces: asked for so many bytes at once, a file would have room made for all.
            while content.tell() <= most and (piece := file.read(2**20)):
                content.write(piece)
    check_expansion(path, content.tell(), stored)
    return content.getvalue()


def _opened(path: Path) -> BinaryIO:
    if path.suffix in (".gz", ".tgz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb")


def inflate(content: bytes, path: object) -> bytes:
    """Decompress bytes of zlib."""
    most = max(FREE_BYTES, EXPANSION * len(content))
    decompressor = zlib.decompressobj()
    with reading(path):
        inflated = decompressor.decompress(content, most + 1)
    check_expansion(path, len(inflated), len(content))
    if not decompressor.eof:
        raise ValueError(f"cannot read {path}: its compressed data end too early. Get it again")
    return inflated


def read_zipped(archive: zipfile.ZipFile, name: str, path: object) -> bytes:
    """Read a file of a zip file."""
    with reading(path):
        member = archive.getinfo(name)
    check_expansion(f"{path}: {name}", member.file_size, member.compress_size)
    with reading(path):
        return archive.read(name)


def read_npz(content: bytes, path: object) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file given as bytes."""
    with reading(path):
        archive = zipfile.ZipFile(io.BytesIO(content))
        names = [name for name in archive.namelist() if name.endswith(".npy")]
    with archive:
        return {
            name.removesuffix(".npy"): read_npy(read_zipped(archive, name, path), f"{path}: {name}")
            for name in names
        }


def read_npy(content: bytes, path: object) -> np.ndarray:
    """Read the array of an .npy file given as bytes: of numbers, booleans or text."""
    file = io.BytesIO(content)
    with reading(path):
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    check_dtype(dtype, path)
    expected, found = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
    if min(shape, default=0) < 0 or expected != found:
        raise ValueError(
            f"{path} should hold {shape} of {dtype} = {expected:,} bytes by its header, but holds "
            f"{found:,}. It is truncated or corrupt: get it again"
        )
    file.seek(0)
    with reading(path):
        return np.lib.format.read_array(file, allow_pickle=False)


def check_dtype(dtype: np.dtype, path: object) -> None:
    """Raise unless arrays of this dtype hold plain values: numbers, booleans, text, bytes."""
    if dtype.kind not in "biufUS" and dtype.name != "bfloat16":
        why = ", which can be read only by running what is in the file" if dtype.hasobject else ""
        raise ValueError(
            f"{path} holds an array of {dtype}{why}. Save arrays of numbers, such as "
            "np.asarray(values, np.float32)"
        )


def read_parquet(path: Path, texts: Sequence[str] = ()) -> "pa.Table":
    """Read the table of a Parquet file.

    Args:
        path: the file.
        texts: columns of which each text that the file holds once is held once, for however many
            rows.
    """
    from pyarrow import parquet

    with reading(path):
        file = parquet.ParquetFile(
            path, read_dictionary=list(texts), page_checksum_verification=True
        )
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        num_bytes = sum(max(group.total_byte_size, 8 * group.num_rows) for group in groups)
    check_expansion(path, num_bytes, path.stat().st_size)
    with reading(path):
        table = file.read()
        table.validate(full=True)
    return table


def read_json(path: Path) -> Any:
    """Read a JSON file (.gz and .xz too); a name that an object has twice is refused.

    Numbers and NaN are as JSON's reader of Python takes them: callers check ranges.
    """
    content = read_bytes(path)
    with reading(path):
        return json.loads(content, object_pairs_hook=_without_twins)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return found
