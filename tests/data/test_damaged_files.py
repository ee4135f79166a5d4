"""Damaged and hostile files: refused by name, nothing run, nothing followed, memory bounded."""

import gzip
import io
import lzma
import pickle
import re
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import malformed
import malformed.files
from federated_files import PLAIN, WRITERS, population
from fedjax_sim.data import _files, datasets, disk


def test_a_damaged_file_is_named_or_read(tmp_path: Path) -> None:
    """Bytes changed or cut off at 200 places, in all formats."""
    refused = 0
    for case, outcome in malformed.trials(malformed.files, seed=7, number=200):
        assert not outcome.fault, f"{case.name}: {outcome.fault}"
        if outcome.message:
            refused += 1
            assert "/copy" in outcome.message, f"{case.name}: {outcome.message}"
    assert refused > 100


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a bomb of what fills 64 kB."""
    monkeypatch.setattr(_files, "FREE_BYTES", 1 << 16)


ZEROS = bytes(1 << 21)


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


class Payload:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


HEADER = "{'descr': %r, 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(HEADER % ("<f8", "(10**12,)")), "cannot read"),
        (
            npy(HEADER % ("<f8", "(1000000000000,)")),
            r"\(1000000000000,\) of float64 = 8,000",
        ),
        (npy(HEADER % ("<f8", "(1099511627776, 1099511627776)")), "but holds 0"),
        (npy(HEADER % ("<f8", "(-1, -2)"), bytes(16)), "but holds 16"),
        (npy(HEADER % ("<f8", "(1,)"), bytes(9)), "= 8 bytes by its header, but holds 9"),
        (npy(HEADER % ("|O", "(1,)"), b"x"), "holds an array of object, which can be read only by"),
        (npy(HEADER % ("<M8[D]", "(1,)"), bytes(8)), r"holds an array of datetime64\[D\]. Save"),
        (npy(HEADER % ("|V8", "(1,)"), bytes(8)), r"holds an array of \|V8|holds an array of void"),
        (npy(HEADER % ([("a", "<f8")], "(1,)"), bytes(8)), "holds an array of"),
        (npy("__import__('os')"), "cannot read"),
        (b"\x93NUMPY\x09\x00\xff\xff", "cannot read"),
        (b"", "cannot read"),
    ],
)
def test_an_array_is_read_only_if_its_header_is_true(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"here\.npy.*{message}|{message}.*here\.npy"):
        _files.read_npy(content, "here.npy")
    packed = npz(x=content)
    with pytest.raises(ValueError, match=message):
        _files.read_npz(packed, "here.npz")


def test_arrays_of_every_version_and_order_are_read() -> None:
    for array in (
        np.arange(6.0).reshape(2, 3).T,
        np.array(["é", "b"]),
        np.array(5),
        np.zeros((0, 3)),
    ):
        file = io.BytesIO()
        np.save(file, array)
        np.testing.assert_array_equal(_files.read_npy(file.getvalue(), "a"), array, strict=True)
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(3), version=(2, 0))
    assert _files.read_npy(file.getvalue(), "a").tolist() == [0, 1, 2]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    array = np.array([Payload(mark)], object)
    np.savez(tmp_path / "a.npz", x=array, y=array, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a.npz: x.npy holds an array of object"):
        datasets.from_folders(tmp_path)
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match=r"cannot read .*a.npz"):
        datasets.from_folders(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".npz.xz", ".npz.gz", ".npz"])
def test_compressed_bombs_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    small(monkeypatch)
    pack = {
        ".npz.xz": lzma.compress,
        ".npz.gz": gzip.compress,
        ".npz": lambda x: npz(train_images=x),
    }
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(pack[suffix](ZEROS))
    with pytest.raises(
        ValueError, match=rf"mine{suffix}.* would take [\d,]+ bytes of memory, but on"
    ):
        datasets.from_images(path)


def test_a_lying_size_in_a_zip_file_is_noticed(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros(1000), y=np.zeros(1000))
    content = bytearray(file.getvalue())
    at = content.index(b"PK\x01\x02")
    for size in (0, 100, 2**31):
        content[at + 24 : at + 28] = struct.pack("<I", size)
        with pytest.raises(ValueError, match=r"here.npz"):
            _files.read_npz(bytes(content), "here.npz")


def tar(path: Path, **pictures: bytes) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in pictures.items():
            member = tarfile.TarInfo(name.replace("__", "/") + ".png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_pictures_of_absurd_size_are_refused(tmp_path: Path, side: int) -> None:
    picture = png_header(side, side)
    path = tar(tmp_path / "mine.tar.gz", train__0__a=picture, test__0__b=picture)
    with pytest.raises(ValueError, match=r"cannot read .*mine.tar.gz: train/0/a.png.*\("):
        datasets.from_images(path)
    pq.write_table(pa.table({"client": ["a"], "x": [picture], "y": [0]}), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"cannot read .*mine.parquet: column 'x', row 0"):
        datasets.from_huggingface(tmp_path / "mine.parquet")


def test_pictures_of_more_than_8_bits_are_not_cut_off(tmp_path: Path) -> None:
    for array in (np.full((2, 2), 40_000, np.uint16), np.full((2, 2), 0.5, np.float32)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "TIFF" if array.dtype == np.float32 else "PNG")
        path = tar(
            tmp_path / "mine.tar.gz", train__0__a=file.getvalue(), test__0__b=file.getvalue()
        )
        with pytest.raises(ValueError, match=r"train/0/a.png has more than 8 bits a pixel"):
            datasets.from_images(path)


def test_bombs_in_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    path = tar(tmp_path / "mine.tar.gz", train__0__a=ZEROS, test__0__b=ZEROS)
    with pytest.raises(ValueError, match=r"mine.tar.gz would take [\d,]+ bytes of memory"):
        datasets.from_images(path)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", ZEROS)
    with pytest.raises(ValueError, match=r"mine.zip: a.txt would take 2,097,152 bytes of memory"):
        datasets.text_domains({"a": tmp_path / "mine.zip"})
    with sqlite3.connect(tmp_path / "mine.sqlite") as connection:
        connection.execute("CREATE TABLE federated_data (client_id, data, num_examples)")
        row = (b"a", zlib.compress(ZEROS), 1)
        connection.execute("INSERT INTO federated_data VALUES (?, ?, ?)", row)
    connection.close()
    with pytest.raises(ValueError, match=r"mine.sqlite: client 'a' would take [\d,]+ bytes"):
        datasets.from_sqlite(tmp_path / "mine.sqlite")
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.create_dataset("examples/a/x", (10**12, 4), "f4", chunks=(1000, 4))
        file["examples/a/y"] = [0]
    with pytest.raises(
        ValueError, match=r"mine.h5: /examples/a/x would take 16,000,000,000,000 by"
    ):
        datasets.from_hdf5(tmp_path / "mine.h5")
    table = pa.table({"client": ["a"] * 10**6, "x": np.zeros(10**6), "y": np.zeros(10**6, int)})
    pq.write_table(table, tmp_path / "mine.parquet", compression="zstd")
    with pytest.raises(ValueError, match=r"mine.parquet would take [\d,]+ bytes of memory"):
        datasets.from_huggingface(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "RecursionError"),
        ('{"users":' * 50_000, "RecursionError"),
        ('{"users": [], "users": ["a"]}', "the name 'users' is there twice"),
        (
            '{"users": ["a"], "num_samples": [1], "user_data": {"a": {}, "a": {}}}',
            "'a' is there tw",
        ),
        ("1" * 10_000, "ValueError: Exceeds the limit"),
        ("\ufeff", "Unexpected UTF-8 BOM|Expecting value"),
        ("\x1b[31m{", "Expecting value"),
    ],
)
def test_json_of_no_good_will_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"cannot read .*mine.json.*{message}") as caught:
        datasets.from_leaf(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("label", [10**12, -(10**12), np.nan, -1])
def test_labels_that_are_no_classes_name_the_file(tmp_path: Path, name: str, label: float) -> None:
    kind, write = WRITERS[name]
    if np.isnan(label) and name in ("tff", "arrow"):
        pytest.skip("labels are integers by their type")
    rows = {client: dict(own) for client, own in PLAIN[0].items()}
    rows["9"]["y"] = np.array([label] * len(rows["9"]["y"]))
    path = write(tmp_path, rows, PLAIN[1])
    with pytest.raises((ValueError, TypeError), match=re.escape(str(tmp_path))):
        datasets.load(f"{kind}:{path}")


@pytest.mark.parametrize("label", [10**12, np.nan, -1])
def test_labels_of_images_that_are_no_classes_name_the_file(tmp_path: Path, label: float) -> None:
    images = np.full((2, 3, 3), 9, np.uint8)
    arrays = {f"x_{split}": images for split in ("train", "test")}
    np.savez(tmp_path / "mine.npz", y_train=[0, 1], y_test=[0, label], **arrays)
    with pytest.raises((ValueError, TypeError), match=r"mine.npz: y_t"):
        datasets.from_images(tmp_path / "mine.npz")


# ---------------------------------------------------------------- populations on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    disk.write(tmp_path, population((3, 1, 5, 2, 4)).values())
    return tmp_path


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (np.ones((5, 1), int), r"sizes.npy is damaged: .*int64 of shape \(5, 1\)"),
        (np.array([3.0, 1, 5, 2, 4]), r"sizes.npy is damaged: .*float64"),
        (np.array([3, 1, 5, 2, -4]), r"sizes.npy is damaged"),
        (np.array([3, 1, 5, 2, 2**40]), r"sizes.npy is damaged"),
        (np.array(5), r"sizes.npy is damaged"),
        (np.array([], int), r"sizes.npy is damaged"),
        (np.array([3, 1, 5, 2]), r"sizes.npy has 4 clients and clients.array_record 5"),
        (np.full(5, 10**6), r"5000000 examples .* are more than clients.array_record has"),
    ],
)
def test_sizes_that_cannot_be_are_refused(folder: Path, sizes: np.ndarray, message: str) -> None:
    np.save(folder / "sizes.npy", sizes)
    with pytest.raises(ValueError, match=message) as caught:
        disk.Population(folder)
    assert str(folder) in str(caught.value)


def test_sizes_that_shift_examples_are_refused_when_a_client_is_loaded(folder: Path) -> None:
    np.save(folder / "sizes.npy", np.array([1, 3, 5, 2, 4]))  # the right number in all
    damaged = disk.Population(folder)
    message = rf"{re.escape(str(folder))} is damaged: client 1 has 3 examples .*but .* 28 bytes"
    with pytest.raises(ValueError, match=message):
        damaged.load([1, 2])
    assert damaged.client(3)["x"].shape == (2, 6)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", r"cannot read .*population.json"),
        ("{}", r"cannot read .*population.json.*format"),
        ('{"format": 1}', r"cannot read .*population.json.*arrays"),
        ('{"format": 1, "arrays": {"x": 5}}', r"cannot read .*population.json"),
        (
            '{"format": 1, "arrays": {"x": ["object", [6]]}}',
            r"population.json: x holds an array of",
        ),
        ('{"format": 1, "arrays": {"x": ["f4", [-6]]}}', r"rows of 'x' have shape \(-6,\)"),
        ('{"format": 1, "arrays": {"x": ["f4", [1.5]]}}', r"cannot read .*population.json"),
        ('{"format": 1, "arrays": {"x": ["f4", [999999999]]}}', r"are more than clients.array_rec"),
        ('{"format": 1, "format": 2}', r"the name 'format' is there twice"),
        ("[" * 100_000, r"RecursionError"),
    ],
)
def test_an_index_that_cannot_be_is_refused(folder: Path, index: str, message: str) -> None:
    (folder / "population.json").write_text(index)
    with pytest.raises(ValueError, match=message) as caught:
        disk.Population(folder)
    assert str(folder) in str(caught.value)


def test_a_population_without_its_records_is_refused(folder: Path) -> None:
    (folder / "clients.array_record").unlink()
    with pytest.raises(FileNotFoundError, match=r"clients.array_record does not exist. Write the"):
        disk.Population(folder)
