"""`import ssmjax` is light: it loads nothing heavy and adds little to importing jax and flax."""

import subprocess
import sys

HEAVY = (
    "jax.experimental.pallas",
    "matplotlib",
    "orbax",
    "PIL",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "tyro",
)
MAX_ADDED_SECONDS = 0.3


def run(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy():
    program = f"""
import sys, jax, flax.nnx
before = set(sys.modules)
import ssmjax, vlmjax
print(*sorted(name for name in set(sys.modules) - before if name.startswith({HEAVY!r})))
"""
    assert run(program) == ""


def test_import_adds_little_time():
    program = """
import time, jax, flax.nnx
start = time.perf_counter()
import ssmjax
print(time.perf_counter() - start)
"""
    times = []
    while len(times) < 5 and min(times, default=MAX_ADDED_SECONDS) >= MAX_ADDED_SECONDS:
        times.append(float(run(program)))  # again where the machine was busy, or the byte code had to be written
    assert min(times) < MAX_ADDED_SECONDS, f"`import ssmjax` adds {min(times):.2f} s to importing jax and flax"
