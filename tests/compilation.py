"""Compiling what is tested sooner."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.monitoring
import jaxlib.version
from jax._src import compiler  # only here can options be given for all programs of a process

from fedjax_sim.ops import keys, permutation

# Neither changes what is computed. Before 0.11, XLA could still make code for CPUs in an older way,
# which is quicker; an option that it does not know ends the process.
_XLA_OPTIONS: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 1}
if jaxlib.version.__version_info__ < (0, 11):
    _XLA_OPTIONS["xla_cpu_use_fusion_emitters"] = False

QUICK_ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": " ".join(f"--{name}={int(value)}" for name, value in _XLA_OPTIONS.items()),
}
"""What `quick` is for a process of its own."""


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Compile without optimisation: in a third of the time, to slower programs.

    For programs that run briefly and whose results do not hang on how they are compiled. Tests run
    in it (conftest.py); those of speed, of memory, of bits and of the numerics of `ops` are marked
    `optimised`.
    """

    def rolled(*args: Any, unroll: bool = False, **given: Any) -> Any:
        return permute(*args, unroll=False, **given)

    def options(*args: Any, env_options_overrides: dict | None = None, **named: Any) -> Any:
        given = _XLA_OPTIONS | (env_options_overrides or {})
        return usual(*args, env_options_overrides=given, **named)

    permute, usual = permutation.permute, compiler.get_compile_options
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with (
            mock.patch.object(compiler, "get_compile_options", options),
            # The same permutation by a loop, which is a quarter of what a round compiles.
            mock.patch.object(permutation, "permute", rolled),
        ):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def only_draws_jitted() -> Iterator[None]:
    """Leave compiled what rounds draw by, a thousand operations, where `jax.disable_jit` is on."""

    def still(compiled: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            with jax.disable_jit(False):
                return compiled(*args, **options)

        return call

    with contextlib.ExitStack() as stack:
        for module, name, compiled in (
            (keys, "_threefry", keys._threefry),
            (permutation, "words", jax.jit(permutation.words)),
            (permutation, "permute", jax.jit(permutation.permute, static_argnames="unroll")),
        ):
            stack.enter_context(mock.patch.object(module, name, still(compiled)))
        yield


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
