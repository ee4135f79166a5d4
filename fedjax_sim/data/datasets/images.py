"""Image data sets, from local files of several kinds or through tensorflow-datasets."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, existing, naming
from fedjax_sim.data.datasets._image_files import Images, Split, idx_file, read_images
from fedjax_sim.data.datasets._labels import Task
from fedjax_sim.data.datasets.catalog import tfds
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays, read_shipped
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


def from_images(
    path: StrPath,
    *,
    name: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    ignore_label: int | None = None,
    task: Task = "classification",
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
        classes, ignore_label, task: as in `from_arrays`.
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
    images = read_images(source, class_names, prefix=prefix)
    with naming(source):
        return from_arrays(
            images.train.images,
            images.train.labels,
            images.test.images,
            images.test.labels,
            name=name or source.name.split(".")[0],
            num_classes=num_classes,
            class_names=images.class_names,
            classes=classes,
            ignore_label=ignore_label,
            task=task,
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
        images = Images.of(_tfds(name, f"put {prefix}*-ubyte.gz into a folder"), class_names)
        original = True
    else:
        source = existing("folder", folder)
        original = idx_file(source, prefix, "train", "images") is not None
        images = read_images(source, class_names, "emnist", prefix)
    if original:
        first = variant == "letters"  # the label of A is 1
        train, test = (
            Split(split.images.swapaxes(1, 2), split.labels.astype(int) - first)
            for split in images[:2]
        )
        images = Images(train, test, class_names)
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
        images = Images.of(_tfds(name, instead), class_names)
    else:
        source = existing("folder", folder, f"For {name}, {instead}.")
        images = read_images(source, class_names, name)
    return _checked(name, images, shape, counts)


def _tfds(name: str, instead: str) -> Dataset:
    try:
        return tfds(name)
    except (ImportError, ConnectionError, RuntimeError) as error:
        raise type(error)(f"{error}: {instead}, and pass folder=that folder") from error


def _checked(
    name: str, images: Images, shape: tuple[int, ...], counts: tuple[int, int] | None
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
    with naming(name):
        return from_arrays(
            train.images,
            train.labels,
            test.images,
            test.labels,
            name=name,
            class_names=class_names,
        )
