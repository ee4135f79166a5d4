#!/usr/bin/env python3
"""Make the data files that ship in fedjax_sim/data/datasets/files, and print their sha256.

    python scripts/make_data.py --adult FOLDER --fashion FOLDER

FOLDER for Adult holds UCI's adult.data and adult.test, for Fashion-MNIST the four IDX files. The
sums belong into SHIPPED in fedjax_sim/data/datasets/dataset.py; another version of xz may pack the
same arrays into other bytes.
"""

import argparse
import hashlib
import io
import lzma
from pathlib import Path

import numpy as np

from fedjax_sim.data.datasets import fashion_mnist
from fedjax_sim.data.datasets.adult import read_uci_adult

FILES = Path(__file__).parent.parent / "fedjax_sim" / "data" / "datasets" / "files"


def fashion_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The first 250 training and 50 test images of every class, in the original order."""
    data = fashion_mnist(folder)
    arrays = {}
    for split, examples, per_class in (("train", data.train, 250), ("test", data.test, 50)):
        labels = examples["y"]
        rows = [np.flatnonzero(labels == k)[:per_class] for k in range(data.num_classes)]
        chosen = np.sort(np.concatenate(rows))
        arrays[f"{split}_images"] = examples["x"][chosen, :, :, 0]
        arrays[f"{split}_labels"] = labels[chosen].astype(np.uint8)
    return arrays


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file compressed by xz as a whole."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adult", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--fashion", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    contents = {
        "adult.npz.xz": pack(read_uci_adult(options.adult)),
        "fashion_small.npz.xz": pack(fashion_arrays(options.fashion)),
    }
    FILES.mkdir(exist_ok=True)
    for name, content in contents.items():
        (FILES / name).write_bytes(content)
        print(f"{name}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
