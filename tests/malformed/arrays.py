"""Arrays of every odd kind, as inputs and labels of `from_arrays` and as examples of `federate`."""

import datetime
import decimal
import fractions
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse

from fedjax_sim.data import datasets, federate
from malformed import Case

_ODD = [
    *(None, float("nan"), float("inf"), -1, 0, 1, 2, 3, 10**12, 10**30, -(2**63), 2**64 - 1, 0.5),
    *(1e300, 1e-320, True, False, "a", "b", "", "nan", "1", "2.5", "None", "\x1b[31m", "x" * 3000),
    *("[/red]", b"a", b"\xff", 1j, (1, 2), [], {}, pd.NA, pd.NaT, np.float16(1), np.uint8(255)),
    *(decimal.Decimal("1.5"), fractions.Fraction(1, 3), datetime.date(2024, 1, 1), object()),
]
_DTYPES = [
    *("float64", "float32", "float16", ">f8", "int64", "int8", "uint8", "uint64", ">i4", "bool"),
    *("U5", "S3", "object", "complex64", "datetime64[D]", "timedelta64[s]", "bfloat16", "int4"),
]


def cases(rng: np.random.Generator, folder: Path) -> Iterator[Case]:
    """What is accepted has the values that were given, and labels in their range."""
    while True:
        size = int(rng.integers(0, 7))
        x, y = _inputs(rng, size), _labels(rng, size)
        options = _options(rng)
        if rng.random() < 0.5:
            name = f"from_arrays {_shown(x)} {_shown(y)} {options}"
            yield Case(name, lambda x=x, y=y, options=options: _as_data_set(x, y, options))
        else:
            parts = _parts(rng, size)
            given = {k: options[k] for k in ("num_classes", "ignore_label") if k in options}
            name = f"federate {_shown(x)} {_shown(y)} {_shown(parts)} {given}"
            yield Case(name, lambda x=x, y=y, p=parts, given=given: _as_clients(x, y, p, given))


def _as_data_set(x: Any, y: Any, options: dict[str, Any]) -> None:
    data = datasets.from_arrays(x, y, x, y, **options)
    inputs, labels = data.train["x"], data.train["y"]
    assert inputs.dtype in (np.float32, np.uint8, np.int32) and np.isfinite(inputs).all()
    assert len(inputs) == len(labels) and data.num_outputs >= 1
    np.testing.assert_array_equal(inputs, data.test["x"])
    if data.task == "regression":
        assert labels.dtype == np.float32 and np.isfinite(labels).all() and data.num_classes == 0
        return
    assert labels.dtype == np.int32
    most = 2 if data.task == "multilabel" else data.num_classes
    assert ((labels >= 0) & (labels < most) | (labels == data.ignore_label)).all()
    if isinstance(y, np.ndarray) and y.dtype.kind in "iuU" and data.task == "classification":
        # Equal labels, and no others, are one class.
        flat = y.reshape(labels.shape)
        same = flat[:, None] == flat[None, :] if flat.ndim == 1 else None
        if same is not None:
            np.testing.assert_array_equal(same, labels[:, None] == labels[None, :])


def _as_clients(x: Any, y: Any, parts: Any, options: dict[str, Any]) -> None:
    data = federate({"x": x, "y": y}, parts, **options)
    assert data.num_clients == len(parts) and int(data.sizes.sum()) == data.num_examples >= 1
    for i, part in enumerate(parts):
        own = data.client(i)
        if isinstance(y, np.ndarray) and y.dtype.kind in "iuf" and y.dtype != np.float16:
            np.testing.assert_allclose(own["y"], y[np.asarray(part, int)], rtol=1e-6)
    found = data.range_of("y")
    if found is not None and options:
        assert found[0] >= 0 and found[1] < options.get("num_classes", 2**31)


def _inputs(rng: np.random.Generator, size: int) -> Any:
    shape = [(size, 3), (size,), (size, 2, 2), (size, 2, 2, 1), (size, 0), ()][rng.integers(6)]
    if rng.random() < 0.5:  # or few labels would be looked at
        return rng.normal(size=(size, 3))
    return _container(rng, _array(rng, shape))


