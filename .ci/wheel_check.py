"""Checks a built wheel: `contents WHEEL` looks into the file, `use` runs in an environment that holds nothing else."""

import subprocess
import sys
import zipfile

HEAVY = ("torch", "tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "sklearn", "PIL", "safetensors")


def contents(wheel: str) -> None:
    """The wheel holds the two packages, the typing marker and the license, and nothing else at the top level."""
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"ssmjax", "vlmjax"}, f"top-level names in the wheel: {sorted(packages)}"
    assert "ssmjax/py.typed" in names, "ssmjax/py.typed is missing"
    assert any(name.endswith("licenses/LICENSE") for name in names), "the license is missing"
    print(f"   {len(names)} files, packages {sorted(packages)}")


def added_seconds() -> float:
    """What `import ssmjax` adds to importing jax and flax, in a fresh interpreter; the best of three."""
    program = (
        "import time, jax, flax.nnx; start = time.perf_counter(); import ssmjax; print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    return min(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3))


def use() -> None:
    """The package imports without a warning, loads nothing heavy, and computes."""
    import jax.numpy as jnp

    import ssmjax

    loaded = [name for name in HEAVY if name in sys.modules]
    assert not loaded, f"`import ssmjax` loaded {loaded}"
    assert "site-packages" in ssmjax.__file__, f"not the installed package: {ssmjax.__file__}"

    model = ssmjax.create_model("vim_nano", num_classes=10)
    logits = model(jnp.zeros((2, *model.config.size, model.config.in_channels)))
    assert logits.shape == (2, 10) and bool(jnp.isfinite(logits).all())
    print(f"   ssmjax {ssmjax.__version__}: vim_nano forward {logits.shape} {logits.dtype}, all finite")

    added = added_seconds()
    assert added < 0.3, f"`import ssmjax` adds {added:.2f} s"
    print(f"   import ssmjax adds {1000 * added:.0f} ms to importing jax and flax")


if __name__ == "__main__":
    {"contents": contents, "use": use}[sys.argv[1]](*sys.argv[2:])
