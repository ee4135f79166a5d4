"""Data by client in the JSON files of LEAF: femnist, sent140, synthetic, shakespeare, reddit."""

import collections
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import StrPath, existing, read_json
from fedjax_sim.data.datasets.by_client import client_name, divided, gather
from fedjax_sim.data.datasets.dataset import Dataset
from fedjax_sim.data.datasets.hdf5 import SHAKESPEARE_SYMBOLS, character_ids
from fedjax_sim.ops import checks

_PAD, _UNKNOWN = "<PAD>", "<UNK>"  # of LEAF's reddit
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def from_leaf(
    folder: StrPath,
    *,
    vocabulary_size: int = 10_000,
    sequence_length: int = 25,
    name: str | None = None,
    **options: Any,
) -> Dataset:
    """Read JSON files of the benchmark LEAF, or your own of its layout.

    A file is {"users": [names], "num_samples": [counts], "user_data": {name: {"x": [...],
    "y": [...]}}}; a split may have several. What the examples are is seen from the first:

    - numbers (femnist, synthetic): float32, or token ids with `tokens=True`;
    - a text and its next character (shakespeare): the symbols of `shakespeare`, x [M, T]; y [M, T]
      has the next character at the last position and -1, which does not count, elsewhere;
    - a text and a label (sent140, where a row's last column is the text): words by number, x [M, T]
      with T = `sequence_length`, 0 for padding, 1 for unknown words, the most frequent training
      words from 2 on, in lower case;
    - sequences of words and the words that follow (reddit): x and y [M, T]; what LEAF does not
      count has the label -1. The classes are the words.

    Names of pictures (celeba) are refused.

    Args:
        folder: with the folders train and test of .json files, as LEAF leaves them in `data`; or
            with .json files, or one such file (.json.gz and .json.xz too), of which a part of each
            client's examples is kept for the test.
        vocabulary_size: V, words in all, padding and unknown among them, >= 3; ids are below it.
        sequence_length: T, of sent140; longer texts are cut.
        name: by default the folder's name.
        **options: as `from_clients`; `x_shape=(28, 28, 1)` makes femnist's rows pictures.

    Returns:
        A Dataset with the group "client", in the order of the files' names and their users.

    Raises:
        FileNotFoundError: no such folder, or no .json files in it.
        ValueError: not of this layout, a count that is not the number of examples, a user twice,
            examples of several kinds; names file and user.

    Cost: files are held one at a time as Python objects, about four times their size; texts all.

    References:
        Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
    """
    checks.in_range("vocabulary_size", vocabulary_size, 3)
    checks.positive_int("sequence_length", sequence_length)
    source = existing("folder", folder)
    train_files, test_files = _split_files(source)
    train, test = _users(train_files), _users(test_files)
    kinds = {user.kind: user.where for user in [*train, *test] if user.kind}
    if len(kinds) > 1:
        what = "; ".join(f"{where} has {kind.what}" for kind, where in kinds.items())
        raise ValueError(f"all examples must be of one kind, but {what}")
    for kind in kinds:
        encode, implied = kind.encoder(train, vocabulary_size, sequence_length)
        if options.get("tokens"):
            implied.pop("x_dtype", None)
        options = implied | options
        train, test = ([encode(user) for user in users] for users in (train, test))

    def clients(users: list[_User]) -> Iterator[tuple[str, dict[str, Any]]]:
        return ((user.name, {"x": user.x, "y": user.y}) for user in users)

    return divided(
        gather(train_files[0].parent, clients(train)),
        gather(test_files[0].parent, clients(test), may_be_empty=True) if test_files else None,
        name=name or source.resolve().name.split(".")[0],
        **options,
    )


class _User(NamedTuple):
    """What a file has of a user; texts are not encoded yet."""

    name: str
    where: str
    kind: "_Kind | None"  # None where there are no examples
    x: Any
    y: Any


