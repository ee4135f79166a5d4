"""Image data sets, from local files of several kinds or through tensorflow-datasets."""

import io
import math
import string
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fedjax_sim.data.datasets.catalog import tfds
from fedjax_sim.data.datasets.dataset import (
    Dataset,
    StrPath,
    existing,
    from_arrays,
    read_bytes,
    read_npz,
    read_shipped,
    reading,
)
from fedjax_sim.ops import checks

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""

_DIGITS = tuple(string.digits)
_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_MERGED = (*_DIGITS, *string.ascii_uppercase, *"abdefghnqrt")
_EMNIST = {
    "byclass": (*_DIGITS, *string.ascii_uppercase, *string.ascii_lowercase),
    "bymerge": _MERGED,
    "balanced": _MERGED,
    "letters": tuple(string.ascii_uppercase),
    "digits": _DIGITS,
    "mnist": _DIGITS,
}
_IDX_FILES = (
    "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz"
)
_PICTURES = (".png", ".jpg", ".jpeg")
_ARCHIVES = (".npz", ".npz.xz", ".npz.gz", ".tar", ".tar.xz", ".tar.gz", ".tgz")


class _Split(NamedTuple):
    images: np.ndarray
    labels: np.ndarray


class _Images(NamedTuple):
    train: _Split
    test: _Split
    class_names: Sequence[str]

    @classmethod
    def of(cls, data: Dataset, class_names: Sequence[str]) -> "_Images":
        train, test = (_Split(split["x"], split["y"]) for split in (data.train, data.test))
        return cls(train, test, class_names)


def from_images(
    path: StrPath,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    prefix: str = "",
) -> Dataset:
    """Read an image data set from local files; the kind is seen from what is there.

    Args:
        path: one of

            - a folder with four IDX files, plain or .gz, as MNIST has them (`train-images...`,
              `train-labels...`, `t10k-images...` or `test-images...`, `t10k-labels...`);
            - an .npz file, or .npz.xz or .npz.gz, with train_images, train_labels, test_images,
              test_labels or x_train, y_train, x_test, y_test;
            - a folder, or a .tar, .tar.xz or .tar.gz, with pictures
              `train/<class>/<any>.png` (or .jpg) and `test/<class>/<any>.png`;
            - a folder that holds one of those archives.

        name: by default the name of the file or folder.
        num_classes: K, by default as many as there are class names or labels.
        class_names: K names in the order of the labels. Folders of pictures must then carry these
            names, or 0 to K - 1; by default their own names are taken, in order.
        prefix: how the names of the IDX files begin.

    Returns:
        A Dataset of uint8 images [M, height, width, channels], labels [M].

    Raises:
        FileNotFoundError: nothing to read at `path`; says what may be there.
        ValueError: a truncated or damaged file, images and labels of unequal number, pictures of
            unequal size; names the file.

    Cost: pictures are decoded one by one, about 10,000 a second.
    """
    source = existing("path", path)
    images = _read(source, class_names, prefix=prefix)
    return from_arrays(
        images.train.images,
        images.train.labels,
        images.test.images,
        images.test.labels,
        name=name or source.name.split(".")[0],
        num_classes=num_classes,
        class_names=images.class_names,
    )


def fashion_small() -> Dataset:
    """A part of Fashion-MNIST that ships with the package: 2,500 training and 500 test images.

    The first 250 and 50 of each of the 10 classes, in the original order: for tests, tutorials and
    machines without a network. Results on it say little about the whole: use `fashion_mnist`.

    Returns:
        A Dataset of uint8 images [M, 28, 28, 1].

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
        Learning Algorithms", 2017, MIT licence, copyright Zalando SE.

    >>> fashion_small().train["x"].shape
    (2500, 28, 28, 1)
    """
    arrays = read_shipped("fashion_small.npz.xz")
    return from_arrays(
        arrays["train_images"][..., None],
        arrays["train_labels"],
        arrays["test_images"][..., None],
        arrays["test_labels"],
        name="fashion_small",
        class_names=_CLOTHES,
    )


