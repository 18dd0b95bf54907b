"""What is saved is restored to the bit; what was damaged is never loaded, and the newest good step is."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax.checkpoints import store as store_module
from ssmjax.checkpoints.manifest import MANIFEST
from ssmjax.checkpoints.store import CheckpointError, CheckpointStore

Pair = namedtuple("Pair", "left right")


def tree_of(seed: int):
    rng = np.random.default_rng(seed)
    return {
        "params": {"blocks.0.A_log": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "größe/x y": jnp.float32(seed)},
        "low": jnp.asarray(rng.normal(size=(5,)), jnp.bfloat16),
        "pair": Pair(jnp.arange(seed, seed + 6), (jnp.bool_(True), None)),
        "empty": jnp.zeros((0, 2)),
        "complex": jnp.asarray(rng.normal(size=2) + 1j, jnp.complex64),
        "key": jax.random.key(seed),
    }


def assert_same(got, want):
    chex.assert_trees_all_equal_structs(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the steps 10 and 20, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    with CheckpointStore(folder) as store:
        for step in (10, 20):
            store.save(step, tree_of(step), {"seconds": step / 2})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def restore(folder, step=None):
    with CheckpointStore(folder) as store:
        return store.restore(tree_of(0), step)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_saved_is_restored(saved):
    tree, step, metadata = restore(saved)
    assert (step, metadata) == (20, {"seconds": 10.0})
    assert_same(tree, tree_of(20))
    assert all(leaf.committed for leaf in jax.tree.leaves(tree))
    tree, step, _ = restore(saved, 10)
    assert step == 10
    assert_same(tree, tree_of(10))


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda x: x * 1.5 + 1.0, donate_argnums=0)
    with CheckpointStore(tmp_path, keep=20) as store:
        x = jax.device_put(jnp.arange(2.0**16), jax.devices()[0])
        for i in range(8):
            want = np.array(x)
            store.save(i, {"x": x})
            x = step(x)
            np.testing.assert_array_equal(store.restore({"x": x}, i)[0]["x"], want)


def test_an_empty_folder_has_nothing(tmp_path):
    with CheckpointStore(tmp_path / "new" / "run") as store:
        assert store.restore(tree_of(0)) is None
        assert store.latest_step() is None


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5, 9])
def test_how_many_are_kept(tmp_path, keep):
    with CheckpointStore(tmp_path, keep=keep) as store:
        for step in range(1, 7):
            store.save(step, {"x": jnp.float32(step)})
            store.wait()
            assert store.steps() == list(range(1, step + 1))[-keep:]


def test_rewinding(tmp_path):
    with CheckpointStore(tmp_path, keep=2) as store:
        for step in (1, 2, 3, 4):
            store.save(step, {"x": jnp.float32(step)})
        store.wait()
        assert store.steps() == [3, 4]
        store.save(4, {"x": jnp.float32(40)})  # again
        assert float(store.restore({"x": jnp.float32(0)})[0]["x"]) == 40
        store.save(3, {"x": jnp.float32(30)})  # the run was rewound
        assert store.latest_step() == 3
        store.clear()
        assert store.restore({"x": jnp.float32(0)}) is None


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])


def zero_tail(path, rng):
    content = path.read_bytes()
    kept = int(rng.integers(len(content)))
    zeros = bytes(len(content) - kept)
    if content[kept:] == zeros:
        return flip(path, rng)
    path.write_bytes(content[:kept] + zeros)


def delete(path, rng):
    path.unlink()


def append(path, rng):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, truncate, zero_tail, delete, append])
def test_no_damage_to_any_file_is_loaded(saved, tmp_path, caplog, damage):
    rng = np.random.default_rng(0)
    for i, original in enumerate(files_of(saved / "20")):
        folder = shutil.copytree(saved, tmp_path / str(i))
        name = original.relative_to(saved / "20")
        damage(folder / "20" / name, rng)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="ssmjax"):
            tree, step, metadata = restore(folder)
        assert (step, metadata) == (10, {"seconds": 5.0}), name
        assert_same(tree, tree_of(10))
        (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("ssmjax")]
        assert f"{folder / '20'} is not used" in message
        # A manifest that still parses blames the file that it names wrongly.
        assert name.name in message or name.name == MANIFEST


def test_no_flipped_bit_of_the_manifest_is_overlooked(folder):
    path = folder / "20" / MANIFEST
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert store_module.verify_manifest(folder / "20", "step 20") is not None
    path.write_bytes(content)
    assert store_module.verify_manifest(folder / "20", "step 20") is None


def test_swapped_files_and_steps(saved, tmp_path):
    names = [path.relative_to(saved / "20") for path in files_of(saved / "20")]
    contents = {name: (saved / "20" / name).read_bytes() for name in names}
    for i, (one, other) in enumerate(zip(names, names[1:], strict=False)):
        if contents[one] != contents[other]:
            folder = shutil.copytree(saved, tmp_path / str(i))
            (folder / "20" / one).write_bytes(contents[other])
            (folder / "20" / other).write_bytes(contents[one])
            assert restore(folder)[1] == 10
    folder = shutil.copytree(saved, tmp_path / "steps")
    os.rename(folder / "10", folder / "30")
    assert restore(folder)[1] == 20


def test_a_foreign_file_is_noticed(folder):
    (folder / "20" / "arrays" / "d" / "extra").write_text("x")
    assert restore(folder)[1] == 10


def test_all_damaged_is_an_error_that_says_what_to_do(folder):
    for step in (10, 20):
        flip(folder / str(step) / "arrays" / "_METADATA", np.random.default_rng(step))
    with pytest.raises(
        CheckpointError, match=r"step 20: arrays/_METADATA .*step 10: .*delete the folder .*--no-resume"
    ):
        restore(folder)


def test_the_one_asked_for_is_damaged_or_missing(folder):
    flip(folder / "20" / "arrays" / "_METADATA", np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="step 20: arrays/_METADATA"):
        restore(folder, 20)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15 in .*; there are \[10, 20\]"):
        restore(folder, 15)


def test_a_save_cut_off_before_its_manifest(folder, caplog):
    (folder / "20" / MANIFEST).unlink()
    assert restore(folder)[1] == 10
    # If it was the first of all, nothing is lost, and what it left goes.
    shutil.rmtree(folder / "10")
    shutil.copytree(folder / "20", folder.parent / "remnant")
    with caplog.at_level(logging.WARNING, logger="ssmjax"):
        assert restore(folder) is None
    assert "manifest.json is missing" in caplog.text
    assert not (folder / "20").exists()
    # Two without a manifest cannot come from one cut-off save.
    for step in ("20", "30"):
        shutil.copytree(folder.parent / "remnant", folder / step)
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        restore(folder)


def test_a_save_cut_off_within_orbax(folder):
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp")
    (folder / "30.orbax-checkpoint-tmp" / MANIFEST).unlink()
    assert restore(folder)[1] == 20
    deadline = time.monotonic() + 30  # Orbax removes it in the background
    while (folder / "30.orbax-checkpoint-tmp").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_damaged_steps_go_once_a_newer_one_is_good(folder):
    flip(folder / "20" / "arrays" / "_METADATA", np.random.default_rng(0))
    with CheckpointStore(folder, keep=2) as store:
        assert store.restore(tree_of(0))[1] == 10
        assert store.steps() == [10, 20]
        store.save(30, tree_of(30))
        store.wait()
        assert store.steps() == [10, 30]
        assert_same(store.restore(tree_of(0))[0], tree_of(30))


def test_a_damaged_step_is_replaced_when_the_run_gets_there_again(folder):
    flip(folder / "20" / "arrays" / "_METADATA", np.random.default_rng(0))
    with CheckpointStore(folder, keep=1) as store:
        assert store.restore(tree_of(0))[1] == 10
        store.save(20, tree_of(20))
        assert_same(store.restore(tree_of(0))[0], tree_of(20))
        assert store.steps() == [20]


def test_another_model(folder):
    template = tree_of(0)
    template["low"] = template["low"].astype(jnp.float32)
    template["more"] = jnp.zeros(2)
    del template["complex"]
    with CheckpointStore(folder) as store, pytest.raises(ValueError, match="3 arrays differ") as raised:
        store.restore(template)
    for part in ("bfloat16[5] in the checkpoint, float32[5] wanted", "['more']: not in the checkpoint", "--no-resume"):
        assert part in str(raised.value)


def test_keep_is_checked(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        CheckpointStore(tmp_path, keep=0)


def test_a_disk_known_to_be_full(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage)
    with CheckpointStore(folder) as store:
        with pytest.raises(CheckpointError, match="Step 30 could not be saved .*disk is full; free some space"):
            store.save(30, tree_of(30))
        assert store.restore(tree_of(0))[1] == 20


def test_a_disk_that_fills_up_before_the_manifest(folder, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with CheckpointStore(folder, keep=1) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "write_manifest", full)
            store.save(30, tree_of(30))
            with pytest.raises(CheckpointError, match="Step 30 .*disk is full.*older checkpoints there were kept"):
                store.wait()
        assert store.restore(tree_of(0))[1] == 20
        store.save(30, tree_of(30))
        assert store.restore(tree_of(0))[1] == 30


# A real fault below Orbax: the system refuses to let any file grow beyond 1 MB.
FILE_LIMIT = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from ssmjax.checkpoints.store import CheckpointError, CheckpointStore
big = {"x": np.random.default_rng(0).normal(size=2**20).astype(np.float32)}
store = CheckpointStore(sys.argv[1])
store.save(10, big)
store.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    store.save(20, big)
    store.wait()
except CheckpointError as error:
    print("ERROR", error)
tree, step, _ = store.restore(big)
print("STEP", step, (np.asarray(tree["x"]) == big["x"]).all())
store.close()
"""


def test_a_write_that_the_system_refuses(tmp_path):
    command = [sys.executable, "-c", FILE_LIMIT, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ERROR Step 20 could not be saved" in done.stdout, done.stderr
    assert "The older checkpoints there were kept." in done.stdout
    assert "STEP 10 True" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_folder_has_one_store_at_a_time(tmp_path):
    with CheckpointStore(tmp_path):
        with pytest.raises(CheckpointError, match="in use by another run"):
            CheckpointStore(tmp_path)
    CheckpointStore(tmp_path).close()
