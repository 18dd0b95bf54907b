"""Runs the bodies of the Mosaic GPU kernels in numpy, one warpgroup at a time, for tests without a GPU.

What a GPU may do late or early happens at the worst time here: a copy to shared memory overwrites at once, a copy from
it reads only when it is waited for. A warpgroup runs until it must wait for another; their order is a parameter. What
stands for instructions of the tensor cores and the layouts of registers is simulated by what it computes.
"""

import contextlib
import threading
import types

import jax.numpy as jnp
import numpy as np

from ssmjax.ops.selective_scan.mosaic.plan import CHANNELS

__all__ = ["simulated"]

PADDING = 512
"""Steps after the sequence's end that a tile may reach."""

TIMED = ("x", "dt", "z", "dy", "B", "C", "y", "dx", "ddt", "dz")


class Ref:
    """An array in memory; `at` gives views."""

    def __init__(self, array):
        self.array = array

    @property
    def at(self):
        return _At(lambda index: Ref(self.array[index]))

    @property
    def dtype(self):
        return self.array.dtype

    def __getitem__(self, index):
        return self.array[index].copy()

    def __setitem__(self, index, value):
        self.array[index] = value


class Arrivals:
    """Barriers of copies to shared memory: how many phases of each are complete."""

    def __init__(self, wanted: int, count: int):
        self.wanted, self.arrived, self.phases = wanted, [0] * count, [0] * count

    @property
    def at(self):
        return _At(lambda slot: (self, int(slot)))

    def arrive(self, slot: int):
        self.arrived[slot] += 1
        if self.arrived[slot] == self.wanted:
            self.arrived[slot], self.phases[slot] = 0, self.phases[slot] + 1


class _At:
    def __init__(self, get):
        self.get = get

    def __getitem__(self, index):
        return self.get(index)


class Warpgroup(threading.Thread):
    """Runs a function whenever it is its turn, until it waits for a condition."""

    def __init__(self, run, w: int, place: dict):
        super().__init__(daemon=True)
        self.w, self.place, self.work = w, place, run
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.ready, self.done, self.error = (lambda: True), False, None
        self.waited, self.sent, self.meetings = {}, [], 0

    def run(self):
        self.turn.acquire()
        try:
            self.work()
        except BaseException as error:
            self.error = error
        self.done = True
        self.back.release()

    def wait_for(self, ready):
        self.ready = ready
        if not ready():
            self.back.release()
            self.turn.acquire()

    def step(self):
        self.turn.release()
        self.back.acquire()
        if self.error:
            raise self.error


def _run_program(body, refs: dict, groups: int, place: dict, order: tuple[int, ...]) -> None:
    members = [Warpgroup(lambda w=w: body(refs, w), w, place) for w in range(groups)]
    for member in members:
        member.members = members
        member.start()
    order = [w for w in order if w < groups]
    while not all(member.done for member in members):
        able = [w for w in order if not members[w].done and members[w].ready()]
        assert able, "the warpgroups wait for each other"
        members[able[0]].step()
    assert not any(member.sent for member in members), "copies that nobody waited for"


def _me() -> Warpgroup:
    return threading.current_thread()


def _fori_loop(first, last, body, carry, unroll=None):
    for i in range(int(first), int(last)):
        carry = body(i, carry)
    return carry


def _when(condition):
    def call(function):
        if condition:
            function()

    return call


def _copy_in(source, target, barrier):
    arrivals, slot = barrier
    target.array[...] = source.array
    arrivals.arrive(slot)


def _wait_in(barrier):
    me, (arrivals, slot) = _me(), barrier
    phase = me.waited.get(slot, 0) + 1
    me.wait_for(lambda: arrivals.phases[slot] >= phase)
    assert arrivals.phases[slot] == phase, "a tile was overwritten before it was waited for"
    me.waited[slot] = phase


def _copy_out(source, target):
    _me().sent.append((source, target))


def _wait_out(left, wait_read_only=False):
    sent = _me().sent
    while len(sent) > left:
        source, target = sent.pop(0)
        target.array[...] = source.array


def _meet(groups):
    me = _me()
    me.meetings += 1
    wanted = me.meetings
    me.wait_for(lambda: all(member.meetings >= wanted for member in me.members))


