"""Where in a round something went wrong."""

import contextlib
from collections.abc import Iterator

from fedjax_sim.base import Array
from fedjax_sim.ops import checks


@contextlib.contextmanager
def stage(name: str, clients: Array | None = None) -> Iterator[None]:
    """Name the stage, and the clients where they are known, in any exception that passes."""
    try:
        yield
    except Exception as error:
        who = ""
        if clients is not None and not checks.is_traced(clients):
            who = f" of client {clients.tolist()}"
        error.add_note(f"This happened in the round's stage: {name}{who}.")
        raise