def _labels(rng: np.random.Generator, size: int) -> Any:
    size = size if rng.random() < 0.9 else size + 1
    shape = [(size,), (size,), (size, 1), (size, 3), (size, 2, 2)][rng.integers(5)]
    return _container(rng, _array(rng, shape))


def _array(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.integers(0, 4, shape) - (rng.random() < 0.2) * rng.integers(0, 3)
    if rng.random() < 0.2:
        values = np.eye(4)[: shape[0] if shape else 1, : shape[1] if len(shape) > 1 else 4]
        values = values if values.shape == shape else np.ones(shape)
    chosen = str(rng.choice(_DTYPES))
    if chosen == "bfloat16":
        return values.astype(ml_dtypes.bfloat16)
    if chosen == "int4":
        return values.astype(ml_dtypes.int4)
    array = np.asarray(values).astype(chosen)
    if chosen == "object" and array.size and shape:
        flat = array.reshape(-1)
        for _ in range(rng.integers(1, 4)):
            flat[rng.integers(flat.size)] = _ODD[rng.integers(len(_ODD))]
        return flat.reshape(shape)
    return array


def _container(rng: np.random.Generator, array: np.ndarray) -> Any:
    """The array as another library, or a user, has it."""
    match rng.integers(20):
        case 0:
            return array.tolist()
        case 1:
            return np.ma.array(array, mask=rng.random(array.shape) < 0.2)
        case 2 if array.ndim == 1:
            return pd.Series(array.tolist(), index=rng.permutation(len(array)))
        case 2 if array.ndim == 2:
            return pd.DataFrame(array.tolist())
        case 3 if array.dtype.kind in "iuf" and array.ndim == 1:
            return pa.array(array.astype(array.dtype.newbyteorder("=")))
        case 4 if array.dtype.kind in "iufb" and array.dtype.isnative:
            return jnp.asarray(array)
        case 5 if array.ndim == 2 and array.dtype.kind in "iuf" and array.dtype.isnative:
            return scipy.sparse.csr_array(array.astype(np.float64))
        case 6 if array.ndim == 2:
            return [row[: rng.integers(len(row) + 1)].tolist() for row in array]
        case 7:
            return {"column": array}
        case 8:
            return iter(array.tolist() if array.ndim else [])
        case 9:
            return [_ODD[i] for i in rng.integers(0, len(_ODD), len(array) if array.ndim else 0)]
        case 10:
            return _ODD[rng.integers(len(_ODD))]
        case _:
            return array


def _options(rng: np.random.Generator) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "task": ["multilabel", "regression", "classification", "Regression", None, 3],
        "num_classes": [1, 2, 4, 0, -1, 10**12, 2.0, "3"],
        "ignore_label": [-1, -100, 0, "a", 1.5],
        "classes": [[0, 1, 2, 3], [1, 2], ["a", "b"], [], [1, 1], [None], "ab", 3, [[1], [2]]],
        "class_names": [["a", "b"], ["a"], [], "ab", [1, 2]],
        "tokens": [True],
    }
    names = [name for name in choices if rng.random() < 0.12]
    return {name: choices[name][rng.integers(len(choices[name]))] for name in names}


def _parts(rng: np.random.Generator, size: int) -> Any:
    rows = np.arange(size)
    choices = [
        [rows],
        [rows, []],
        [rows[:1], rows[1:]],
        [rows.tolist()],
        [[]],
        [],
        None,
        3,
        {"a": rows},
        [rows < 2],
        [rows + 1],
        [rows - 1],
        [rows * 1.0],
        [[rows]],
        rows,
        [["a"]],
        [None],
        "ab",
    ]
    return choices[rng.integers(len(choices) if rng.random() < 0.5 else 4)]


def _shown(value: Any) -> str:
    dtype = getattr(value, "dtype", "")
    with warnings.catch_warnings(action="ignore"):  # pandas overflows where it counts digits
        text = repr(value)
    return f"{type(value).__name__} {dtype} {text}"[:200].replace("\n", " ")
