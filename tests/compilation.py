"""Compiling what is tested sooner."""

import contextlib
from collections.abc import Iterator

import jax
import jax.monitoring


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Compile without optimisation: in little more than half the time, to slower programs.

    For programs that run briefly and whose results do not hang on how they are compiled; not for
    tests of speed, of memory, or of bits. Usable as a decorator.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def counted() -> Iterator[list[float]]:
    """Collect how long every program took that XLA compiles inside, or reads from its cache."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
