"""Data sets: what is read is right, and what cannot be right is refused by name."""

import functools
import gzip
import importlib.util
import io
import lzma
import pickle
import re
import shutil
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedjax_sim.data import datasets
from fedjax_sim.data._files import read_npz
from fedjax_sim.data.datasets import Dataset, _image_files, catalog, dataset, images
from same_data import assert_same

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 1])


# ---------------------------------------------------------------- from_arrays


@pytest.mark.parametrize(
    ("given", "kept"),
    [("float64", "float32"), ("float16", "float32"), ("bool", "float32"), ("bfloat16", "float32")],
)
def test_from_arrays_dtypes(given: str, kept: str) -> None:
    data = datasets.from_arrays(X.astype(given), Y.astype("uint8"), X.astype(given), Y.tolist())
    assert data.train["x"].dtype == data.test["x"].dtype == kept
    assert data.train["y"].dtype == data.test["y"].dtype == np.int32
    np.testing.assert_array_equal(data.train["x"], X.astype(given).astype(kept))
    np.testing.assert_array_equal(data.train["y"], Y)
    assert data.num_classes == 3


def test_from_arrays_keeps_what_it_is_told() -> None:
    data = datasets.from_arrays(
        X,
        Y,
        X[:2],
        Y[:2],
        name="mine",
        class_names=["a", "b", "c", "d"],
        feature_names=["p", "q", "r"],
        train_groups={"client": ["u", "u", "v", "v"]},
    )
    assert (data.name, data.num_classes, data.class_names) == ("mine", 4, ("a", "b", "c", "d"))
    assert data.feature_names == ("p", "q", "r")
    assert data.train_groups["client"].tolist() == ["u", "u", "v", "v"]
    assert data.test_groups == {}
    assert_same(pickle.loads(pickle.dumps(data)), data)


def test_a_bare_dataset_shares_no_mutable_default() -> None:
    data = Dataset("mine", {"x": X, "y": Y}, {"x": X, "y": Y}, 3)
    with pytest.raises(TypeError):
        data.train_groups["client"] = Y  # type: ignore[index]


def test_from_arrays_tokens_and_padding() -> None:
    x = np.array([[1, 2, 3], [4, 5, 0]])
    y = np.array([[2, 3, 4], [5, -1, -1]])
    data = datasets.from_arrays(x, y, x, y, tokens=True, ignore_label=-1)
    assert data.train["x"].dtype == data.train["y"].dtype == np.int32
    assert (data.num_classes, data.ignore_label) == (6, -1)
    np.testing.assert_array_equal(data.test["y"], y)


def test_from_arrays_leaves_its_arguments_alone() -> None:
    x = X.copy()
    datasets.from_arrays(x, Y, x, Y).train["x"][0] = 99
    np.testing.assert_array_equal(x, X)


NAN = X.copy()
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": NAN}, ValueError, "x_train is not finite in row 2, column 1: nan"),
        ({"x_test": X - np.inf}, ValueError, "x_test is not finite in row 0, column 0: -inf"),
        ({"x_train": X * 1e300}, ValueError, "row 0, column 1: 1e\\+300 .*float32 ends"),
        ({"x_train": NAN[:, None]}, ValueError, r"row 2, column \(0, 1\)"),
        ({"x_train": X.astype(int)}, TypeError, "x_train has dtype int64.*float32.*tokens=True"),
        ({"x_train": X.astype(str)}, TypeError, "x_train has dtype <U32.*from_table"),
        ({"x_train": X[:, 0]}, ValueError, r"x_train has shape \(4,\).*reshape\(-1, 1\)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, ValueError, "x_train is empty"),
        ({"x_test": X[:, :2]}, ValueError, r"x_train is float32 \(4, 3\) and x_test .*\(4, 2\)"),
        ({"x_test": X.astype("uint8")}, TypeError, "x_test has dtype uint8.*float32"),
        ({"y_train": Y[:3]}, ValueError, "y_train has 3 labels for 4 rows"),
        ({"y_train": Y * 1.0}, TypeError, "y_train .*float64.*regression.*astype"),
        ({"y_train": np.eye(4, dtype=int)}, ValueError, r"y_train .*\(4, 4\).*argmax"),
        ({"y_train": 3}, ValueError, "y_train is a single value"),
        ({"y_test": Y - 1}, ValueError, "y_test holds the label -1 in row 0.*ignore_label=-1"),
        ({"num_classes": 2}, ValueError, r"y_train holds the label 2 in row 2.*\[0, num_classes=2"),
        ({"num_classes": 0}, ValueError, "num_classes must be >= 1"),
        ({"y_train": Y - 9, "y_test": Y - 9}, ValueError, r"label -9 in row 0, below 0.*classes="),
        ({"num_classes": 3, "class_names": ["a"]}, ValueError, "1 class_names for num_classes=3"),
        ({"feature_names": ["a"]}, ValueError, r"1 feature_names for x_train of shape \(4, 3\)"),
        ({"ignore_label": 0}, ValueError, "ignore_label must be <= -1, got 0"),
        ({"ignore_label": -2, "y_train": Y - 1}, ValueError, "y_train holds the label -1"),
        ({"train_groups": {"city": Y[:2]}}, ValueError, r"train_groups\['city'\] .*\(2,\).* 4 "),
        ({"test_groups": {"city": X}}, ValueError, r"test_groups\['city'\] has shape \(4, 3\)"),
        ({"tokens": True}, TypeError, "x_train has dtype float64; with tokens=True"),
        ({"tokens": True, "x_train": Y[:, None] - 1}, ValueError, "x_train holds the token -1"),
    ],
)
def test_from_arrays_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | changes
    with pytest.raises(error, match=f"(?s){message}"):
        datasets.from_arrays(**arguments)


