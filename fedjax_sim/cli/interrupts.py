"""What signals do while a run goes on, and while its results are written."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside, Ctrl-C and what a scheduler sends before it kills (SIGTERM) act alike.

    `simulate.run` delays them to where no round is lost.
    """
    with signal_handlers(
        {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: lambda number, frame: signal.raise_signal(signal.SIGINT),
        }
    ):
        yield


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Let no signal in the way of what must not be lost."""
    with signal_handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def signal_handlers(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Handle signals so inside the block. In another thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, before in previous.items():
            # None stands for a handler that is not Python's, which cannot be set again.
            signal.signal(number, signal.SIG_DFL if before is None else before)
