"""Compiled programs that outlive the process."""

import logging
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from ssmjax.paths import local_path

__all__ = ["enable_compilation_cache"]

logger = logging.getLogger(__name__)


def enable_compilation_cache(directory: str | Path | None = None) -> Path:
    """Keeps what XLA compiles on disk, so that a restarted run starts in seconds.

    It also makes a resumed run use the very program of the first one, where compiling anew could choose, on a GPU,
    other kernels with other rounding.

    Args:
        directory: The folder. By default the one jax is configured with (`JAX_COMPILATION_CACHE_DIR`), else
            `ssmjax/xla` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`).

    Returns:
        The folder.

    >>> enable_compilation_cache() == Path(jax.config.jax_compilation_cache_dir)
    True
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssmjax" / "xla"
    chosen = local_path(
        "enable_compilation_cache", "directory", directory or jax.config.jax_compilation_cache_dir or default
    )
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    compilation_cache.reset_cache()  # jax decides once, at the first compilation, whether there is a cache
    logger.info("Compiled programs are kept in %s.", chosen)
    return chosen
