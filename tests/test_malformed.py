"""Malformed inputs give a right result or a clear error: 2,000 of them, the same every time."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

import malformed
from fedjax_sim.ops import checks
from malformed import Case, complaint, trial

MODULES = malformed.modules()
NUMBER = 2000 // len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_malformed_input_is_refused_clearly_or_handled(name: str) -> None:
    """scripts/malformed tries more, and prints all that is said."""
    faults = [
        f"{i} [{case.name}]: {outcome.fault}"
        for i, (case, outcome) in enumerate(malformed.trials(MODULES[name], 2026, NUMBER))
        if outcome.fault
    ]
    assert not faults, f"{len(faults)} of {NUMBER}:\n" + "\n".join(faults[:20])


# What the harness accepts, and what it does not.


def test_a_result_and_a_clear_error_are_accepted() -> None:
    assert trial(Case("", lambda: 3)) == ("", "")
    outcome = trial(Case("", lambda: checks.positive_int("rounds", 0)))
    assert outcome == ("rounds must be >= 1, got 0.", "")
    assert trial(Case("", Path("/no/where").read_text)).fault == ""  # the system names the file


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (lambda: {}["a"], "KeyError"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: int("x"), "ValueError that the package did not raise"),
        (lambda: checks.positive_int(), "TypeError that the package did not raise"),
        (lambda: checks.in_range("x", 1, "0"), "TypeError that the package did not raise"),
        (lambda: checks.positive_int("x", 0, hint=repr(int)), "shows internals"),
        (lambda: checks.one_of("x", "\x1b[31m", ["\x1b"], hint="\x1b"), "control characters"),
        (lambda: checks.one_of("x", 3, [4], hint="x" * 5000), "characters long"),
        (lambda: np.zeros(2**34), "MemoryError"),
        (lambda: time.sleep(5), "took more than 0.2 seconds"),
    ],
)
def test_what_is_not_accepted(call, fault) -> None:
    assert re.search(fault, trial(Case("", call), seconds=0.2).fault)


def test_what_cannot_be_read_is_not_accepted() -> None:
    assert "never raised" not in complaint(malformed.Refused("--alpha must be a number."))
    assert "characters long" in complaint(malformed.Refused("no."))


def test_a_seed_gives_the_same_cases() -> None:
    def names(seed: int) -> list[str]:
        return [case.name for case, _ in malformed.trials(MODULES["toml"], seed, 5)]

    assert names(1) == names(1) != names(2)
