"""Text of your own, by domain, as sequences of word numbers for a language model."""

import collections
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_sim.data._files import StrPath, existing, read_bytes, read_zipped, reading
from fedjax_sim.data.datasets.dataset import Dataset, from_arrays
from fedjax_sim.ops import checks

END, UNKNOWN = "<eos>", "<unk>"
_SPECIAL = (END, UNKNOWN)

Lines = dict[str, dict[str, list[list[str]]]]
"""domain -> split -> the words of each line."""


def text_domains(
    domains: Mapping[str, StrPath | Sequence[StrPath]],
    *,
    vocabulary_size: int = 10_000,
    sequence_length: int = 20,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Read text by domain, such as conversations and documents: the task is the next word.

    Lines are cleaned as for the Cornell movie dialogues in agnostic federated learning (`clean`).
    The kept lines of a domain follow one another, each ended by <eos>, cut into sequences; y is x
    moved by one. The end of a last sequence is padded with <eos> in x and with -1, which does not
    count, in y. The vocabulary is the most frequent words of the training lines of all domains
    together; every other word is <unk>.

    Args:
        domains: name -> a text file in UTF-8, a folder of them (.txt, .text, .md or without
            suffix, also below it), or a zip file of them; or several. NLTK's switchboard.zip,
            nps_chat.zip, treebank.zip and brown.zip are recognised, and read without their tags.
        vocabulary_size: words in all, <eos> and <unk> among them, >= 3.
        sequence_length: T, words in a sequence.
        test_fraction: fraction of the lines, drawn at random, that is kept for the test, in (0, 1).
        seed: of that draw.

    Returns:
        A Dataset of x [M, T] int32 and y [M, T] int32 with `ignore_label` -1, the domains under
        "domain" and the words as class names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text in a domain, a file that is not UTF-8, options out of range.
    """
    checks.in_range("vocabulary_size", vocabulary_size, 3)
    checks.positive_int("sequence_length", sequence_length)
    checks.in_range("test_fraction", test_fraction, 0.0, 1.0, open_low=True)
    if not domains:
        raise ValueError("domains must name at least one domain, got none.")
    lines = _split_lines(domains, test_fraction, seed)
    counts = collections.Counter(
        word for splits in lines.values() for line in splits["train"] for word in line
    )
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = (*_SPECIAL, *ranked[: vocabulary_size - len(_SPECIAL)])
    number = {word: i for i, word in enumerate(words)}
    x_train, y_train, train_domains = _sequences(lines, "train", number, sequence_length)
    x_test, y_test, test_domains = _sequences(lines, "test", number, sequence_length)
    return from_arrays(
        x_train,
        y_train,
        x_test,
        y_test,
        name="text",
        class_names=words,
        tokens=True,
        ignore_label=-1,
        train_groups={"domain": train_domains},
        test_groups={"domain": test_domains},
    )


def _split_lines(
    domains: Mapping[str, StrPath | Sequence[StrPath]], test_fraction: float, seed: int
) -> Lines:
    """The words of every line, drawn for training or for the test."""
    rng = np.random.default_rng(seed)
    lines: Lines = {}
    for domain, paths in domains.items():
        several = [paths] if isinstance(paths, str) or not isinstance(paths, Sequence) else paths
        found = [line.split() for path in several for line in read_lines(path)]
        if len(found) < 2:
            raise ValueError(
                f"domain {domain!r} has {len(found)} lines of text in "
                f"{', '.join(str(path) for path in several)}; at least 2 are needed."
            )
        is_test = rng.random(len(found)) < test_fraction
        is_test[rng.permutation(len(found))[:2]] = True, False  # of each at least one
        lines[domain] = {
            "train": [line for line, test in zip(found, is_test, strict=True) if not test],
            "test": [line for line, test in zip(found, is_test, strict=True) if test],
        }
    return lines


def _sequences(
    lines: Lines, split: str, number: Mapping[str, int], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs x and labels y [M, length] of a split, and the domain of each."""
    xs, ys, groups = [], [], []
    for domain, splits in lines.items():
        stream = [0]
        for line in splits[split]:
            stream += [number.get(word, 1) for word in line] + [0]
        padding = -(len(stream) - 1) % length
        x = np.pad(stream[:-1], (0, padding), constant_values=0)
        y = np.pad(stream[1:], (0, padding), constant_values=-1)
        xs.append(x.reshape(-1, length))
        ys.append(y.reshape(-1, length))
        groups += [domain] * len(xs[-1])
    return np.concatenate(xs), np.concatenate(ys), np.array(groups)


_TAG = re.compile(r"<[^<>\n]*>")
_SENTENCE_END = re.compile(r"[.;?!] ")
_PUNCTUATION = re.compile(r"""[",\-()*_:'^+$.?!<>\u201c\u201d\u2018\u2019]""")


def clean(raw: str) -> list[str]:
    """Clean text as for the Cornell movie dialogues: one sentence a line, words and spaces alone.

    HTML tags go; ". ", "; ", "? " and "! " end a line; the characters " , - ( ) * _ : ' ^ + $ . ?
    ! < > go; so do leading and double spaces and empty lines. Case stays.

    >>> clean('Well, <b>I</b> know. Do you?  "No!"')
    ['Well I know', 'Do you', 'No']
    """
    broken = _SENTENCE_END.sub("\n", _TAG.sub("", raw))
    lines = (" ".join(line.split()) for line in _PUNCTUATION.sub("", broken).splitlines())
    return [line for line in lines if line]


def read_lines(path: StrPath) -> list[str]:
    """Read the cleaned lines of a text file, a folder or a zip file, as `text_domains` takes them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text in it, or text that is not UTF-8.
    """
    source = existing("path", path)
    lines = [line for name, content in _contents(source) for line in clean(_decode(name, content))]
    if not lines:
        raise ValueError(
            f"{source} holds no text. It must be a text file, or a folder or zip file of files "
            "that end in .txt, .text, .md or nothing."
        )
    return lines


def _contents(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every text file; corpora of NLTK without their tags."""
    if source.is_dir():
        for file in sorted(source.rglob("*")):
            if file.is_file() and _is_text(file):
                yield str(file), read_bytes(file)
    elif zipfile.is_zipfile(source):
        with reading(source):
            archive = zipfile.ZipFile(source)
        with archive:
            yield from _zipped(archive, source)
    else:
        yield str(source), read_bytes(source)


def _zipped(archive: zipfile.ZipFile, source: Path) -> Iterator[tuple[str, bytes]]:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    for pattern, convert in _CORPORA:
        if found := [name for name in names if re.match(pattern, name)]:
            for name in found:
                content = read_zipped(archive, name, source)
                with reading(f"{source}/{name}"):
                    converted = convert(content)
                yield f"{source}/{name}", converted
            return
    for name in filter(_is_text, names):
        yield f"{source}/{name}", read_zipped(archive, name, source)


def _is_text(name: StrPath) -> bool:
    return Path(name).suffix.lower() in {"", ".txt", ".text", ".md"}


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8: byte {content[error.start]:#04x} at {error.start}. Convert it, "
            "for example with iconv -f latin1 -t utf-8."
        ) from error


def _sub(pattern: str, by: str) -> Callable[[bytes], bytes]:
    compiled = re.compile(pattern.encode())
    return lambda content: compiled.sub(by.encode(), content)


def _articles(content: bytes) -> bytes:
    """An article of the treebank, a few of which have the quotes of a Macintosh."""
    return content.decode("mac_roman").replace(".START", "").encode()


def _posts(content: bytes) -> bytes:
    """The posts of a chat session in NPS's XML."""
    from xml.etree import ElementTree

    posts = ElementTree.fromstring(content).iter("Post")
    return "\n".join(post.text or "" for post in posts).encode()


_CORPORA: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    (r"switchboard/transcript$", _sub(r"(?m)^[AB]\.\d+:", "")),
    (r"nps_chat/.*\.xml$", _posts),
    (r"treebank/raw/wsj_\d+$", _articles),
    (r"brown/c[a-r]\d\d$", _sub(r"/[^\s/]+(?=\s|$)", "")),
)
"""What is read of the zip files of NLTK: (pattern of the files, how they become text)."""
