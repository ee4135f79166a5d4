"""Ctrl-C, kept from losing rounds that are done."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C to where `check` is called; a second one acts at once.

    A KeyboardInterrupt may arrive between any two steps of the interpreter, so it could lose a
    segment of rounds that was taken from the device but not stored yet. What a scheduler sends
    before it kills (SIGTERM) is handled alike.
    """
    asked = raised = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        message = b"\nstopping after the rounds under way; Ctrl-C again stops at once\n"
        os.write(2, message)  # printing is not safe inside a signal handler

    def check() -> None:
        nonlocal raised
        if asked and not raised:
            raised = True
            raise KeyboardInterrupt

    with signal_handlers(handle):
        yield check


@contextlib.contextmanager
def signal_handlers(handler: Any) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by `handler` inside the block."""
    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