class _Kind(NamedTuple):
    """One of the things that examples are.

    prepare: checks and compacts what JSON has of a user, which is not kept. encoder: of training
    users, vocabulary_size and sequence_length -> what makes arrays of a user, and what the arrays
    imply for `from_clients`.
    """

    what: str
    prepare: Callable[[str, list, list], tuple[Any, Any]]
    encoder: Callable[[list[_User], int, int], tuple[Callable[[_User], _User], dict[str, Any]]]


def _split_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The files of the training examples and of the test, if they are apart."""
    if source.is_file():
        return [source], []
    if not (source / "train").is_dir() and (source / "data" / "train").is_dir():
        source = source / "data"
    if (source / "train").is_dir():
        return _json_files(source / "train"), _json_files(existing("folder", source / "test"))
    return _json_files(source), []


def _json_files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if ".json" in path.suffixes)
    if not found:
        raise FileNotFoundError(
            f"folder: {folder} holds no .json files. LEAF's files lie in folders train and test, "
            "or all in one"
        )
    return found


def _users(paths: Sequence[Path]) -> list[_User]:
    users: dict[str, _User] = {}
    for path in paths:
        for user in _users_of(path):
            if user.name in users:
                raise ValueError(
                    f"{user.where} is there a second time: {users[user.name].where}. Rename one, "
                    "or join them"
                )
            users[user.name] = user
    return [*users.values()]


def _users_of(path: Path) -> Iterator[_User]:
    content = read_json(path)
    parts = {"users": list, "num_samples": list, "user_data": dict}
    if not isinstance(content, dict) or any(
        not isinstance(content.get(part), kind) for part, kind in parts.items()
    ):
        got = [*content] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no file of LEAF: it needs users (a list of names), num_samples (a list of "
            f"their numbers of examples) and user_data, but has {got!r:.200}"
        )
    users, counts, data = (content[part] for part in parts)
    if len(users) != len(counts):
        raise ValueError(f"{path} has {len(users)} users, but {len(counts)} num_samples")
    names = [client_name(path, user) for user in users]
    for name, found in data.items():
        if name not in names and found != {} and found != {"x": [], "y": []}:
            raise ValueError(f"{path} has user_data of {name!r:.100}, who is not in users")
    for name, count in zip(names, counts, strict=True):
        where = f"{path}: user {name!r}"
        found = data.get(name)
        if not isinstance(found, dict) or not all(
            isinstance(found.get(field), list) for field in ("x", "y")
        ):
            raise ValueError(f'{where} has no {{"x": [...], "y": [...]}} in user_data')
        x, y = found["x"], found["y"]
        if len(x) != len(y):
            raise ValueError(f"{where} has {len(x)} inputs (x) but {len(y)} labels (y)")
        kind = _kind(x[0], y[0]) if x else None
        # For reddit LEAF states what there was before the split into training and test.
        if count != len(x) and kind is not _NEXT_WORDS:
            raise ValueError(f"{where} has num_samples {count!r:.50}, but {len(x)} examples")
        if kind is not None:
            x, y = kind.prepare(where, x, y)
        yield _User(name, where, kind, x, y)


def _kind(x: Any, y: Any) -> _Kind:
    """What the examples of a user are, by the first."""
    if isinstance(y, dict):
        return _NEXT_WORDS
    if isinstance(x, str) and isinstance(y, str) and len(y) == 1:
        return _NEXT_CHARACTER
    is_text = isinstance(x, str) or (isinstance(x, list) and x and isinstance(x[-1], str))
    return _TEXT if is_text else _NUMBERS


def _numbers(where: str, x: list, y: list) -> tuple[Any, Any]:
    try:
        inputs = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{where} has x whose rows differ in length ({error})") from error
    if inputs.dtype == np.float64:
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            inputs = inputs.astype(np.float32)
    return inputs, y


def _number_encoder(*_: Any) -> tuple[Callable[[_User], _User], dict[str, Any]]:
    # JSON has one kind of number: integers are quantities unless they are called tokens.
    return lambda user: user, {"x_dtype": "float32"}


def _characters(where: str, x: list, y: list) -> tuple[Any, Any]:
    for text, following in zip(x, y, strict=True):
        if not isinstance(text, str) or not isinstance(following, str) or len(following) != 1:
            raise ValueError(
                f"{where} has {text!r:.100} and {following!r:.50}, not a text and a character"
            )
    inputs = [character_ids(text) for text in x]
    labels = [np.full(len(ids), -1, np.int32) for ids in inputs]
    for label, following in zip(labels, y, strict=True):
        label[-1:] = character_ids(following)
    return inputs, labels


def _character_encoder(*_: Any) -> tuple[Callable[[_User], _User], dict[str, Any]]:
    implied = {"class_names": SHAKESPEARE_SYMBOLS, "tokens": True, "ignore_label": -1}
    return lambda user: user, implied


def _texts(where: str, x: list, y: list) -> tuple[Any, Any]:
    texts = [row[-1] if isinstance(row, list) and row else row for row in x]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where} has {text!r:.100} where others have a text")
        if re.fullmatch(r"\S+\.(jpe?g|png)", text, re.IGNORECASE):
            raise ValueError(
                f"{where} has names of pictures such as {text!r:.100}, as LEAF's celeba. Read the "
                "pictures into arrays of one size, and call from_clients with them"
            )
    return [_WORD.findall(text.lower()) for text in texts], y


def _text_encoder(
    train: list[_User], size: int, length: int
) -> tuple[Callable[[_User], _User], dict[str, Any]]:
    number = {word: i for i, word in enumerate(_vocabulary((u.x for u in train), size))}

    def encode(user: _User) -> _User:
        ids = np.zeros((len(user.x), length), np.int32)
        for row, words in zip(ids, user.x, strict=True):
            row[: len(words)] = [number.get(word, 1) for word in words[:length]]
        return user._replace(x=ids)

    return encode, {"tokens": True}


def _sequences(where: str, x: list, y: list) -> tuple[Any, Any]:
    """Sequences of words, and of the words that follow: None for those that do not count."""
    inputs: list[list[str]] = []
    labels: list[list[str | None]] = []
    try:
        for comment, answer in zip(x, y, strict=True):
            targets, counts = answer["target_tokens"], answer["count_tokens"]
            for words, following, counted in zip(comment, targets, counts, strict=True):
                if not all(isinstance(word, str) for word in [*words, *following]):
                    raise TypeError("words are no text")
                inputs.append([*words])
                pairs = zip(words, following, counted, strict=True)
                labels.append([after if count else None for _, after, count in pairs])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has a comment whose words (x), target_tokens and count_tokens are no "
            f"sequences of equal lengths ({type(error).__name__}: {error})"
        ) from error
    return inputs, labels


def _sequence_encoder(
    train: list[_User], size: int, _: int
) -> tuple[Callable[[_User], _User], dict[str, Any]]:
    words = _vocabulary((user.x for user in train), size)
    number: dict[str | None, int] = {word: i for i, word in enumerate(words)}
    labels = number | {None: -1}

    def ids(rows: list[list], number: dict) -> list[list[int]]:
        return [[number.get(word, 1) for word in row] for row in rows]

    def encode(user: _User) -> _User:
        return user._replace(x=ids(user.x, number), y=ids(user.y, labels))

    return encode, {"class_names": words, "tokens": True, "ignore_label": -1}


def _vocabulary(users: Iterable[list[list[str]]], size: int) -> tuple[str, ...]:
    """Padding, what is unknown, and the most frequent words, `size` in all at most."""
    counts = collections.Counter(word for rows in users for row in rows for word in row)
    for special in (_PAD, _UNKNOWN):
        counts.pop(special, None)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (_PAD, _UNKNOWN, *ranked[: size - 2])


_NUMBERS = _Kind("numbers", _numbers, _number_encoder)
_NEXT_CHARACTER = _Kind("texts and their next characters", _characters, _character_encoder)
_TEXT = _Kind("texts and labels", _texts, _text_encoder)
_NEXT_WORDS = _Kind("sequences of words and what follows", _sequences, _sequence_encoder)
