"""Images from files: IDX, NPZ, CIFAR's binaries, folders and archives of pictures."""

import io
import math
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import existing, read_bytes, read_npz, reading
from fedjax_sim.data.datasets.dataset import Dataset

_PICTURES = (".png", ".jpg", ".jpeg")
_ARCHIVES = (".npz", ".npz.xz", ".npz.gz", ".tar", ".tar.xz", ".tar.gz", ".tgz")


class Split(NamedTuple):
    """Images [M, ...] and labels [M]."""

    images: np.ndarray
    labels: np.ndarray


class Images(NamedTuple):
    """A data set as its files have it."""

    train: Split
    test: Split
    class_names: Sequence[str]

    @classmethod
    def of(cls, data: Dataset, class_names: Sequence[str]) -> "Images":
        """The images of a data set, with these names of its classes."""
        train, test = (Split(split["x"], split["y"]) for split in (data.train, data.test))
        return cls(train, test, class_names)


def read_images(
    path: Path, class_names: Sequence[str], archive: str = "", prefix: str = ""
) -> Images:
    """Read any of the kinds of `from_images`; `archive` is how an archive's name begins."""
    if path.is_dir():
        if idx_file(path, prefix, "train", "images"):
            return _read_idx_folder(path, prefix, class_names)
        if (path / "train").is_dir():
            return _read_pictures(path, class_names)
        if (path / "data_batch_1.bin").exists():
            return _read_cifar_binary(path, class_names)
        archives = sorted(
            file for file in path.glob(f"{archive}*") if file.name.endswith(_ARCHIVES)
        )
        if len(archives) != 1:
            found = f"found {[file.name for file in archives]}" if archives else "found none"
            raise FileNotFoundError(
                f"no images to read in {path}: it needs IDX files ({prefix}train-images... and "
                "three more), folders train/<class> and test/<class> with .png or .jpg files, or "
                f"one archive {archive}*.npz, .npz.xz, .tar, .tar.xz or .tar.gz ({found})"
            )
        path = archives[0]
    if ".npz" in path.suffixes:
        return _read_npz_splits(path, class_names)
    if path.name.endswith(_ARCHIVES):
        return _read_pictures(path, class_names)
    raise ValueError(f"{path} is none of the kinds that can be read: {', '.join(_ARCHIVES)}")


def _split(images: np.ndarray, labels: np.ndarray, images_path: object, where: object) -> Split:
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, but {where} {len(labels)} labels"
        )
    return Split(images[..., None] if images.ndim == 3 else images, labels)


def idx_file(folder: Path, prefix: str, split: str, what: str) -> Path | None:
    """The file of a split's images or labels in a folder of IDX files, if there is one."""
    names = ("train",) if split == "train" else ("t10k", "test")
    found = [file for name in names for file in sorted(folder.glob(f"{prefix}{name}-{what}*"))]
    return found[0] if found else None


def _read_idx_folder(folder: Path, prefix: str, class_names: Sequence[str]) -> Images:
    def file(split: str, what: str) -> Path:
        found = idx_file(folder, prefix, split, what)
        if found is None:
            name = "train" if split == "train" else "t10k"
            raise FileNotFoundError(
                f"{folder} has no {prefix}{name}-{what}-idx*-ubyte.gz beside its training images"
            )
        return found

    def split(name: str) -> Split:
        images, labels = file(name, "images"), file(name, "labels")
        return _split(read_idx(images, 3), read_idx(labels, 1), images, labels)

    return Images(split("train"), split("test"), class_names)


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """IDX: 0, 0, 8 for uint8, the number of axes, their lengths as big-endian int32, the data."""
    content = read_bytes(path)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path} is no IDX file of uint8 with {ndim} axes: it begins with {content[:4].hex()}"
        )
    shape = tuple(np.frombuffer(content, ">i4", ndim, offset=4).tolist())
    if min(shape) < 0 or len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} should hold {shape} = {math.prod(shape):,} bytes by its header, but holds "
            f"{len(content) - header:,}. Get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # writable


def _read_npz_splits(path: Path, class_names: Sequence[str]) -> Images:
    arrays = read_npz(read_bytes(path), path)

    def take(split: str, what: str) -> np.ndarray:
        keys = (f"{split}_{what}", f"{'x' if what == 'images' else 'y'}_{split}")
        for key in keys:
            if key in arrays:
                return arrays[key]
        raise ValueError(f"{path} has neither {keys[0]!r} nor {keys[1]!r}, only {[*arrays]}")

    def split(name: str) -> Split:
        return _split(take(name, "images"), take(name, "labels"), f"{path} ({name})", "its labels:")

    return Images(split("train"), split("test"), class_names)


