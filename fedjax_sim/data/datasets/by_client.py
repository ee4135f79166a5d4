"""Data that comes by client: your own arrays, and what all readers of federated files share."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_sim.data._files import StrPath, existing, naming
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.ops import checks

Clients = Mapping[str, Mapping[str, Any]] | Iterable[tuple[str, Mapping[str, Any]]]

_FORM = 'for example {"anna": {"x": [[0.1, 0.2], [0.3, 0.4]], "y": [0, 1]}, "ben": ...}'
_LABELS = ("y", "label", "labels", "target")
_LONGEST_NAME = 1_000


def from_clients(
    train: Clients,
    test: Clients | None = None,
    *,
    test_fraction: float | None = None,
    seed: int = 0,
    name: str = "clients",
    x_shape: Sequence[int] = (),
    x_dtype: Literal["float32", "uint8"] | None = None,
    **options: Any,
) -> Dataset:
    """Make a data set of arrays by client, after checking them.

    Clients are told apart by their names: `partition.by_group(data.train_groups["client"])`
    gives the population, in the order of the names. Without `test`, a part of each client's
    examples is kept for the test; which, depends on the seed and the client's name alone.

    Args:
        train: name -> {"x": [n, ...] inputs, "y": [n] labels}, or an iterator of such pairs, of
            which one client at a time is asked for. A client needs one example at least.
        test: the same for the test. Clients that have no test examples may be left out or empty.
        test_fraction: of each client's examples, rounded, in (0, 1]; by default 0.2. One example at
            least stays for training. Without `test` only.
        seed: of the draw of the test examples.
        name: what the data set is called in reports.
        x_shape: shape that an input has, such as (28, 28, 1), where files hold rows of numbers.
        x_dtype: what inputs are read as: "float32" (quantities), "uint8" (pixels, 0 to 255).
            Integers need it, or `tokens=True`.
        **options: task, num_classes, class_names, classes, feature_names, tokens and ignore_label,
            as in `from_arrays`.

    Returns:
        A Dataset with the group "client"; the examples of a client lie side by side.

    Raises:
        TypeError: what is given is not of this form; integers that may be ids or quantities.
        ValueError: a name twice, a client without examples or with inputs and labels of unequal
            number, clients whose inputs differ in shape or type, a NaN or an infinity; names the
            client.

    >>> ben, anna = {"x": np.eye(3), "y": [0, 1, 1]}, {"x": np.ones((2, 3)), "y": [0, 1]}
    >>> data = from_clients({"ben": ben, "anna": anna}, test_fraction=0.4)
    >>> data.train_groups["client"].tolist(), data.test_groups["client"].tolist()
    (['ben', 'ben', 'anna'], ['ben', 'anna'])
    """
    return divided(
        gather("train", train),
        None if test is None else gather("test", test, may_be_empty=True),
        test_fraction=test_fraction,
        seed=seed,
        name=name,
        x_shape=x_shape,
        x_dtype=x_dtype,
        **options,
    )


class Gathered(NamedTuple):
    """The examples of all clients of a split, client after client.

    where: what they come from, for messages. x: [M, ...]. y: [M, ...]. clients: [M] names.
    """

    where: object
    x: np.ndarray
    y: np.ndarray
    clients: np.ndarray

    def take(self, rows: np.ndarray) -> "Gathered":
        """The rows where `rows` [M] is true."""
        return Gathered(self.where, self.x[rows], self.y[rows], self.clients[rows])


def gather(where: object, clients: Clients, *, may_be_empty: bool = False) -> Gathered:
    """Check the arrays of clients, and put them side by side.

    Args:
        where: the argument or file that they come from, for messages.
        clients: as `from_clients` takes them.
        may_be_empty: a client may have no examples.
    """
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    sizes: dict[str, int] = {}
    for given, arrays in _pairs(where, clients):
        client = client_name(where, given)
        if client in sizes:
            raise ValueError(f"{where}: there are two clients {client!r}; names must differ")
        x, y = _arrays(f"{where}: client {client!r}", arrays)
        if not len(y) and not may_be_empty:
            raise ValueError(f"{where}: client {client!r} has no examples; leave it out")
        sizes[client] = len(y)
        if not len(y):
            continue
        for what, array, first in (("x", x, xs), ("y", y, ys)):
            if first and _form(what, array) != _form(what, first[0]):
                raise ValueError(
                    f"{where}: client {client!r} has {what} of shape {array.shape} and type "
                    f"{array.dtype}, but the first client {first[0].shape} and {first[0].dtype}: "
                    "all axes but the first must be equal, and pixels (uint8), other numbers and "
                    "text are not one"
                )
        xs.append(x)
        ys.append(y)
    if not xs:
        raise ValueError(f"{where} holds no examples; it needs clients, {_FORM}")
    names = np.repeat(np.array([*sizes]), [*sizes.values()])
    return Gathered(where, np.concatenate(xs), np.concatenate(ys), names)


def _form(what: str, array: np.ndarray) -> tuple:
    """What the arrays of all clients share."""
    is_pixels = what == "x" and array.dtype == np.uint8
    return array.shape[1:], is_pixels, array.dtype.kind == "U"


def divided(
    train: Gathered,
    test: Gathered | None,
    *,
    name: str,
    test_fraction: float | None = None,
    seed: int = 0,
    x_shape: Sequence[int] = (),
    x_dtype: Literal["float32", "uint8"] | None = None,
    **options: Any,
) -> Dataset:
    """Make the data set of what was gathered, keeping a part for the test if there is none."""
    if test is None:
        is_test = held_out(train.where, train.clients, test_fraction, seed)
        train, test = train.take(~is_test), train.take(is_test)
    elif test_fraction is not None:
        raise ValueError(f"test_fraction={test_fraction} is for data without test examples")
    train, test = (_formed(split, x_shape, x_dtype, options) for split in (train, test))
    with naming(train.where):
        return from_arrays(
            train.x,
            train.y,
            test.x,
            test.y,
            name=name,
            train_groups={"client": train.clients},
            test_groups={"client": test.clients},
            **options,
        )


def client_name(where: object, name: Any) -> str:
    """The name of a client as text that can be stored, shown and compared."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str):
        raise TypeError(f"{where}: names of clients must be text, got {_shown(name)}; {_FORM}")
    # NumPy's text ends at the last character that is not NUL; a surrogate cannot be written.
    if len(name) > _LONGEST_NAME or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(
            f"{where}: the client name {name!r:.100} cannot be kept; names are text of "
            f"{_LONGEST_NAME} characters at most, without NUL and halves of characters"
        )
    return name


