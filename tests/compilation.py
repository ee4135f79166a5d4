"""Compiling what is tested sooner."""

import contextlib
from collections.abc import Iterator

import jax


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
