"""Damaged files: each format of `federated_files`, and others, with bytes changed or cut off."""

import gzip
import io
import itertools
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from federated_files import PLAIN, TRAIN, WRITERS
from fedjax_sim.analysis import trackers
from fedjax_sim.base import Status
from fedjax_sim.data import datasets, disk
from fedjax_sim.simulate import Progress
from malformed import Case

_NOISE = [b"", b"\0", b"\xff" * 8, b"nan", b"1" * 13, b"-1", b"[" * 2000, b'"', b"{}", b"null"]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """Copies of sound data of every format, of which one file is damaged."""
    sound = _sound(folder)
    names = [*sound]
    for number in itertools.count():
        name = names[number] if number < len(names) else str(rng.choice(names))
        place, read = sound[name]
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / name, copy)
        file = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        content = file.read_bytes() if number < len(names) else _damaged(rng, file.read_bytes())
        file.write_bytes(content)
        target = copy / place
        told = f"{name}: {file.relative_to(copy)} of {len(content)} bytes"
        yield Case(told, lambda read=read, target=target: read(target))


def _damaged(rng: np.random.Generator, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(changed) + 1))
        match rng.integers(5):
            case 0:
                del changed[at:]
            case 1:
                noise = _NOISE[rng.integers(len(_NOISE))]
                changed[at : at + int(rng.integers(9))] = noise
            case 2:
                changed[at : at + 8] = rng.bytes(min(8, len(changed) - at))
            case _:
                if at < len(changed):
                    changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _sound(folder: Path) -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Name -> what to read below the folder of that name, and how."""
    sound: dict[str, tuple[str, Callable[[Path], None]]] = {}
    for name, (kind, write) in WRITERS.items():
        (folder / name).mkdir()
        path = write(folder / name, *PLAIN)

        def load(path: Path, kind: str = kind) -> None:
            _check(datasets.load(f"{kind}:{path}"))

        sound[name] = (str(path.relative_to(folder / name)), load)
    for name, write_and_read in (
        ("disk", _disk),
        ("images", _images),
        ("idx", _idx),
        ("tables", _tables),
        ("tracked", _tracked),
    ):
        (folder / name).mkdir()
        sound[name] = write_and_read(folder / name)
    return sound


def _check(data: datasets.Dataset) -> None:
    """What was read is whole, whatever its numbers are now."""
    for examples, groups in ((data.train, data.train_groups), (data.test, data.test_groups)):
        assert len(examples["x"]) == len(examples["y"]) > 0
        assert all(len(values) == len(examples["y"]) for values in groups.values())
        assert np.isfinite(examples["x"]).all()
        assert examples["y"].min() >= 0 and examples["y"].max() < data.num_classes


def _disk(folder: Path) -> tuple[str, Callable[[Path], None]]:
    disk.write(folder, TRAIN.values())

    def read(path: Path) -> None:
        population = disk.Population(path)
        for i in range(population.num_clients):
            assert {len(a) for a in population.client(i).values()} == {population.sizes[i]}

    return ".", read


def _images(folder: Path) -> tuple[str, Callable[[Path], None]]:
    """Pictures in a tar, arrays in an .npz: one of them is read, by its name."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6), dtype=np.uint8)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, image in enumerate(pixels):
            picture = io.BytesIO()
            Image.fromarray(image).save(picture, "PNG" if i % 2 else "JPEG")
            member = tarfile.TarInfo(f"{('train', 'test')[i // 2]}/{i % 2}/{i}.png")
            member.size = picture.tell()
            archive.addfile(member, io.BytesIO(picture.getvalue()))
    (folder / "pictures.tar.gz").write_bytes(gzip.compress(file.getvalue()))
    (folder / "plain.tar").write_bytes(file.getvalue())
    file = io.BytesIO()
    arrays = {"train_images": pixels, "test_images": pixels}
    labels = {"train_labels": np.arange(4) % 2, "test_labels": np.arange(4) % 2}
    np.savez_compressed(file, **arrays, **labels)
    (folder / "arrays.npz").write_bytes(file.getvalue())
    (folder / "arrays.npz.xz").write_bytes(lzma.compress(file.getvalue()))

    def read(path: Path) -> None:
        for file in path.iterdir():
            _check(datasets.from_images(file))

    return ".", read


def _idx(folder: Path) -> tuple[str, Callable[[Path], None]]:
    for split in ("train", "t10k"):
        for what, array in (
            ("images-idx3", np.arange(24).reshape(2, 3, 4)),
            ("labels-idx1", [0, 1]),
        ):
            content = np.asarray(array, np.uint8)
            header = np.array([0x0800 + content.ndim, *content.shape], ">i4").tobytes()
            (folder / f"{split}-{what}-ubyte").write_bytes(header + content.tobytes())
    return ".", lambda path: _check(datasets.from_images(path))


def _tables(folder: Path) -> tuple[str, Callable[[Path], None]]:
    """A table of each client, as text and as Parquet."""
    for client, rows in PLAIN[0].items():
        table = pyarrow.table({"label": rows["y"], "size": rows["x"][:, 0]})
        for kind, write in (
            ("csv", pyarrow.csv.write_csv),
            ("parquet", pyarrow.parquet.write_table),
        ):
            (folder / kind / client).mkdir(parents=True)
            write(table, folder / kind / client / f"train.{kind}")

    def read(path: Path) -> None:
        for kind in path.iterdir():
            _check(datasets.from_folders(kind))

    return ".", read


def _tracked(folder: Path) -> tuple[str, Callable[[Path], None]]:
    """What a run left that is continued."""
    makers = {"curves.csv": trackers.csv, "curves.parquet": trackers.parquet}

    def goes_on(path: Path, first_round: int) -> None:
        for name, make in makers.items():
            with make(path / name) as track:
                for at in (1, 2):
                    done = first_round + at
                    evaluated = {done: {"test/loss": 0.5}}
                    track(Progress(first_round, done, 9, 1.5, 8, Status.OK, {}, evaluated))

    goes_on(folder, 0)

    def read(path: Path) -> None:
        goes_on(path, 2)
        rows = pyarrow.parquet.read_table(path / "curves.parquet").to_pylist()
        assert [row["round"] for row in rows][-2:] == [3, 4]

    return ".", read