def fields(
    where: object, available: Iterable[str], x: str | None, y: str | None
) -> tuple[str, str]:
    """The names of inputs and labels: as given, or the only ones that can be meant.

    Labels are called y, label, labels or target; inputs x, or whatever else there is alone.
    """
    names = [*available]
    if x is not None:
        _check_field(where, names, "x", x)
    y = label_field(where, [name for name in names if name != x], y)
    rest = [name for name in names if name != y]
    found = [x] if x is not None else ["x"] if "x" in rest else rest
    if len(found) != 1:
        raise ValueError(f"{where} has the fields {names}: which are the inputs? Name them with x=")
    return found[0], y


def label_field(where: object, names: Sequence[str], y: str | None) -> str:
    """The name of the labels: as given, or the only one that can be meant."""
    if y is not None:
        _check_field(where, names, "y", y)
        return y
    found = [name for name in names if name in _LABELS]
    if len(found) != 1:
        raise ValueError(
            f"{where} has the fields {[*names]}: which are the labels? Name them with y="
        )
    return found[0]


def _check_field(where: object, names: Sequence[str], argument: str, given: str) -> None:
    if given not in names:
        raise ValueError(
            f"{where} has no field {given!r}, but {[*names]}; name the fields with {argument}="
        )


def split_paths(train_path: StrPath, test_path: StrPath | None) -> tuple[Path, Path | None]:
    """Both files; the one for the test is found by its name if it is not given."""
    train = existing("train_path", train_path)
    if test_path is not None:
        return train, existing("test_path", test_path)
    beside = train.with_name(train.name.replace("train", "test"))
    return train, beside if beside != train and beside.exists() else None


