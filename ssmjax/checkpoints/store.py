"""The store of training checkpoints: Orbax writes them in the background, a sha256 manifest says that they are good.

Orbax guarantees that a step is there as a whole or not at all, but not that the bytes it reads are those it wrote: most
flipped bits in its files load without a word. A step therefore counts as good only if every file has the sum listed in
its manifest, which is written after Orbax has finished, as the last file of the step.
"""

import errno
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssmjax.checkpoints.lock import FolderLock
from ssmjax.checkpoints.manifest import MANIFEST, verify_manifest, write_manifest
from ssmjax.errors import bad_argument
from ssmjax.paths import local_path

__all__ = ["CheckpointError", "CheckpointStore"]

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those there are can be trusted."""


class CheckpointStore:
    """Keeps the newest checkpoints of one run in one folder.

    Saves are asynchronous: `save` returns once the arrays are copied to the host. One save runs at a time. An older
    step is removed only after a newer one has its manifest, so that a crash at any moment leaves a good step behind.

    Args:
        directory: The folder, made if missing. Each step is a subfolder named by its number.
        keep: How many steps to keep; at least 1.

    Raises:
        ValueError: `keep` is less than 1, or the folder is not one of this machine.
        CheckpointError: Another process, or another store of this one, has the folder open.

    >>> import tempfile, jax.numpy as jnp
    >>> with CheckpointStore(tempfile.mkdtemp()) as store:
    ...     store.save(10, {"w": jnp.arange(3.0)}, {"seconds": 1.5})
    ...     tree, step, metadata = store.restore({"w": jnp.zeros(3)})
    >>> tree["w"].tolist(), step, metadata
    ([0.0, 1.0, 2.0], 10, {'seconds': 1.5})
    """

    def __init__(self, directory: str | Path, *, keep: int = 3) -> None:
        import orbax.checkpoint as ocp  # here, because it is slow to import

        if keep < 1:
            raise bad_argument("CheckpointStore", "keep", keep, "at least 1")
        self.directory = local_path("CheckpointStore", "directory", directory).absolute()
        self._keep = keep
        self._ocp = ocp
        self._lock = FolderLock(self.directory)
        if not self._lock.acquire():
            raise CheckpointError(
                f"{self.directory} is in use by another run. Two runs would remove each other's checkpoints: wait for "
                "it, stop it, or use another folder."
            )
        self._manager = self._open()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._damaged: set[int] = set()

    def save(self, step: int, tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Starts to save a step, once the save before it has finished.

        Every step newer than this one is discarded when it has finished: it is damaged, or of a run that was rewound.

        Args:
            step: The number of the step. A step of the same number is removed first: until this one has finished, the
                newest good step is an older one.
            tree: Any pytree of arrays. They may be donated as soon as this returns.
            metadata: What else to remember, as JSON can hold it.

        Raises:
            CheckpointError: The disk is too full, or the save before this one had failed.
        """
        self.wait()
        named = _named_leaves(tree)
        self._check_space(step, sum(leaf.nbytes for leaf in named.values()))
        record = {"metadata": dict(metadata or {}), "leaves": _signature(named)}
        items = self._ocp.args.Composite(
            arrays=self._ocp.args.StandardSave({name: x for name, x in named.items() if x.size}),
            record=self._ocp.args.JsonSave(record),
        )
        try:
            if step in self.steps():
                self._manager.delete(step)
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._save_error(step, error) from error
        self._pending = self._worker.submit(self._finish, step)

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, int, dict[str, Any]] | None:
        """Loads the newest good step into the structure, dtypes and shardings of a template.

        Each step that is damaged is reported with a warning, and the next newest is tried.

        Args:
            template: A pytree of arrays of the shapes, dtypes and shardings wanted. Its values are not used.
            step: The step to load, instead of the newest good one.

        Returns:
            The tree, its step and its metadata; None if no step was ever finished.

        Raises:
            CheckpointError: There are steps and none is good, or the one asked for is missing or damaged.
            ValueError: The step is of another model: its arrays differ from the template's.
        """
        self.wait()
        steps = self.steps()
        if step is not None and step not in steps:
            raise CheckpointError(f"There is no checkpoint of step {step} in {self.directory}; there are {steps}.")
        reports = []
        for candidate in [step] if step is not None else reversed(steps):
            fault = verify_manifest(self._folder(candidate), _label(candidate))
            if fault is None:
                return self._load(candidate, template)
            self._damaged.add(candidate)
            reports.append(f"step {candidate}: {fault}")
            logger.warning("Checkpoint %s is not used: %s.", self._folder(candidate), fault)
        # Only the save that was running when a process died can lack its manifest. If it was the first of all,
        # nothing is lost by starting anew; anything else is damage, and starting anew would hide it.
        if not steps or (step is None and len(steps) == 1 and not self._is_finished(steps[0])):
            for remnant in steps:  # or a second such death would leave two, which look like damage
                self._manager.delete(remnant)
            return None
        raise CheckpointError(
            f"No checkpoint in {self.directory} can be used ({'; '.join(reports)}). Copy an intact one there, or "
            "delete the folder (or start with `fresh=True`; on the command line, `--no-resume`) to begin anew."
        )

    def steps(self) -> list[int]:
        """Returns the steps that are there, finished or not, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the newest step that was finished, None without one; its sums are checked only by `restore`."""
        self.wait()
        return max(filter(self._is_finished, self.steps()), default=None)

    def clear(self) -> None:
        """Deletes every step."""
        self.wait()
        for step in self.steps():
            self._manager.delete(step)

    def wait(self) -> None:
        """Blocks until the running save has finished.

        Raises:
            CheckpointError: It failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the running save and ends the background threads."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            self._manager.close()
            self._lock.release()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _folder(self, step: int) -> Path:
        return self.directory / str(step)

    def _is_finished(self, step: int) -> bool:
        return (self._folder(step) / MANIFEST).is_file()

    def _open(self) -> Any:
        # Orbax is not to remove old steps: it would do so before the new one has its manifest.
        options = self._ocp.CheckpointManagerOptions(cleanup_tmp_directories=True)
        return self._ocp.CheckpointManager(self.directory, item_names=("arrays", "record"), options=options)

    def _finish(self, step: int) -> None:
        """Runs in the worker: writes the manifest when Orbax is done, then removes what is no longer needed."""
        try:
            self._manager.wait_until_finished()
            write_manifest(self._folder(step), _label(step))
            steps = self.steps()
            good = [s for s in steps if s <= step and s not in self._damaged - {step} and self._is_finished(s)]
            for stale in set(steps) - set(good[-self._keep :]):
                self._manager.delete(stale)
            self._damaged.clear()
        except Exception as error:
            # The manager would raise the same error at every later call; a new one also removes what was half written.
            self._manager = self._open()
            raise self._save_error(step, error) from error

    def _load(self, step: int, template: Any) -> tuple[Any, int, dict[str, Any]]:
        """Reads a verified step."""
        args = self._ocp.args
        record = self._manager.restore(step, args=args.Composite(record=args.JsonRestore()))["record"]
        wanted = _named_leaves(template)
        _check_signature(self._folder(step), record["leaves"], _signature(wanted))
        target = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x)) for n, x in wanted.items() if x.size}
        stored = self._manager.restore(step, args=args.Composite(arrays=args.StandardRestore(target)))["arrays"]
        leaves, structure = jax.tree.flatten(template)
        restored = [_like(leaf, stored.get(name)) for name, leaf in zip(wanted, leaves, strict=True)]
        return jax.tree.unflatten(structure, restored), step, record["metadata"]

    def _check_space(self, step: int, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            full = OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
            raise self._save_error(step, full)

    def _save_error(self, step: int, error: BaseException) -> CheckpointError:
        text = f"Step {step} could not be saved in {self.directory}: {error}. "
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            text += "The disk is full; free some space and run the same command again. "
        return CheckpointError(text + "The older checkpoints there were kept.")


def _label(step: int) -> str:
    return f"step {step}"


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _named_leaves(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path, with typed random keys as their raw words; independent of the containers' classes."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        named[jax.tree_util.keystr(path)] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return named


def _signature(named: Mapping[str, jax.Array]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in named.items()}


def _check_signature(folder: Path, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    if stored == wanted:
        return
    faults = [
        f"{name}: {stored.get(name, 'not in the checkpoint')} in the checkpoint, {wanted.get(name, 'nothing')} wanted"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    raise ValueError(
        f"Checkpoint {folder} is of another model or optimizer: {len(faults)} arrays differ ({'; '.join(faults[:8])}"
        f"{'; ...' if len(faults) > 8 else ''}). Use another folder, or start anew with "
        "`fresh=True` (on the command line, `--no-resume`)."
    )


def _sharding(x: Any) -> jax.sharding.Sharding:
    return x.sharding if isinstance(x, jax.Array) else jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _like(leaf: Any, value: jax.Array | None) -> jax.Array:
    """A restored array as the template's leaf is: a typed key where that is one, committed to the same devices.

    An array made by jit may be uncommitted and a restored one is committed, which would compile the step twice; whoever
    steps from both passes a committed template.
    """
    if value is None:  # nothing is stored of an array without elements
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), _sharding(leaf))
    if hasattr(leaf, "dtype") and _is_key(leaf):
        value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return jax.device_put(value, _sharding(leaf))
