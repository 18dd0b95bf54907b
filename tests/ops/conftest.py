"""Leaves out the tests of GPU kernels where this jax is too old to have them (see `_compat.lacks_mosaic_gpu`)."""

import jax

collect_ignore = ["test_selective_scan_mosaic.py"] if jax.__version_info__ < (0, 10, 2) else []
