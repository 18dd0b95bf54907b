"""Runs the tests that need a GPU and records how they ended: `python -m tests.gpu` (`make test-gpu`)."""

import collections
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the card

import pytest

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"


class Outcomes:
    """Counts how tests ended."""

    def __init__(self):
        self.counts, self.failed = collections.Counter(), []

    def pytest_runtest_logreport(self, report):
        """Counts a test once: when it ran, or when it could not be set up."""
        if report.when == "call" or report.outcome == "failed":
            self.counts[report.outcome] += 1
            if report.outcome == "failed":
                self.failed.append(report.nodeid)


def main(arguments: list[str]) -> int:
    """Runs pytest on this folder with more of its arguments; writes `benchmarks/results/<device>_tests.json`."""
    outcomes = Outcomes()
    code = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", "-q", "tests/gpu", *arguments], plugins=[outcomes])
    from benchmarks.ops import stamp  # after pytest, whose hooks want to see the library imported

    record = stamp()
    record |= {"command": "make test-gpu", "passed": outcomes.counts["passed"], "failed": sorted(outcomes.failed)}
    out = pathlib.Path(os.environ.get("SSMJAX_RESULTS", RESULTS)) / f"{record['device']}_tests.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"Wrote {out}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