def _read_cifar_binary(folder: Path, class_names: Sequence[str]) -> Images:
    def split(*files: str) -> Split:
        records = []
        for file in files:
            path = existing("folder", folder / file)
            content = np.frombuffer(read_bytes(path), np.uint8)
            if not len(content) or len(content) % 3_073:
                raise ValueError(f"{path} has {len(content)} bytes, no multiple of 3,073")
            records.append(content.reshape(-1, 3_073))
        rows = np.concatenate(records)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(images), rows[:, 0])

    train = split(*(f"data_batch_{i}.bin" for i in range(1, 6)))
    return Images(train, split("test_batch.bin"), class_names)


def _read_pictures(path: Path, class_names: Sequence[str]) -> Images:
    files: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    for name, content in _picture_files(path):
        part, folder = PurePosixPath(name).parts[-3:-1]
        files[part].append((folder, name, content))
    for part, found in files.items():
        if not found:
            raise ValueError(f"{path} has no pictures {part}/<class>/<any>.png or .jpg")
    folders = {folder for found in files.values() for folder, _, _ in found}
    if class_names:
        index = {name: i for i, name in enumerate(class_names)}
        index |= {str(i): i for i in range(len(class_names))}
        unknown = sorted(folders - index.keys())
        if unknown:
            raise ValueError(
                f"{path} has pictures of the class {unknown[0]!r}; the classes are "
                f"{[*class_names]}, or 0 to {len(class_names) - 1}"
            )
    else:
        numeric = all(folder.isdecimal() for folder in folders)
        class_names = sorted(folders, key=int if numeric else str)
        index = {name: i for i, name in enumerate(class_names)}

    def split(found: list[tuple[str, str, bytes]]) -> Split:
        found = sorted(found, key=lambda file: (index[file[0]], file[1]))
        images = [decode(content, f"{path}: {name}") for _, name, content in found]
        for image, (_, name, _) in zip(images, found, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: {name} is {image.shape}, but {found[0][1]} {images[0].shape} "
                    "(height, width, channels); bring all to one size"
                )
        return Split(np.stack(images), np.array([index[folder] for folder, _, _ in found]))

    return Images(split(files["train"]), split(files["test"]), class_names)


def _picture_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every train/<class>/<picture> and test/<class>/<picture>."""

    def wanted(name: str) -> bool:
        parts = PurePosixPath(name).parts
        return (
            len(parts) >= 3
            and parts[-3] in ("train", "test")
            and name.lower().endswith(_PICTURES)
            and not parts[-1].startswith(".")
        )

    if path.is_dir():
        for file in path.rglob("*"):
            name = file.relative_to(path).as_posix()
            if wanted(name):
                yield name, read_bytes(file)
        return
    content = read_bytes(path)  # as a whole, so that what it takes is known
    with reading(path), tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        members = [member for member in archive if member.isfile() and wanted(member.name)]
        pictures: list[Any] = [archive.extractfile(member) for member in members]
        found = [picture.read() for picture in pictures]
    yield from zip((member.name for member in members), found, strict=True)


def decode(content: bytes, name: str) -> np.ndarray:
    """The pixels [height, width, channels] of a picture; grey has one channel, all else three."""
    from PIL import Image

    with reading(name), warnings.catch_warnings():
        # A picture of 90 million pixels is no example: it fills memory.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content)) as picture:
            mode, grey = picture.mode, picture.mode in ("L", "1")
            image = np.asarray(picture.convert("L" if grey else "RGB"))
    if mode[0] in "IF":
        raise ValueError(
            f"{name} has more than 8 bits a pixel (mode {mode} of Pillow), which would be cut off. "
            "Read it as numbers and give them to from_arrays or from_clients as float32"
        )
    return image[..., None] if grey else image


def pictures(rows: Sequence[Any], where: str) -> Any:
    """Rows of values as they are; rows that are each a picture's file, decoded."""
    if not all(np.size(row) == 1 and isinstance(_only(row), bytes) for row in rows):
        return rows
    return [decode(_only(row), f"{where}, row {i}") for i, row in enumerate(rows)]


def _only(row: Any) -> Any:
    return row.item() if isinstance(row, np.ndarray) else row