def fashion_mnist(folder: StrPath | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 / 10,000 grey pictures of clothes, 28 by 28, 10 classes.

    Args:
        folder: local files, as `from_images` takes them. By default those of Debian's package
            dataset-fashion-mnist if installed, otherwise tensorflow-datasets.

    Returns:
        A Dataset of uint8 images [M, 28, 28, 1].

    Raises:
        FileNotFoundError, ValueError: as `from_images`; other sizes than those above.
        ImportError, ConnectionError, RuntimeError: as `tfds`, and which files to put where.

    References:
        Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
        Learning Algorithms", 2017, MIT licence.
    """
    if folder is None and DEBIAN_FASHION_MNIST.is_dir():
        folder = DEBIAN_FASHION_MNIST
    instead = (
        f"put {_IDX_FILES} into a folder (on Debian: apt-get install dataset-fashion-mnist), or "
        "use fashion_small, which ships with the package"
    )
    return _benchmark("fashion_mnist", folder, (28, 28, 1), (60_000, 10_000), _CLOTHES, instead)


def mnist(folder: StrPath | None = None) -> Dataset:
    """MNIST: 60,000 / 10,000 handwritten digits, grey, 28 by 28.

    Args:
        folder: local files, as `from_images` takes them; by default tensorflow-datasets.

    Returns:
        A Dataset of uint8 images [M, 28, 28, 1].

    Raises:
        FileNotFoundError, ValueError: as `from_images`; other sizes than those above.
        ImportError, ConnectionError, RuntimeError: as `tfds`, and which files to put where.

    References:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
        Proceedings of the IEEE, 1998.
    """
    instead = f"put {_IDX_FILES} into a folder"
    return _benchmark("mnist", folder, (28, 28, 1), (60_000, 10_000), _DIGITS, instead)


def cifar10(folder: StrPath | None = None) -> Dataset:
    """CIFAR-10: 50,000 / 10,000 colour pictures, 32 by 32, 10 classes.

    Args:
        folder: local files, as `from_images` takes them, or the folder cifar-10-batches-bin of the
            "binary version"; by default tensorflow-datasets.

    Returns:
        A Dataset of uint8 images [M, 32, 32, 3].

    Raises:
        FileNotFoundError, ValueError: as `from_images`; other sizes than those above.
        ImportError, ConnectionError, RuntimeError: as `tfds`, and which files to put where.

    References:
        Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    instead = (
        "unpack cifar-10-binary.tar.gz and give its folder cifar-10-batches-bin, or a folder or "
        "tar of pictures train/<class>/<any>.png"
    )
    return _benchmark("cifar10", folder, (32, 32, 3), (50_000, 10_000), _CIFAR10, instead)


def emnist(folder: StrPath | None = None, *, variant: str = "balanced") -> Dataset:
    """EMNIST: handwritten characters, grey, 28 by 28; for the writers see `federated_emnist`.

    The IDX files and tensorflow-datasets hold the images transposed; here they stand upright.
    Labels of "letters" start at 0.

    Args:
        folder: local files, as `from_images` takes them; the IDX files keep EMNIST's own names,
            `emnist-<variant>-train-images-idx3-ubyte.gz` ...; by default tensorflow-datasets.
        variant: "byclass" (62 classes), "bymerge" or "balanced" (47), "letters" (26), "digits" or
            "mnist" (10).

    Returns:
        A Dataset of uint8 images [M, 28, 28, 1].

    Raises:
        FileNotFoundError, ValueError: as `from_images`; unknown variant.
        ImportError, ConnectionError, RuntimeError: as `tfds`, and which files to put where.

    References:
        Cohen, Afshar, Tapson, van Schaik, "EMNIST: an extension of MNIST to handwritten letters",
        IJCNN 2017.
    """
    checks.one_of("variant", variant, _EMNIST)
    name, prefix, class_names = f"emnist/{variant}", f"emnist-{variant}-", _EMNIST[variant]
    if folder is None:
        images = _Images.of(_tfds(name, f"put {prefix}*-ubyte.gz into a folder"), class_names)
        original = True
    else:
        source = existing("folder", folder)
        original = _idx_file(source, prefix, "train", "images") is not None
        images = _read(source, class_names, "emnist", prefix)
    if original:
        first = variant == "letters"  # the label of A is 1
        train, test = (
            _Split(split.images.swapaxes(1, 2), split.labels.astype(int) - first)
            for split in images[:2]
        )
        images = _Images(train, test, class_names)
    return _checked(name, images, (28, 28, 1), None)


def _benchmark(
    name: str,
    folder: StrPath | None,
    shape: tuple[int, ...],
    counts: tuple[int, int],
    class_names: Sequence[str],
    instead: str,
) -> Dataset:
    """A well-known data set from local files or TFDS, refused if its sizes are not the known."""
    if folder is None:
        images = _Images.of(_tfds(name, instead), class_names)
    else:
        source = existing("folder", folder, f"For {name}, {instead}.")
        images = _read(source, class_names, name)
    return _checked(name, images, shape, counts)


def _tfds(name: str, instead: str) -> Dataset:
    try:
        return tfds(name)
    except (ImportError, ConnectionError, RuntimeError) as error:
        raise type(error)(f"{error}: {instead}, and pass folder=that folder") from error


def _checked(
    name: str, images: _Images, shape: tuple[int, ...], counts: tuple[int, int] | None
) -> Dataset:
    train, test, class_names = images
    found = (len(train.images), len(test.images))
    if counts is not None and found != counts:
        raise ValueError(
            f"{name} has {counts[0]:,} training and {counts[1]:,} test images, but here are "
            f"{found[0]:,} and {found[1]:,}. Get the files again; a part or a variant of it is "
            "read with from_images"
        )
    if train.images.shape[1:] != shape or train.images.dtype != np.uint8:
        raise ValueError(
            f"{name} has uint8 images of shape {shape}, but here are {train.images.dtype} images "
            f"of shape {train.images.shape[1:]}. Other images are read with from_images"
        )
    return from_arrays(
        train.images,
        train.labels,
        test.images,
        test.labels,
        name=name,
        class_names=class_names,
    )


def _read(path: Path, class_names: Sequence[str], archive: str = "", prefix: str = "") -> _Images:
    """Read any of the kinds of `from_images`; `archive` is how an archive's name begins."""
    if path.is_dir():
        if _idx_file(path, prefix, "train", "images"):
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


def _split(images: np.ndarray, labels: np.ndarray, images_path: object, where: object) -> _Split:
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, but {where} {len(labels)} labels"
        )
    return _Split(images[..., None] if images.ndim == 3 else images, labels)


