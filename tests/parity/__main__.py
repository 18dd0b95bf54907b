"""`python -m tests.parity DIR [--only NAME,...]`: checks reference dumps; one line each; exit status 1 if any fails."""

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from tests.parity import families, harness  # noqa: F401  (importing `families` registers them)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the harness.

    Args:
        arguments: The command line, by default the process's own.

    Returns:
        The exit status: 0 if every dump passed, 1 if one failed or there was nothing to check.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder with reference dumps")
    parser.add_argument("--only", metavar="NAME,...", help="the names of the dumps to check, instead of all of them")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        print(f"{options.folder}: no such folder")
        return 1
    only = [] if options.only is None else options.only.split(",")
    try:
        paths = harness.select(harness.discover(options.folder), options.folder, only)
    except ValueError as error:
        print(error)
        return 1
    start, failed = time.monotonic(), 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # nearly all of the time is spent in XLA compiling
        for result in pool.map(functools.partial(_check, folder=options.folder), paths):
            failed += not result.passed
            print(result.line(), flush=True)
    print(f"{len(paths) - failed} of {len(paths)} dumps passed in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def _check(path: Path, folder: Path) -> harness.Result:
    with jax.default_matmul_precision(
        "highest"
    ):  # of float32 products, where an accelerator would round them; per thread
        return harness.check(path, harness.dump_name(path, folder))


if __name__ == "__main__":
    sys.exit(main())