def _add_products(values, *, exact):
    products = np.stack(values)
    if not exact:
        products = products.astype(jnp.bfloat16).astype(np.float32)
    return (products.reshape(16, 16, 8).sum(-1),)


def _store_products(sums, out):
    out.array[:, :16] = sums[0]


def _store_sums(ref, out, count):
    out.array[...] = ref.array[:count, :16].sum(-1)


def _launch(order, body, arrays, outputs, scratch, grid, groups):
    refs = {}
    for name, v in arrays.items():
        v = np.asarray(v)
        refs[name] = Ref(np.pad(v, [(0, 0), (0, PADDING)] + [(0, 0)] * (v.ndim - 2)) if name in TIMED else v)
    for name, spec in outputs.items():
        shape = list(spec.shape)
        shape[1] += PADDING if name in TIMED and shape[-1] > CHANNELS else 0  # else nothing clips the copy: it must fit
        refs[name] = Ref(np.full(shape, np.nan, spec.dtype))
    for b in range(grid[0]):
        for c in range(grid[1]):
            for e in range(grid[2]):
                memory = {name: _shared(v) for name, v in scratch.items()}
                _run_program(body, refs | memory, groups, {"b": b, "c": c, "e": e}, order)
    found = {}
    for name, spec in outputs.items():
        found[name] = jnp.asarray(refs[name].array[tuple(slice(size) for size in spec.shape)])
        assert name == "sums" or np.isfinite(np.asarray(found[name], np.float32)).all(), f"{name} was not written"
    return found


def _shared(spec):
    if hasattr(spec, "num_barriers"):
        return Arrivals(spec.num_arrivals, spec.num_barriers)
    return Ref(np.full(spec.shape, np.nan, spec.dtype))


@contextlib.contextmanager
def simulated(monkeypatch, order: tuple[int, ...] = (0, 1, 2)):
    """Lets the kernels' `forward` and `backward` run in numpy; warpgroups take turns in an order of preference."""
    from ssmjax.ops.selective_scan.mosaic import (
        backward,
        backward_helper,
        backward_steps,
        forward,
        forward_helper,
        parts,
        steps,
    )

    lax = types.SimpleNamespace(
        axis_index=lambda name: _me().place[name],
        fori_loop=_fori_loop,
        div=lambda a, b: a // b,
        rem=lambda a, b: a % b,
        cond=lambda condition, yes, no, *args: (yes if condition else no)(*args),
    )
    pl = types.SimpleNamespace(ds=lambda first, count: slice(int(first), int(first) + count), when=_when)
    real = parts.plgpu
    plgpu = types.SimpleNamespace(
        SMEM=lambda shape, dtype: types.SimpleNamespace(shape=shape, dtype=dtype),
        Barrier=lambda num_arrivals, num_barriers: types.SimpleNamespace(
            num_arrivals=num_arrivals, num_barriers=num_barriers
        ),
        barrier_wait=_wait_in,
        commit_smem=lambda: None,
        copy_gmem_to_smem=_copy_in,
        copy_smem_to_gmem=_copy_out,
        wait_smem_to_gmem=_wait_out,
    )
    assert all(hasattr(real, name) for name in vars(plgpu))
    fakes = {"lax": lax, "pl": pl, "plgpu": plgpu, "jnp": np}
    with monkeypatch.context() as patch:
        for module in (backward, backward_helper, backward_steps, forward, forward_helper, parts, steps):
            for name, fake in fakes.items():
                if hasattr(module, name):
                    patch.setattr(module, name, fake)
        patch.setattr(parts, "row", lambda ref, count: tuple(ref.array[:count].copy()))
        patch.setattr(parts, "reciprocal", lambda v: (1 / v).astype(np.float32))
        patch.setattr(parts, "meet_program", _meet)
        patch.setattr(parts, "meet_warpgroup", lambda: None)
        patch.setattr(parts, "add_products", _add_products)
        patch.setattr(parts, "store_products", _store_products)
        patch.setattr(parts, "store_sums", _store_sums)
        patch.setattr(parts, "launch", lambda *args: _launch(order, *args))
        yield
