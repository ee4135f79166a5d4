"""Strict settings for every test, and what tests share."""

import os
import tempfile
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
# Tests neither read nor write what the user's own programs remember.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fedjax_sim_tests_")

import hypothesis
import jax
import numpy as np
import pytest

# An array of lower rank must be broadcast on purpose: [C] + [C, D] is a mistake, not a convenience.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Raw uint32 keys look like data, so a mix-up goes unseen; typed keys (jax.random.key) refuse it.
jax.config.update("jax_legacy_prng_key", "error")

# Compilation makes the first example slow, hence no deadline. CI draws the same examples each time.
hypothesis.settings.register_profile(
    "fedjax_sim", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("fedjax_sim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse test names that differ from process to process: workers must collect the same."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"give these tests ids without addresses: {unstable}")


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
