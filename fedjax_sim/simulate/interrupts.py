"""Ctrl-C, kept from losing rounds that are done."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class DeferredInterrupt:
    """Notes the first Ctrl-C inside a `with` block; a second one raises KeyboardInterrupt at once.

    A KeyboardInterrupt may arrive between any two steps of the interpreter, so it could part the
    state of a run from the record of its rounds. Whoever runs the rounds looks at `asked` where
    both agree.

    Python hands signals to the main thread alone: in another thread, or where Ctrl-C is ignored,
    this does nothing. A handler other than Python's own gets the signal after the block.

    asked: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "DeferredInterrupt":
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            if self.asked and self._before is not signal.default_int_handler:
                self._before(signal.SIGINT, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        message = b"\nstopping after the rounds under way; Ctrl-C again stops at once\n"
        os.write(2, message)  # printing is not safe inside a signal handler
