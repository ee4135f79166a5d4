"""Every part still computes what record.py has kept of it."""

import jax
import jax.numpy as jnp
import pytest

import record


@pytest.mark.parametrize("name", [n for n in record.NAMES if not n.startswith("algorithm/")])
def test_a_part_computes_what_is_recorded(name):
    """Algorithms: test_contracts.py."""
    record.assert_recorded(name)


def test_the_record_has_no_other_rows():
    assert record.read_parts().keys() <= set(record.NAMES), "run `python tests/record.py`"


def test_a_changed_part_deviates():
    """The test above can fail: one number by little, one less, one in another place."""
    recorded = record.read_parts()["aggregator/mean"]
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
