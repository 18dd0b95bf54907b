"""Batches come in order, one ahead; the compilation cache goes where it is told."""

import threading

import jax
import pytest

from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.prefetch import Prefetcher


def test_order_and_one_ahead():
    made, caller = [], threading.get_ident()

    def batch_fn(step):
        assert threading.get_ident() != caller
        made.append(step)
        return {"x": step}

    with Prefetcher(batch_fn, 2, 6) as batches:
        for step in range(2, 6):
            assert int(batches.next()["x"]) == step
            assert len(made) <= step  # this one and one ahead, counted from 2
        with pytest.raises(StopIteration, match="after that of step 5"):
            batches.next()
    assert made == [2, 3, 4, 5]


def test_an_unfinished_run_leaves_no_thread():
    before = threading.active_count()
    with Prefetcher(lambda step: {"x": step}, 0, 1000) as batches:
        batches.next()
    assert threading.active_count() == before


@pytest.fixture
def cache_options():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    values = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in values.items():
        jax.config.update(name, value)
    enable_compilation_cache(values["jax_compilation_cache_dir"])
    jax.config.update(names[1], values[names[1]])


def test_the_compilation_cache_is_filled(tmp_path, monkeypatch, cache_options):
    assert enable_compilation_cache(tmp_path / "cache") == tmp_path / "cache"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x * 3 + 1)(2.0)
    assert list((tmp_path / "cache").iterdir())
    assert enable_compilation_cache() == tmp_path / "cache"  # what is configured stays
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert enable_compilation_cache() == tmp_path / "home" / "ssmjax" / "xla"
