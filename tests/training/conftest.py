"""The toy step compiles in about a second, and most tests run the very same one."""

import jax
import pytest


@pytest.fixture(autouse=True)
def cache_every_program():
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
