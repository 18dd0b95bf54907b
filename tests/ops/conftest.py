"""Leaves out the tests of kernels that this version of jax cannot even trace."""

import jax

collect_ignore = [] if jax.__version_info__ >= (0, 10, 2) else ["test_selective_scan_mosaic.py"]