# ---------------------------------------------------------------- Adult

BLOCKS = [8, 16, 7, 14, 6, 5, 2, 41]
COLUMNS = [
    *("workclass", "education", "marital-status", "occupation", "relationship", "race", "sex"),
    "native-country",
]


@functools.cache
def adult(features: str = "categorical") -> Dataset:
    return datasets.adult(features)


def test_adult_categorical_is_one_hot_by_column() -> None:
    data = adult()
    assert data.train["x"].shape == (32_561, 99)
    assert data.test["x"].shape == (16_281, 99)
    assert data.train["x"].dtype == np.float32
    assert data.class_names == ("<=50K", ">50K")
    assert data.feature_names[21] == "education=Doctorate"
    starts = np.cumsum([0, *BLOCKS])
    for examples, groups in ((data.train, data.train_groups), (data.test, data.test_groups)):
        assert set(np.unique(examples["x"])) == {0, 1}
        for column, start, stop in zip(COLUMNS, starts[:-1], starts[1:], strict=True):
            block = examples["x"][:, start:stop]
            known = groups[column] != "?"
            np.testing.assert_array_equal(block.sum(axis=1), known)
            names = np.array(data.feature_names[start:stop])[block.argmax(axis=1)]
            assert (names[known] == np.char.add(f"{column}=", groups[column][known])).all()
    assert (data.train["x"].sum(axis=0) > 0).all()  # the vocabulary is that of the training rows
    assert (
        data.test["x"][:, data.feature_names.index("native-country=Holand-Netherlands")].sum() == 0
    )


def test_adult_doctorates_are_the_published_clients() -> None:
    data = adult()
    doctorate = data.train_groups["doctorate"] == "doctorate"
    test_doctorate = data.test_groups["doctorate"] == "doctorate"
    assert (doctorate.sum(), (~doctorate).sum()) == (413, 32_148)
    assert (test_doctorate.sum(), (~test_doctorate).sum()) == (181, 16_100)
    np.testing.assert_array_equal(doctorate, data.train["x"][:, 21] == 1)
    assert data.test["y"][test_doctorate].mean() == pytest.approx(0.6906, abs=5e-5)
    assert (data.train["y"].sum(), data.test["y"].sum()) == (7_841, 3_846)


def test_adult_mixed_has_104_features_of_complete_rows() -> None:
    data = adult("mixed")
    assert data.train["x"].shape == (30_162, 104)
    assert data.test["x"].shape == (15_060, 104)
    numbers, one_hot = np.split(data.train["x"], [6], axis=1)
    np.testing.assert_array_equal(numbers.min(axis=0), 0)
    np.testing.assert_array_equal(numbers.max(axis=0), 1)
    np.testing.assert_array_equal(one_hot.sum(axis=1), 8)
    counts = [sum(n.startswith(f"{c}=") for n in data.feature_names) for c in COLUMNS]
    assert counts == [7, 16, 7, 14, 6, 5, 2, 41]
    assert not any((values == "?").any() for values in data.train_groups.values())


def test_adult_shipped_file_holds_ucis_rows(shared_data: Path) -> None:
    for features in ("categorical", "mixed"):
        assert_same(adult(features), datasets.adult(features, folder=shared_data))
    # against the text itself, read here in another way
    lines = (shared_data / "adult.data").read_text().split("\n")
    rows = np.array([line.split(", ") for line in lines if line])
    data = adult()
    np.testing.assert_array_equal(data.train_groups["education"], rows[:, 3])
    np.testing.assert_array_equal(data.train_groups["native-country"], rows[:, 13])
    np.testing.assert_array_equal(data.train["y"], rows[:, 14] == ">50K")
    complete = (rows[:, :14] != "?").all(axis=1)
    age = rows[complete, 0].astype(float)
    expected = (age - age.min()) / (age.max() - age.min())
    np.testing.assert_allclose(adult("mixed").train["x"][:, 0], expected, rtol=1e-6)


ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{ROW}\n{ROW}\n", r"adult.data has 2 rows; UCI's has 32,561"),
        ("", r"adult.data has 0 rows"),
        (f"{ROW}\n{ROW[:60]}", "adult.data, line 2: not a row"),
        (ROW.replace("White", "Green"), "adult.data, line 1: .*Green"),
        (ROW.replace("<=50K", "<=60K"), "adult.data, line 1: .*60K"),
        (ROW.replace("39", "old"), "adult.data, line 1: .*old"),
        (ROW + ", 7", "adult.data, line 1: not a row"),
        ("\xff\xfe", "cannot read .*adult.data"),
    ],
)
def test_adult_refuses_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "adult.data").write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=message):
        datasets.adult(folder=tmp_path)


