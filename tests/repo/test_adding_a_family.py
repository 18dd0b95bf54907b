"""The walk-through "adding a family" as it stands, in a package outside of the tree and a process of its own."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.repo.sources import ROOT

PAGE = ROOT / "docs" / "adding_a_family.md"

CHECK = """
import pathlib, runpy
import jax, numpy as np
runpy.run_path("use.py")

import leaky.average, leaky.parity
from ssmjax.layers import registered_layers
from ssmjax.ops import registered_ops
from tests.parity import harness

(op,) = [op for op in registered_ops() if op.name == "leaky_average"]
(args, options) = op.example(jax.random.key(0))
for implementation in op.implementations:
    y = op.function(*args, **options, implementation=implementation)
    np.testing.assert_allclose(y, leaky.average.reference(*args), atol=1e-6)
assert "LeakyAverage" in [layer.name for layer in registered_layers()]

for name in ("right", "wrong"):
    result = harness.check(pathlib.Path("dumps") / f"{name}.npz", name)
    print(result.line())
    assert result.passed == (name == "right"), result.line()
"""


def original(weights, x):
    """The toy's original, in numpy: channels first, blocks that are numbered."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    h = linear("rows", np.moveaxis(x, 1, -1).reshape(len(x), x.shape[2], -1))
    for i in range(2):
        normal = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        normal = normal * weights[f"blocks.{i}.norm.weight"] + weights[f"blocks.{i}.norm.bias"]
        decay, average, state = 1 / (1 + np.exp(-weights[f"blocks.{i}.decay"])), [], 0
        for t in range(h.shape[1]):
            state = decay * state + (1 - decay) * normal[:, t]
            average.append(state)
        y = np.stack(average, 1)
        gelu = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        h = h + linear(f"blocks.{i}.fc", gelu)
    return linear("head", h.mean(1))


def write_dumps(folder):
    random = np.random.default_rng(0)
    shapes = {"rows.weight": (6, 8), "rows.bias": (6,), "head.weight": (5, 6), "head.bias": (5,)}
    for i in range(2):
        shapes |= {f"blocks.{i}.{name}": (6,) for name in ("norm.weight", "norm.bias", "decay", "fc.bias")}
        shapes[f"blocks.{i}.fc.weight"] = (6, 6)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = random.normal(size=(3, 2, 4, 4)).astype(np.float32)
    logits = original(weights, x).astype(np.float32)
    folder.mkdir()
    config = {"family": "leaky", "image_size": 4, "channels": 2, "labels": 5, "width": 6, "layers": 2}
    for name, out in (("right", logits), ("wrong", logits + np.float32(1e-2))):
        arrays = {"in/x": x, "out/logits": out} | {f"param/{name}": weight for name, weight in weights.items()}
        np.savez(folder / f"{name}.npz", **arrays)
        (folder / f"{name}.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_the_walk_through_runs_from_outside_the_tree(tmp_path):
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = [name for name, _ in blocks]
    assert names == [*(f"leaky/{name}.py" for name in ("average", "layer", "model", "parity", "experiment")), "use.py"]
    (tmp_path / "leaky").mkdir()
    (tmp_path / "leaky" / "__init__.py").touch()
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    write_dumps(tmp_path / "dumps")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", CHECK]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "LeakyClassifier: (1, 16, 16, 1) float32 -> (1, 3) float32" in run.stdout
    assert (tmp_path / "experiments" / "results").is_dir()


def test_at_most_six_files_are_edited_inside_the_tree():
    edits = re.findall(r"^\| `(\S+)` \|", PAGE.read_text(encoding="utf-8").partition("## Inside the tree")[2], re.M)
    assert 1 <= len(edits) <= 6
    assert [name for name in edits if not (ROOT / name).is_file()] == []
