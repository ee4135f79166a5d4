"""Strict settings for every test, and what tests share."""

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
# Tests neither read nor write what the user's own programs remember. All processes of one run
# share what they remember and what they compile: much of it is the same.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fedjax_sim_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["XDG_CACHE_HOME"], "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Nobody reads where in Python an operation of a test comes from; to look that up for each takes a
# twentieth of the suite's time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import hypothesis
import jax
import numpy as np
import pytest

import compilation

# An array of lower rank must be broadcast on purpose: [C] + [C, D] is a mistake, not a convenience.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Raw uint32 keys look like data, so a mix-up goes unseen; typed keys (jax.random.key) refuse it.
jax.config.update("jax_legacy_prng_key", "error")

# Everywhere the same examples are drawn as in CI, each time: when one fails, a change is to blame.
# The profile of CI also forgives a slow first example, which compiles. The thorough one draws at
# random (scripts/property_tests); like the other it remembers no failures from run to run, so that
# what fails belongs to its seed.
_AS_IN_CI = hypothesis.settings.get_profile("ci")
hypothesis.settings.register_profile("fedjax_sim", _AS_IN_CI)
hypothesis.settings.register_profile("thorough", _AS_IN_CI, derandomize=False)
hypothesis.settings.load_profile("fedjax_sim")


# Tracing makes millions of objects, few of them garbage that only a collection finds. With Python's
# own thresholds a fifth of the suite's time went to looking for it.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests of the whole; refuse names that differ from process to process.

    Workers must collect the same names. The files outside the folders take longest, and the last
    one to be handed out should be short, or the other workers wait for it.
    """
    items.sort(key=lambda item: len(item.path.parts))
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"give these tests ids without addresses: {unstable}")


def pytest_unconfigure() -> None:
    """Forget with the last process."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Compile without optimisation, unless a test says that it matters, or runs on a GPU.

    What was compiled the other way is forgotten: bits of the two may differ.
    """
    global _compiled_quickly
    quickly = item.get_closest_marker("optimised") is None and jax.default_backend() == "cpu"
    if quickly is not _compiled_quickly:
        jax.clear_caches()
        _compiled_quickly = quickly
    with compilation.quick() if quickly else contextlib.nullcontext():
        return (yield)


_compiled_quickly: bool | None = None


@pytest.fixture(scope="session")
def key() -> jax.Array:
    """A fixed JAX key."""
    return jax.random.key(20190615)


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(20190615)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real data sets too large to ship; without it the tests that ask for it skip."""
    named = os.environ.get("FEDJAX_SIM_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"FEDJAX_SIM_DATA names {named}, which is not a folder")
    pytest.skip("needs data that is not shipped: name its folder in FEDJAX_SIM_DATA")


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for pictures, with nothing drawn, where a run's numbers are what is looked at."""
    from matplotlib.figure import Figure

    def save(self: Figure, to: Path | BytesIO, **options: Any) -> None:
        if isinstance(to, Path):
            to.write_bytes(b"")
        elif options["format"] == "svg":
            to.write(b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"/>')

    monkeypatch.setattr(Figure, "savefig", save)
