"""Every part still computes what record.py has kept of it."""

import jax
import jax.numpy as jnp
import pytest

import record


@pytest.fixture(scope="module")
def parts():
    return record.read_parts()


@pytest.mark.parametrize("name", record.NAMES)
def test_a_part_computes_what_is_recorded(name, parts):
    assert name in parts, "this row is not in the record: run `python tests/record.py --only ROW`"
    largest, place = record.deviation(record.compute_part(name), parts[name])
    assert largest <= record.LOOSE.get(name, record.PARTS_TOLERANCE), place


def test_the_record_has_no_other_rows(parts):
    assert parts.keys() <= set(record.NAMES), "run `python tests/record.py`"


def test_a_changed_part_deviates(parts):
    """The test above can fail: one number by little, one less, one in another place."""
    recorded = parts["aggregator/mean"]
    place, value = next(iter(recorded.items()))
    assert record.deviation(recorded, recorded)[0] == 0
    for changed in (
        recorded | {place: value + 2 * record.PARTS_TOLERANCE},
        recorded | {place: value[:-1]},
        recorded | {"elsewhere": value},
        recorded | {place: value * float("nan")},
        {},
    ):
        assert record.deviation(changed, recorded)[0] > record.PARTS_TOLERANCE


def test_a_nan_on_the_way_of_a_healthy_run_raises(monkeypatch):
    def compute(row):
        return {"x": jax.jit(lambda: jnp.zeros(2) / row)()}

    monkeypatch.setitem(record.KINDS, "quotient", ({"one": 1.0, "none": 0.0}, compute))
    assert record.compute_part("quotient/one")["x"].tolist() == [0, 0]
    with pytest.raises(FloatingPointError, match="nan"):
        record.compute_part("quotient/none")