def test_adult_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder: .*adult.data does not exist.*shipped"):
        datasets.adult(folder=tmp_path)
    with pytest.raises(ValueError, match=r"unknown features 'categoricl'.*'categorical'"):
        datasets.adult("categoricl")


# ---------------------------------------------------------------- shipped files


@pytest.mark.parametrize("name", dataset.SHIPPED)
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_shipped_file_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    content = bytearray((dataset._FILES / name).read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    else:
        del content[-1:]
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(dataset, "_FILES", tmp_path)
    function = datasets.adult if name.startswith("adult") else datasets.fashion_small
    with pytest.raises(ValueError, match=f"{name}.* is damaged: sha256"):
        function()


@pytest.fixture(scope="session")
def make_data() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "make_data.py"
    spec = importlib.util.spec_from_file_location("make_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_packs(make_data: ModuleType, arrays: Mapping[str, np.ndarray], name: str) -> None:
    shipped = dataset.read_shipped(name)
    packed = read_npz(lzma.decompress(make_data.pack(arrays)), name)
    assert packed.keys() == shipped.keys()
    for key in packed:
        np.testing.assert_array_equal(packed[key], shipped[key], strict=True)


def test_make_data_makes_the_shipped_adult(make_data: ModuleType, shared_data: Path) -> None:
    assert_packs(make_data, make_data.read_uci_adult(shared_data), "adult.npz.xz")


def test_make_data_makes_the_shipped_fashion(make_data: ModuleType, debian: Path) -> None:
    assert_packs(make_data, make_data.fashion_arrays(debian), "fashion_small.npz.xz")


# ---------------------------------------------------------------- images


@pytest.fixture(scope="session")
def debian() -> Path:
    if not images.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    return images.DEBIAN_FASHION_MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}i", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def gzipped(content: bytes) -> bytes:
    """The same bytes at any time of day: they name tests, which all workers must name alike."""
    return gzip.compress(content, mtime=0)


def pictures(count: int, seed: int = 0, shape: tuple[int, ...] = (4, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


TRAIN, TEST = pictures(6), pictures(4, seed=1)
TRAIN_Y, TEST_Y = np.array([0, 0, 1, 1, 2, 2], np.uint8), np.array([0, 1, 2, 2], np.uint8)
EXPECTED = datasets.from_arrays(TRAIN[..., None], TRAIN_Y, TEST[..., None], TEST_Y)


def write_idx(folder: Path, prefix: str = "", suffix: str = ".gz") -> Path:
    files = {"train-images-idx3": TRAIN, "train-labels-idx1": TRAIN_Y}
    files |= {"t10k-images-idx3": TEST, "t10k-labels-idx1": TEST_Y}
    for name, array in files.items():
        content = gzipped(idx(array)) if suffix else idx(array)
        (folder / f"{prefix}{name}-ubyte{suffix}").write_bytes(content)
    return folder


def write_npz(folder: Path, names: str = "{split}_{what}", suffix: str = ".npz") -> Path:
    values = {("train", "images"): TRAIN, ("train", "labels"): TRAIN_Y}
    values |= {("test", "images"): TEST, ("test", "labels"): TEST_Y}
    buffer = io.BytesIO()
    letter = {"images": "x", "labels": "y"}
    arrays: dict[str, Any] = {
        names.format(split=split, what=what, letter=letter[what]): array
        for (split, what), array in values.items()
    }
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    path = folder / f"mine{suffix}"
    path.write_bytes(lzma.compress(content) if suffix.endswith(".xz") else content)
    return path


def write_pictures(
    folder: Path, names: tuple[str, ...] = ("ape", "bee", "cow"), suffix: str = ".png"
) -> Path:
    for split, stack, labels in (("train", TRAIN, TRAIN_Y), ("test", TEST, TEST_Y)):
        for i, (image, label) in enumerate(zip(stack, labels, strict=True)):
            path = folder / split / names[label] / f"{i:04}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def write_tar(folder: Path, suffix: str) -> Path:
    source = write_pictures(folder / "source")
    path = folder / f"mine{suffix}"
    with tarfile.open(path, f"w:{suffix.removeprefix('.tar').removeprefix('.')}") as archive:
        archive.add(source, arcname="some/where")
    return path


@pytest.mark.parametrize(
    ("write", "class_names"),
    [
        (write_idx, ()),
        (functools.partial(write_idx, suffix=""), ()),
        (write_npz, ()),
        (functools.partial(write_npz, suffix=".npz.xz"), ()),
        (functools.partial(write_npz, names="{letter}_{split}"), ()),
        (write_pictures, ("ape", "bee", "cow")),
        (functools.partial(write_tar, suffix=".tar"), ("ape", "bee", "cow")),
        (functools.partial(write_tar, suffix=".tar.gz"), ("ape", "bee", "cow")),
        (functools.partial(write_tar, suffix=".tar.xz"), ("ape", "bee", "cow")),
        (lambda folder: write_npz(folder).parent, ()),
    ],
)
def test_from_images_sees_the_kind(
    tmp_path: Path, write: Callable[[Path], Path], class_names: tuple[str, ...]
) -> None:
    data = datasets.from_images(write(tmp_path))
    assert_same(data, EXPECTED._replace(class_names=class_names))
    data.train["x"][0] = 255  # people plant triggers in place
    assert data.num_classes == 3


@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_idx_round_trip(tmp_path_factory: Any, shape: list[int], seed: int) -> None:
    array = pictures(shape[0], seed, tuple(shape[1:]))
    path = tmp_path_factory.mktemp("idx") / "images"
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(_image_files.read_idx(path, 3), array)


def test_class_names_order_the_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    data = datasets.from_images(tmp_path, class_names=["cow", "bee", "ape"])
    np.testing.assert_array_equal(data.train["y"], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(data.train["x"][..., 0], TRAIN[[4, 5, 2, 3, 0, 1]])
    with pytest.raises(ValueError, match=r"class 'bee'; the classes are .*or 0 to 1"):
        datasets.from_images(tmp_path, class_names=["ape", "cow"])


def test_numbered_folders_are_in_numeric_order(tmp_path: Path) -> None:
    data = datasets.from_images(write_pictures(tmp_path, ("2", "9", "10")))
    assert data.class_names == ("2", "9", "10")
    np.testing.assert_array_equal(data.train["y"], TRAIN_Y)


def test_colour_pictures_and_foreign_files(tmp_path: Path) -> None:
    colour = pictures(2, shape=(8, 8, 3))
    for split in ("train", "test"):
        folder = tmp_path / split / "a"
        folder.mkdir(parents=True)
        for i, image in enumerate(colour):
            Image.fromarray(image).save(folder / f"{i}.png")
        (folder / "notes.txt").write_text("not a picture")
        (folder / "._0.png").write_text("not a picture either")
    data = datasets.from_images(tmp_path)
    np.testing.assert_array_equal(data.train["x"], colour)


def test_cifar_binary_version(tmp_path: Path) -> None:
    stack = pictures(12, shape=(32, 32, 3))
    labels = np.arange(12, dtype=np.uint8) % 10
    records = np.concatenate([labels[:, None], stack.transpose(0, 3, 1, 2).reshape(12, -1)], axis=1)
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(records[2 * i : 2 * i + 2].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(records[10:].tobytes())
    data = datasets.from_images(tmp_path)
    np.testing.assert_array_equal(data.train["x"], stack[:10])
    np.testing.assert_array_equal(data.test["y"], labels[10:])
    with pytest.raises(ValueError, match=r"cifar10 has 50,000 training .* here are 10 and 2"):
        datasets.cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(records[10:].tobytes()[:-1])
    with pytest.raises(ValueError, match=r"test_batch.bin has 6145 bytes, no multiple of 3,073"):
        datasets.from_images(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4.bin"):
        datasets.from_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images", gzipped(idx(TRAIN))[:-9], "cannot read .*train-images.*EOFError"),
        ("train-images", b"no gzip", "cannot read .*train-images.*BadGzipFile"),
        ("train-images", gzipped(b"\0\0\x0d\3"), "train-images.* is no IDX file .*00000d03"),
        ("train-images", gzipped(idx(TRAIN_Y)), "train-images.* is no IDX file"),
        ("train-images", gzipped(b""), "train-images.* is no IDX file"),
        ("train-images", gzipped(idx(TRAIN)[:-1]), r"\(6, 4, 5\) = 120 bytes .* holds 119"),
        ("train-images", gzipped(idx(TRAIN) + b"x"), "holds 121"),
        ("train-images", gzipped(idx(TRAIN[:5])), "train-images.* has 5 images.* 6 labels"),
        ("t10k-labels", gzipped(idx(TRAIN_Y)), "t10k-images.* has 4 images.* 6 labels"),
        ("t10k-labels", None, "has no t10k-labels-idx"),
        ("t10k-images", gzipped(idx(pictures(4, shape=(5, 5)))), "all axes but the first"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    write_idx(tmp_path)
    [path] = tmp_path.glob(f"{name}*")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        datasets.from_images(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".npz.xz", ".tar.gz", ".tar.xz"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    path = (write_npz if "npz" in suffix else write_tar)(tmp_path, suffix=suffix)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"something else"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"cannot read .*mine{re.escape(suffix)}: truncated"):
            datasets.from_images(path)


def test_npz_refuses_missing_keys_and_pickles(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, train_images=TRAIN)
    with pytest.raises(ValueError, match=r"neither 'train_labels' nor 'y_train', only .*train_im"):
        datasets.from_images(path)
    np.savez(path, train_images=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"mine.npz: train_images.npy holds an array of object"):
        datasets.from_images(path)
    np.savez(path, x_train=TRAIN, y_train=TRAIN_Y[:5], x_test=TEST, y_test=TEST_Y)
    with pytest.raises(ValueError, match=r"mine.npz \(train\) has 6 images.* 5 labels"):
        datasets.from_images(path)


def test_damaged_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    path = tmp_path / "train" / "bee" / "0002.png"
    whole = path.read_bytes()
    for damaged in (whole[:-30], whole[:40] + b"#" + whole[41:], b"no png"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cannot read .*train/bee/0002.png"):
            datasets.from_images(tmp_path)
    Image.fromarray(TRAIN[0, :3]).save(path)
    with pytest.raises(ValueError, match=r"train/bee/0002.png is \(3, 5, 1\), but .*\(4, 5, 1\)"):
        datasets.from_images(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(ValueError, match="has no pictures test/<class>"):
        datasets.from_images(tmp_path)


def test_from_images_says_what_may_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: .*nowhere does not exist"):
        datasets.from_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no images to read .*train-images.*found none"):
        datasets.from_images(tmp_path)
    (tmp_path / "a.npz").touch()
    (tmp_path / "b.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"found \['a.npz', 'b.tar'\]"):
        datasets.from_images(tmp_path)
    (tmp_path / "c.zip").touch()
    with pytest.raises(ValueError, match=r"c.zip is none of the kinds"):
        datasets.from_images(tmp_path / "c.zip")


def test_fashion_small_is_balanced_and_real() -> None:
    data = datasets.fashion_small()
    assert data.train["x"].shape == (2_500, 28, 28, 1)
    assert data.test["x"].shape == (500, 28, 28, 1)
    assert data.train["x"].dtype == np.uint8
    assert np.bincount(data.train["y"]).tolist() == [250] * 10
    assert np.bincount(data.test["y"]).tolist() == [50] * 10
    assert data.class_names[6] == "Shirt"
    flat = data.train["x"].reshape(2_500, -1)
    assert len(np.unique(flat, axis=0)) == 2_500
    # a nearest-centroid classifier: labels belong to their images
    centroids = np.stack([flat[data.train["y"] == k].mean(axis=0) for k in range(10)])
    points = data.test["x"].reshape(500, -1).astype(float)
    distances = (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)
    assert (distances.argmin(axis=1) == data.test["y"]).mean() > 0.6


def test_fashion_mnist_from_debian(debian: Path) -> None:
    data = datasets.fashion_mnist()
    assert_same(data, datasets.fashion_mnist(debian))
    assert np.bincount(data.train["y"]).tolist() == [6_000] * 10
    assert np.bincount(data.test["y"]).tolist() == [1_000] * 10
    first = np.flatnonzero(data.train["y"] == 3)[:250]
    small = datasets.fashion_small().train
    np.testing.assert_array_equal(data.train["x"][first], small["x"][small["y"] == 3])


def test_mnist_from_npz_xz(shared_data: Path) -> None:
    data = datasets.mnist(shared_data)
    counts = [5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949]
    assert np.bincount(data.train["y"]).tolist() == counts
    assert data.test["x"].shape == (10_000, 28, 28, 1)


def test_cifar10_jpegs_in_a_tar(tmp_path: Path, shared_data: Path) -> None:
    """The first files of the archive, packed again: decoding all 60,000 takes ten seconds."""
    small = tmp_path / "cifar10.tar.xz"
    with (
        tarfile.open(shared_data / "cifar10_jpeg.tar.xz") as source,
        tarfile.open(small, "w:xz") as target,
    ):
        for _, member in zip(range(20), source, strict=False):
            content = source.extractfile(member)
            assert content is not None
            for name in (member.name, member.name.replace("test/", "train/")):
                member.name = name
                content.seek(0)
                target.addfile(member, content)
    data = datasets.from_images(small)
    assert data.train["x"].shape == (20, 32, 32, 3)
    assert data.class_names == ("airplane",)
    assert data.train["x"].std() > 20
    with pytest.raises(ValueError, match="cifar10 has 50,000 training and 10,000 test images"):
        datasets.cifar10(tmp_path)


def test_known_data_sets_refuse_other_sizes(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(ValueError, match=r"mnist has 60,000 .* here are 6 and 4.*from_images"):
        datasets.mnist(tmp_path)
    with pytest.raises(ValueError, match=r"emnist/digits has uint8 images of shape \(28, 28, 1\)"):
        datasets.emnist(write_idx(tmp_path, "emnist-digits-"), variant="digits")
    with pytest.raises(ValueError, match=r"unknown variant 'digit'.*'digits'"):
        datasets.emnist(tmp_path, variant="digit")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist. For cifar10, unpack"):
        datasets.cifar10(tmp_path / "nowhere")


def test_emnist_idx_files_are_turned_upright(tmp_path: Path) -> None:
    upright, labels = pictures(26, shape=(28, 28)), np.arange(1, 27, dtype=np.uint8)
    for name in ("train", "test"):
        stem = tmp_path / f"emnist-letters-{name}"
        transposed = np.ascontiguousarray(upright.swapaxes(1, 2))
        stem.with_name(f"{stem.name}-images-idx3-ubyte").write_bytes(idx(transposed))
        stem.with_name(f"{stem.name}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = datasets.emnist(tmp_path, variant="letters")
    np.testing.assert_array_equal(data.train["x"][..., 0], upright)
    np.testing.assert_array_equal(data.train["y"], labels - 1)
    assert "".join(data.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_emnist_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    upright, labels = pictures(26, shape=(28, 28)), np.arange(26)
    np.savez(
        tmp_path / "emnist.npz", x_train=upright, y_train=labels, x_test=upright, y_test=labels
    )
    data = datasets.emnist(tmp_path, variant="letters")
    np.testing.assert_array_equal(data.train["x"][..., 0], upright)
    np.testing.assert_array_equal(data.train["y"], labels)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("byclass", 62), ("bymerge", 47), ("balanced", 47), ("letters", 26), ("digits", 10)],
)
def test_emnist_class_counts(variant: str, count: int) -> None:
    assert len(images._EMNIST[variant]) == len(set(images._EMNIST[variant])) == count


# ---------------------------------------------------------------- TFDS


@pytest.fixture(scope="session")
def tensorflow_datasets() -> Any:
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="session")
def prepared(tensorflow_datasets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data set on disk, prepared by TFDS without TensorFlow and without a network."""
    tfds = tensorflow_datasets

    def png(shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    class TinyShades(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
                "site": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

        def _generate_examples(self, count: int) -> Any:
            for i in range(count):
                yield i, {"image": png(50 * i), "label": int(i > 2), "site": f"s{i % 3}"}

    folder = tmp_path_factory.mktemp("tfds")
    TinyShades(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_tfds_reads_prepared_data_without_tensorflow(prepared: Path) -> None:
    data = datasets.load("tfds:tiny_shades", prepared, group_keys=["site"])
    assert (data.name, data.class_names) == ("tiny_shades", ("dark", "light"))
    shades = data.train["x"][:, 0, 0, 0].astype(int)
    assert sorted(shades) == [0, 50, 100, 150, 200, 250]
    np.testing.assert_array_equal(
        data.train["x"], np.broadcast_to(shades[:, None, None, None], (6, 4, 4, 3))
    )
    np.testing.assert_array_equal(data.train["y"], shades > 100)
    assert data.train_groups["site"].tolist() == [f"s{shade // 50 % 3}" for shade in shades]
    half = datasets.tfds("tiny_shades", data_dir=prepared, train_split="train[:50%]")
    assert len(half.train["y"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_split": "tset"}, "tset"),
        ({"input_key": "imag"}, "unknown feature of tiny_shades 'imag'. Did you mean 'image'"),
        ({"group_keys": ["city"]}, "unknown feature of tiny_shades 'city'"),
        ({"input_key": "site"}, "x_train has dtype"),
    ],
)
def test_tfds_refuses(prepared: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        datasets.tfds("tiny_shades", data_dir=prepared, **options)


def test_tfds_refuses_a_format_for_tensorflow_only(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "tiny_shades" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"cannot open 'tiny_shades'.*--file_format=array_record"):
        datasets.tfds("tiny_shades", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", b"{"),
        ("dataset_info.json", b"\xff"),
        ("tiny_shades-train.array_record-00000-of-00001", b""),
        ("tiny_shades-test.array_record-00000-of-00001", bytes(70_000)),
    ],
)
def test_tfds_names_damaged_files(
    prepared: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tiny_shades" / "1.0.0" / file).write_bytes(content)
    place = f"the files of 'tiny_shades' in {re.escape(str(tmp_path))}"
    with pytest.raises(ValueError, match=f"cannot read {place}.*truncated, corrupt"):
        datasets.tfds("tiny_shades", data_dir=tmp_path)


def test_tfds_unknown_names(tensorflow_datasets: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set 'mnit'.*nearest names: \['mnist'"):
        datasets.tfds("mnit", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cannot open 'emnist/foo'"):
        datasets.tfds("emnist/foo", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("function", "files"),
    [
        (datasets.mnist, "train-images-idx3-ubyte.gz.*t10k-labels-idx1-ubyte.gz"),
        (datasets.fashion_mnist, "train-images-idx3.*dataset-fashion-mnist.*fashion_small"),
        (datasets.cifar10, "cifar-10-binary.tar.gz"),
        (datasets.emnist, r"emnist-balanced-\*-ubyte.gz"),
    ],
)
def test_without_network_the_message_says_which_file_to_put_where(
    tensorflow_datasets: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[[], Dataset],
    files: str,
) -> None:
    def no_network(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(catalog.urllib.request, "getproxies", dict)
    monkeypatch.setattr(catalog.socket, "getaddrinfo", no_network)
    monkeypatch.setattr(images, "tfds", functools.partial(datasets.tfds, data_dir=tmp_path))
    monkeypatch.setattr(images, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    message = f"is not prepared in .* no network.*tfds build .*{files}.*pass folder="
    with pytest.raises(ConnectionError, match=message):
        function()


def test_a_failed_preparation_is_explained(
    tensorflow_datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise ModuleNotFoundError("No module named 'tensorflow'")

    builder = tensorflow_datasets.core.DatasetBuilder
    monkeypatch.setattr(builder, "download_and_prepare", fail)
    monkeypatch.setattr(catalog.urllib.request, "getproxies", lambda: {"https": "proxy"})
    with pytest.raises(RuntimeError, match=r"could not prepare 'mnist'.*No module named 'tensorfl"):
        datasets.tfds("mnist", data_dir=tmp_path)


def test_named_data_sets_go_through_tfds(
    tensorflow_datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_has_network", lambda: True)  # the mock downloads nothing
    with tensorflow_datasets.testing.mock_data(num_examples=5):
        data = datasets.tfds("cifar10", data_dir=tmp_path)
        assert (data.train["x"].shape, data.num_classes) == ((5, 32, 32, 3), 10)
        assert data.train["x"].dtype == np.uint8
        with pytest.raises(ValueError, match=r"mnist has 60,000 training .* here are 5 and 5"):
            datasets.mnist()
        raw = datasets.tfds("emnist/byclass", data_dir=tmp_path)
        data = datasets.emnist(variant="byclass")
        np.testing.assert_array_equal(data.train["x"], raw.train["x"].swapaxes(1, 2))
        np.testing.assert_array_equal(data.train["y"], raw.train["y"])
        assert data.class_names[10] == "A"


# ---------------------------------------------------------------- natural clients


def write_hdf5(
    path: Path, clients: Mapping[str, Mapping[str, Any]], group: str = "examples"
) -> Path:
    with h5py.File(path, "w") as file:
        for client, fields in clients.items():
            for field, values in fields.items():
                file[f"{group}/{client}/{field}"] = values
    return path


WRITERS: dict[str, dict[str, Any]] = {
    "f0001_41": {"pixels": np.full((3, 28, 28), 0.25, np.float32), "label": [3, 1, 2]},
    "f0000_14": {"pixels": np.full((2, 28, 28), 0.5, np.float32), "label": [0, 1]},
}


def test_from_hdf5_keeps_the_clients(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "some_train.h5", WRITERS)
    data = datasets.from_hdf5(path, path, num_classes=62)
    assert (data.name, data.num_classes) == ("some_train", 62)
    assert data.train_groups["client"].tolist() == ["f0000_14"] * 2 + ["f0001_41"] * 3
    np.testing.assert_array_equal(data.train["y"], [0, 1, 3, 1, 2])
    np.testing.assert_array_equal(data.test["x"][:, 0, 0], [0.5, 0.5, 0.25, 0.25, 0.25])
    packed = tmp_path / "some_train.h5.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert_same(datasets.from_hdf5(packed, path, num_classes=62), data)


@pytest.mark.parametrize("stem", ["fed_emnist", "fed_emnist_digitsonly"])
def test_federated_emnist(tmp_path: Path, stem: str) -> None:
    write_hdf5(tmp_path / f"{stem}_train.h5", WRITERS)
    with pytest.raises(FileNotFoundError, match=f"holds none of {stem}_test.h5, "):
        datasets.federated_emnist(tmp_path, only_digits="digits" in stem)
    write_hdf5(tmp_path / f"{stem}_test.h5", WRITERS)
    data = datasets.federated_emnist(tmp_path, only_digits="digits" in stem)
    assert data.train["x"].shape == data.test["x"].shape == (5, 28, 28, 1)
    assert data.num_classes == (10 if "digits" in stem else 62)


def test_from_hdf5_refuses(tmp_path: Path) -> None:
    good = write_hdf5(tmp_path / "good.h5", WRITERS)
    with pytest.raises(ValueError, match=r"good.h5 has no field 'image', but .*'pixels'"):
        datasets.from_hdf5(good, good, x="image")
    flat = write_hdf5(tmp_path / "flat.h5", WRITERS, group="clients")
    with pytest.raises(ValueError, match=r"flat.h5 has no clients under 'examples'.*\['clients'\]"):
        datasets.from_hdf5(flat, good)
    uneven = {"a": {"pixels": np.zeros((3, 2)), "label": [1, 2]}}
    path = write_hdf5(tmp_path / "uneven.h5", uneven)
    with pytest.raises(ValueError, match=r"uneven.h5: client 'a' has 3 inputs \(x\) but 2 labels"):
        datasets.from_hdf5(good, path)
    path = tmp_path / "short.h5"
    path.write_bytes(good.read_bytes()[:1_000])
    with pytest.raises(ValueError, match=r"cannot read .*short.h5"):
        datasets.from_hdf5(path, good)
    with pytest.raises(FileNotFoundError, match=r"test_path: .*nowhere.h5 does not exist"):
        datasets.from_hdf5(good, tmp_path / "nowhere.h5")


def decoded(data: Dataset, client: str) -> tuple[str, str]:
    """The inputs and the targets of a client as text, without what does not count."""
    rows = data.train_groups["client"] == client
    x, y = data.train["x"][rows].ravel(), data.train["y"][rows].ravel()
    symbols = np.array(data.class_names)
    return "".join(symbols[x[y != -1]]), "".join(symbols[y[y != -1]])


def test_shakespeare_sequences(tmp_path: Path) -> None:
    lines = {"HAMLET": {"snippets": [b"To be", b"or{not"]}, "GHOST": {"snippets": [b""]}}
    for split in ("train", "test"):
        write_hdf5(tmp_path / f"shakespeare_{split}.h5", lines)
    data = datasets.shakespeare(tmp_path, sequence_length=4)
    assert data.num_classes == len(set(data.class_names)) == 90
    assert (data.ignore_label, data.train["x"].dtype, data.train["x"].shape[1]) == (-1, np.int32, 4)
    text = "<bos>To be<eos><bos>or<oov>not<eos>"
    assert decoded(data, "HAMLET") == (text.removesuffix("<eos>"), text.removeprefix("<bos>"))
    assert decoded(data, "GHOST") == ("<bos>", "<eos>")
    padding = data.train["y"] == -1
    assert (data.train["x"][padding] == 0).all()
    assert data.train["x"].max() == 89  # <oov>
    # FedJAX numbers the characters of the tutorial's vocabulary from 3 on
    assert (data.class_names.index("d"), data.class_names.index("\r")) == (3, 88)


def test_shakespeare_of_tff(shared_data: Path) -> None:
    data = datasets.shakespeare(shared_data)
    assert len(np.unique(data.train_groups["client"])) == 715
    assert len(np.unique(data.test_groups["client"])) == 715
    content = lzma.decompress((shared_data / "shakespeare_train.h5.xz").read_bytes())
    rows = 0
    with h5py.File(io.BytesIO(content)) as file:
        for client in file["examples"].values():
            symbols = sum(len(line) + 2 for line in client["snippets"][:])
            rows += -(-(symbols - 1) // 80)
        first = file["examples/THE_TRAGEDY_OF_KING_LEAR_BOTTOM/snippets"][0].decode()
    assert data.train["x"].shape == data.train["y"].shape == (rows, 80) == (30_249, 80)
    assert data.test["x"].shape == (4_657, 80)
    target = decoded(data, "THE_TRAGEDY_OF_KING_LEAR_BOTTOM")[1]
    assert target.startswith(first + "<eos>")


def test_shakespeare_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of shakespeare_train.h5, .*\.xz"):
        datasets.shakespeare(tmp_path)
    with pytest.raises(ValueError, match="sequence_length must be >= 1"):
        datasets.shakespeare(tmp_path, sequence_length=0)


# ---------------------------------------------------------------- load


def test_load_finds_by_name() -> None:
    assert_same(datasets.load("adult", features="mixed"), adult("mixed"))
    assert_same(datasets.load("fashion_small"), datasets.fashion_small())


def test_load_passes_the_folder(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "shakespeare_train.h5", {"A": {"snippets": [b"hello"]}})
    write_hdf5(tmp_path / "shakespeare_test.h5", {"A": {"snippets": [b"you"]}})
    assert datasets.load("shakespeare", tmp_path, sequence_length=3).train["x"].shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: datasets.load("fashion_mnits"), "unknown data set 'fashion_mnits'.*fashion_mnist"),
        (
            lambda: datasets.load("adult", feature="mixed"),
            "unknown option of adult 'feature'.*'fea",
        ),
        (lambda: datasets.load("fashion_small", "x"), "fashion_small ships .* takes no folder"),
        (lambda: datasets.load("tfds:mnist", split="x"), "unknown option of tfds:mnist 'split'"),
    ],
)
def test_load_suggests(call: Callable[[], Dataset], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_data_set_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    function = datasets.DATASETS[name]
    assert function.__name__ == name
    assert function.__doc__ is not None
    assert "References:" in function.__doc__
