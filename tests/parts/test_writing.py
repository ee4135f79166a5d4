"""Values and parts as text: read, written, and refused with the place."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_sim.parts.text import Call, parse, show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("-1e-3", -1e-3),
        ("+2", 2),
        ("1/4", 0.25),
        ("2 * (3 + 1) - 1", 7),
        ("true", True),
        ("True", True),
        ("none", None),
        ("None", None),
        ("adam", "adam"),
        (" adam ", "adam"),
        ("'adam'", "adam"),
        ("'2'", "2"),
        ("0, 1", (0, 1)),
        ("[0, 1]", (0, 1)),
        ("()", ()),
        ("{'a': 1, b: [2]}", {"a": 1, "b": (2,)}),
        ("optax.adam", "optax.adam"),
        ("data/patients.csv", "data/patients.csv"),
        ("a sentence, of words", "a sentence, of words"),
        ("%d.%m.%Y", "%d.%m.%Y"),
        ("2 ** 9", "2 ** 9"),
        ("mine:rule", "mine:rule"),
        ("rules/mine.py:rule", "rules/mine.py:rule"),
        ("mean()", Call("mean", (), {})),
        ("clip(0.5)", Call("clip", (0.5,), {})),
        ("f(a, [g(1), h], k=i(j=None))", Call("f", ("a", (Call("g", (1,), {}), "h")),
                                              {"k": Call("i", (), {"j": None})})),
        ("rules/mine.py:rule(share=0.2)", Call("rules/mine.py:rule", (), {"share": 0.2})),
        ("nnm('mine:rule'(2), num_byzantine=1)",
         Call("nnm", (Call("mine:rule", (2,), {}),), {"num_byzantine": 1})),
    ],
)  # fmt: skip
def test_what_is_read(text, value):
    found = parse(text)
    assert found == value and type(found) is type(value)
    assert parse(show(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("krum(2", r"cannot be read: '\(' was never closed"),
        ("krum)", "cannot be read: unmatched"),
        ("'adam", "cannot be read: unterminated"),
        (
            "f(lambda: 1)",
            r"'f\(lambda: 1\)' cannot be read: 'lambda: 1' is neither a value nor a part",
        ),
        ("[x for x in y]", "is neither a value nor a part"),
        ("f(**g)", "'g' is neither"),
        ("f(*g)", "is neither"),
        ("f()()", r"'f\(\)' is neither"),
        ("[1/0]", "it cannot be computed, division by zero"),
        ("f(-adam)", "'adam' is neither"),
        ("(2 ** 9)", "is neither"),
        ("f(b'x')", "is neither"),
        ("1(2)", "'1' is neither"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_nothing_is_evaluated(tmp_path):
    text = f"f(__import__('os').mkdir({str(tmp_path / 'made')!r}))"
    with pytest.raises(ValueError, match="neither"):
        parse(text)
    assert [*tmp_path.iterdir()] == []


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=6).filter(
    lambda name: isinstance(parse(name), str) and name.isidentifier()
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | NAMES
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=2)
        | st.builds(
            Call, NAMES | NAMES.map("mine:{}".format), st.lists(inner, max_size=2).map(tuple),
            st.dictionaries(NAMES, inner, max_size=2),
        )
    ),
    max_leaves=8,
)  # fmt: skip


@given(VALUES)
def test_what_is_written_is_read_again(value):
    assert parse(show(value)) == value