def _pairs(where: object, clients: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(clients, Mapping):
        yield from clients.items()
        return
    if isinstance(clients, str | bytes) or not isinstance(clients, Iterable):
        raise TypeError(f"{where} must be arrays by client, {_FORM}; got {_shown(clients)}")
    for pair in clients:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise TypeError(
                f"{where} must give pairs of a name and its arrays, got {type(pair).__name__} "
                f"{_shown(pair)}"
            )
        yield pair[0], pair[1]


def _arrays(where: str, arrays: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a client as arrays that hold plain finite values."""
    if not isinstance(arrays, Mapping) or arrays.keys() != {"x", "y"}:
        got = [*arrays] if isinstance(arrays, Mapping) else _shown(arrays)
        raise TypeError(f"{where} needs inputs and labels alone, {_FORM}; got {got}")
    x, y = (_array(where, what, arrays[what]) for what in ("x", "y"))
    if len(x) != len(y):
        raise ValueError(f"{where} has {len(x)} inputs (x) but {len(y)} labels (y)")
    return x, y


def _shown(value: Any) -> str:
    """The beginning of a value, on one line."""
    return " ".join(repr(value).split())[:100]


def _array(where: str, what: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{where} has {what} whose rows differ in length; bring them to one length ({error})"
        ) from error
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if not array.ndim or array.dtype.kind not in ("biuf" if what == "x" else "biufU"):
        raise ValueError(
            f"{where} has {what} of shape {array.shape} and type {array.dtype}, where numbers "
            f"[n, ...] are needed: {_shown(values)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(
            f"{where} has {what} that is not finite in row {row}; remove the row or fill the gap"
        )
    return array


def held_out(
    where: object, clients: np.ndarray, test_fraction: float | None, seed: int
) -> np.ndarray:
    """Which rows [M] of clients [M], side by side, are kept for the test."""
    fraction = 0.2 if test_fraction is None else test_fraction
    checks.in_range("test_fraction", fraction, 0, 1, open_low=True)
    checks.count("seed", seed)
    is_test = np.zeros(len(clients), bool)
    firsts = np.flatnonzero(np.r_[True, clients[1:] != clients[:-1]])
    for first, end in itertools.pairwise([*firsts.tolist(), len(clients)]):
        size = end - first
        num_test = min(round(fraction * size), size - 1)
        rng = np.random.default_rng([seed, *str(clients[first]).encode()])
        is_test[first + rng.permutation(size)[:num_test]] = True
    if not is_test.any():
        raise ValueError(
            f"{where}: test_fraction={fraction} leaves no client an example for the test; the "
            f"largest has {np.diff([*firsts, len(clients)]).max()}. Raise it, or give test examples"
        )
    return is_test


def _formed(
    split: Gathered, x_shape: Sequence[int], x_dtype: str | None, options: Mapping[str, Any]
) -> Gathered:
    """The inputs in the shape and type that were asked for."""
    x = split.x
    if len(x_shape):
        try:
            x = x.reshape(len(x), *x_shape)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{split.where} has inputs of shape {x.shape[1:]}, which cannot become "
                f"x_shape={tuple(x_shape)}"
            ) from error
    elif x.ndim == 1:
        x = x[:, None]
    if x_dtype is not None:
        checks.one_of("x_dtype", x_dtype, ("float32", "uint8"))
    if x_dtype == "uint8":
        if not ((x >= 0) & (x <= 255) & (x == np.trunc(x))).all():
            raise ValueError(
                f"{split.where} has inputs from {x.min()} to {x.max()}, which are not all integers "
                "from 0 to 255, as x_dtype='uint8' needs"
            )
        x = x.astype(np.uint8)
    elif x_dtype == "float32":
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            x = x.astype(np.float32)
    is_image = x.dtype == np.uint8 and x.ndim > 2 and x.max() > 1
    if x.dtype.kind in "iu" and not is_image and not options.get("tokens"):
        raise TypeError(
            f"{split.where} has inputs of {x.dtype} and shape {x.shape[1:]}, which could mean "
            "several things: pass x_dtype='float32' for quantities; x_dtype='uint8' for pixels "
            "from 0 to 255, and x_shape=(height, width, channels) if they are in a row; tokens="
            "True for token ids"
        )
    return split._replace(x=x)
