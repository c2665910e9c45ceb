"""Set-up of all tests, before polycstr_jax is imported anywhere."""

import pathlib

import beartype
import jax
import jaxtyping
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs other people's code in its own environment")


def check_signature(function):
    """Check shapes and types of calls, but not of dataclasses: JAX fills these pytrees with
    tracers, axes and dtypes too."""
    return function if function.__name__ == "__init__" else beartype.beartype(function)


jaxtyping.install_import_hook("polycstr_jax", f"{__name__}.check_signature")


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """What a module compiled goes with it: LLVM aborts once a process has mapped too many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_to_compile():
    """For modules that compile much and compute little: compilation takes half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked():
    """For tests of bad input: our own errors, not those of the type checker above."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    """Runs a test in both precisions, whatever JAX_ENABLE_X64 says."""
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def double():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def golden():
    """Exact solutions of the published equations; tests/data/README.md says what is what."""
    with np.load(ROOT / "tests" / "data" / "published_simulator.npz") as arrays:
        return {name: arrays[name] for name in arrays}
