"""Text by domain: cleaning, reading, numbering, and what is refused."""

import zipfile

import numpy as np
import pytest

from fedjax_sim.data.datasets import text_domains
from fedjax_sim.data.datasets.text import clean, read_lines


def test_cleaning_follows_the_dialogues():
    raw = 'A "b", (c) - d_e; F*g? <i>H</i>  i^j! K$l... m+n\n\n  \n o: p\'s'
    assert clean(raw) == ["A b c de", "Fg", "H ij", "Kl", "mn", "o ps"]


def test_words_are_numbered_by_frequency_and_lines_end(tmp_path):
    (tmp_path / "a.txt").write_text("b a b\n" * 30, encoding="utf-8")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one").write_text("c b\n" * 20, encoding="utf-8")
    (tmp_path / "b" / "two.md").write_text("rare b. c b\n", encoding="utf-8")
    (tmp_path / "b" / "picture.png").write_bytes(b"\x89PNG\xff")
    data = text_domains(
        {"talk": tmp_path / "a.txt", "page": [tmp_path / "b"]},
        vocabulary_size=5,
        sequence_length=4,
    )
    assert data.class_names == ("<eos>", "<unk>", "b", "a", "c")
    talk = data.train_groups["domain"] == "talk"
    x, y = data.train["x"][talk].ravel(), data.train["y"][talk].ravel()
    real = y >= 0
    stream = "".join("." if i == 0 else data.class_names[i] for i in y[real])
    assert stream == "bab." * stream.count(".")
    np.testing.assert_array_equal(x[1:][real[1:]], y[:-1][real[1:]])
    assert x[0] == 0 and (y[~real] == -1).all() and (~real).sum() < 4
    lines = {
        split: (examples["y"] == 0).sum()
        for split, examples in (("train", data.train), ("test", data.test))
    }
    assert sum(lines.values()) == 30 + 20 + 2 and lines["test"] >= 2
    assert {*data.test_groups["domain"]} == {"talk", "page"}
    again = text_domains(
        {"talk": tmp_path / "a.txt", "page": [tmp_path / "b"]}, vocabulary_size=5, sequence_length=4
    )
    np.testing.assert_array_equal(again.train["x"], data.train["x"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("switchboard/transcript", b"\nA.1: Uh, yes. \nB.22: A B.1: \n", ["Uh yes", "A B1"]),
        (
            "nps_chat/x.xml",
            b"<S><Posts><Post class='a'>hi all<terminals><t/></terminals></Post></Posts></S>",
            ["hi all"],
        ),
        ("treebank/raw/wsj_0001", b".START \n\nIt\xd5s so.\n", ["Its so"]),
        ("brown/ca01", b"\tThe/at cost/nn 1/2/cd ./.\n", ["The cost 1/2"]),
    ],
)
def test_corpora_of_nltk_are_read_without_their_tags(tmp_path, name, content, expected):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr(name, content)
        archive.writestr("README", "not text of the corpus")
    assert read_lines(tmp_path / "c.zip") == expected


def test_a_plain_zip_file_is_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("x/a.txt", "one two")
        archive.writestr("x/b.png", b"\xff")
    assert read_lines(tmp_path / "c.zip") == ["one two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b" \n\t\n", "holds no text"),
        ("caf\xe9".encode("latin-1"), "is not UTF-8: byte 0xe9 at 3. Convert it"),
        (b"one line", "has 1 lines of text.*at least 2"),
    ],
)
def test_unusable_text_is_refused(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text_domains({"talk": path})


def test_missing_files_and_bad_options_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
        text_domains({"talk": tmp_path / "nowhere.txt"})
    path = tmp_path / "a.txt"
    path.write_text("one two\nthree\n", encoding="utf-8")
    for options, message in (
        ({"vocabulary_size": 2}, "vocabulary_size must lie in"),
        ({"sequence_length": 0}, "sequence_length must be >= 1"),
        ({"test_fraction": 0.0}, "test_fraction must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            text_domains({"talk": path}, **options)
    with pytest.raises(ValueError, match="at least one domain"):
        text_domains({})


def test_real_corpora(shared_data):
    """As many words as there should be, without their tags."""
    for name, low, high in (("switchboard", 55e3, 75e3), ("treebank", 75e3, 100e3)):
        words = sum(len(line.split()) for line in read_lines(shared_data / f"{name}.zip"))
        assert low < words < high