def _idx_file(folder: Path, prefix: str, split: str, what: str) -> Path | None:
    names = ("train",) if split == "train" else ("t10k", "test")
    found = [file for name in names for file in sorted(folder.glob(f"{prefix}{name}-{what}*"))]
    return found[0] if found else None


def _read_idx_folder(folder: Path, prefix: str, class_names: Sequence[str]) -> _Images:
    def file(split: str, what: str) -> Path:
        found = _idx_file(folder, prefix, split, what)
        if found is None:
            name = "train" if split == "train" else "t10k"
            raise FileNotFoundError(
                f"{folder} has no {prefix}{name}-{what}-idx*-ubyte.gz beside its training images"
            )
        return found

    def split(name: str) -> _Split:
        images, labels = file(name, "images"), file(name, "labels")
        return _split(_read_idx(images, 3), _read_idx(labels, 1), images, labels)

    return _Images(split("train"), split("test"), class_names)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """IDX: 0, 0, 8 for uint8, the number of axes, their lengths as big-endian int32, the data."""
    content = read_bytes(path)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(
            f"{path} is no IDX file of uint8 with {ndim} axes: it begins with {content[:4].hex()}"
        )
    shape = tuple(np.frombuffer(content, ">i4", ndim, offset=4).tolist())
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path} should hold {shape} = {math.prod(shape):,} bytes by its header, but holds "
            f"{len(content) - header:,}. Get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()  # writable


def _read_npz_splits(path: Path, class_names: Sequence[str]) -> _Images:
    arrays = read_npz(read_bytes(path), path)

    def take(split: str, what: str) -> np.ndarray:
        keys = (f"{split}_{what}", f"{'x' if what == 'images' else 'y'}_{split}")
        for key in keys:
            if key in arrays:
                return arrays[key]
        raise ValueError(f"{path} has neither {keys[0]!r} nor {keys[1]!r}, only {[*arrays]}")

    def split(name: str) -> _Split:
        return _split(take(name, "images"), take(name, "labels"), f"{path} ({name})", "its labels:")

    return _Images(split("train"), split("test"), class_names)


def _read_cifar_binary(folder: Path, class_names: Sequence[str]) -> _Images:
    def split(*files: str) -> _Split:
        records = []
        for file in files:
            path = existing("folder", folder / file)
            content = np.frombuffer(read_bytes(path), np.uint8)
            if not len(content) or len(content) % 3_073:
                raise ValueError(f"{path} has {len(content)} bytes, no multiple of 3,073")
            records.append(content.reshape(-1, 3_073))
        rows = np.concatenate(records)
        images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return _Split(np.ascontiguousarray(images), rows[:, 0])

    train = split(*(f"data_batch_{i}.bin" for i in range(1, 6)))
    return _Images(train, split("test_batch.bin"), class_names)


def _read_pictures(path: Path, class_names: Sequence[str]) -> _Images:
    files: dict[str, list[tuple[str, str, bytes]]] = {"train": [], "test": []}
    for name, content in _picture_files(path):
        split, folder = PurePosixPath(name).parts[-3:-1]
        files[split].append((folder, name, content))
    for split, found in files.items():
        if not found:
            raise ValueError(f"{path} has no pictures {split}/<class>/<any>.png or .jpg")
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

    def decode(found: list[tuple[str, str, bytes]]) -> _Split:
        found = sorted(found, key=lambda file: (index[file[0]], file[1]))
        images = [_decode(content, f"{path}: {name}") for _, name, content in found]
        for image, (_, name, _) in zip(images, found, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: {name} is {image.shape}, but {found[0][1]} {images[0].shape} "
                    "(height, width, channels); bring all to one size"
                )
        return _Split(np.stack(images), np.array([index[folder] for folder, _, _ in found]))

    return _Images(decode(files["train"]), decode(files["test"]), class_names)


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
    with reading(path), tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and wanted(member.name):
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                yield member.name, content.read()


def _decode(content: bytes, name: str) -> np.ndarray:
    from PIL import Image

    with reading(name), Image.open(io.BytesIO(content)) as picture:
        grey = picture.mode in ("L", "1")
        image = np.asarray(picture.convert("L" if grey else "RGB"))
    return image[..., None] if grey else image
