"""Any data set of tensorflow-datasets, without TensorFlow."""

import difflib
import socket
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim.data._files import StrPath, naming, reading
from fedjax_sim.data.datasets._labels import Task
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.ops import checks


def tfds(
    name: str,
    *,
    train_split: str = "train",
    test_split: str = "test",
    data_dir: StrPath | None = None,
    input_key: str | None = None,
    label_key: str | None = None,
    group_keys: Sequence[str] = (),
    task: Task = "classification",
) -> Dataset:
    """Load any classification data set of tensorflow-datasets (TFDS), without TensorFlow.

    Reads what is prepared under `data_dir`; otherwise downloads and prepares it there first.
    Reading never needs TensorFlow. Preparing, once, depends on the data set: those made of image
    files do without; MNIST, Fashion-MNIST, EMNIST and CIFAR-10 have to be prepared where TensorFlow
    is installed, or given as local files (see `from_images`).

    Args:
        name: a TFDS name with optional config and version: "svhn_cropped", "emnist/letters:3.1.0".
        train_split, test_split: TFDS splits, slices included: "train[:80%]".
        data_dir: by default TFDS's own, ~/tensorflow_datasets.
        input_key, label_key: the features to learn from; by default the supervised pair of the data
            set, or its only image and its only class label.
        group_keys: features to keep as groups.
        task: as in `from_arrays`.

    Returns:
        A Dataset: uint8 images stay uint8.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ConnectionError: not prepared, and no network.
        RuntimeError: downloading or preparing failed.
        ValueError: unknown name, config, split or feature; prepared in a format other than
            array_record; inputs of unequal shapes.

    Cost: reads example by example, about 10,000 small images a second.
    """
    builder = _prepared(name, data_dir)
    place = f"the files of {name!r} in {builder.data_path}"
    try:
        train, test = builder.as_data_source(split=[train_split, test_split])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"TFDS cannot read the splits {train_split!r} and {test_split!r} of {place}: {error}"
        ) from error
    info = train.dataset_info
    input_key, label_key = _keys(info, input_key, label_key)
    for key in (input_key, label_key, *group_keys):
        checks.one_of(f"feature of {name}", key, info.features)
    keys = [input_key, label_key, *group_keys]
    train_columns, test_columns = _columns(train, keys, place), _columns(test, keys, place)
    label = info.features[label_key]
    with naming(place):
        return from_arrays(
            train_columns[input_key],
            train_columns[label_key],
            test_columns[input_key],
            test_columns[label_key],
            name=name,
            num_classes=getattr(label, "num_classes", None),
            class_names=getattr(label, "names", None) or (),
            task=task,
            train_groups={key: train_columns[key] for key in group_keys},
            test_groups={key: test_columns[key] for key in group_keys},
        )


def _prepared(name: str, data_dir: StrPath | None) -> Any:
    """TFDS's builder of a data set whose files are there, after preparing them if they are not."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"{name!r} is read through tensorflow-datasets, which cannot be imported ({error}): "
            "pip install tensorflow-datasets importlib_resources. Data of your own: from_images, "
            "from_table, from_arrays"
        ) from error

    place = data_dir or "~/tensorflow_datasets"
    otherwise = (
        "Prepare it elsewhere, where TensorFlow and a network are: `tfds build "
        f"{name} --file_format=array_record --data_dir=FOLDER`, copy FOLDER here and pass it as "
        "data_dir, or use local files"
    )
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir, file_format="array_record")
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        names = tensorflow_datasets.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], names, n=3)
        raise ValueError(
            f"TFDS has no data set {name!r}, and none is prepared in {place}. The nearest names: "
            f"{near}"
        ) from error
    except ValueError as error:  # no such config; or prepared in a format only TensorFlow reads
        raise ValueError(
            f"TFDS cannot open {name!r} in {place}: {error}. The name must be that of a config, "
            "and the files must be prepared with --file_format=array_record"
        ) from error
    except Exception:  # of what is prepared
        with reading(f"the files of {name!r} in {place}"):
            raise
    if not builder.is_prepared():
        if not _has_network():
            raise ConnectionError(
                f"TFDS data set {name!r} is not prepared in {place} and there is no network. "
                f"{otherwise}"
            )
        try:
            builder.download_and_prepare()
        except Exception as error:  # each data set brings its own code, which may raise anything
            raise RuntimeError(
                f"TFDS could not prepare {name!r} in {place}: {type(error).__name__}: {error}. "
                f"{otherwise}"
            ) from error
    return builder


def _has_network() -> bool:
    """Whether a download can be tried: TFDS itself retries for minutes before it gives up."""
    if urllib.request.getproxies():
        return True  # names are resolved by the proxy
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError:
        return False
    return True


def _keys(info: Any, input_key: str | None, label_key: str | None) -> tuple[str, str]:
    pair = info.supervised_keys
    if isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(key, str) for key in pair):
        return input_key or pair[0], label_key or pair[1]

    def only(kind: str, argument: str) -> str:
        found = [key for key, value in info.features.items() if type(value).__name__ == kind]
        if len(found) != 1:
            raise ValueError(
                f"{info.name} has {len(found)} features of type {kind}; give {argument}=, one of "
                f"{[*info.features]}"
            )
        return found[0]

    return input_key or only("Image", "input_key"), label_key or only("ClassLabel", "label_key")


def _columns(source: Any, keys: Sequence[str], place: str) -> dict[str, np.ndarray]:
    values: dict[str, list[Any]] = {key: [] for key in keys}
    with reading(place):
        for example in source:
            for key in keys:
                value = example[key]
                values[key].append(value.decode() if isinstance(value, bytes) else value)
    for key, column in values.items():
        shapes = {np.shape(value) for value in column}
        if len(shapes) > 1:
            raise ValueError(
                f"feature {key!r} of {place} has examples of {len(shapes)} shapes, such as "
                f"{sorted(shapes)[:3]}; bring them to one size and use from_arrays"
            )
    return {key: np.array(column) for key, column in values.items()}
