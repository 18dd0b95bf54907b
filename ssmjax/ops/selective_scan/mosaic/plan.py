"""How one call of the scan is cut into tiles, warpgroups and chunks: plain numbers, no Pallas."""

import dataclasses
import math
from collections.abc import Mapping

__all__ = ["CHANNELS", "KEPT", "SHARED_BYTES", "Plan", "Tile", "Widths", "choose_tiles", "shared_bytes"]

CHANNELS = 128
"""Channels of one program: a thread of a warpgroup has one channel."""

KEPT = 4
"""Copies of a step's reset in memory, so that a tile of them is 16 bytes a row, as the copy engine wants."""

SHARED_BYTES = 226 * 1024
"""Shared memory that one program may have on a Hopper GPU, less a little for barriers."""

MULTIPROCESSORS = 132
"""Of an H100 or H200."""

TILE_OVERHEAD = 3
"""What a tile costs besides its steps, in steps."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """Launch parameters of one kernel.

    Attributes:
        steps: Time steps of a tile in shared memory; a multiple of 8, of 16 for 8 states.
        unroll: Time steps written out; divides `steps`.
        groups: Warpgroups of a program, which share the states of its channels.
        chunks: Pieces that the sequence is cut into, which run at the same time.
        slots: Tiles in flight.
    """

    steps: int
    unroll: int
    groups: int
    chunks: int = 1
    slots: int = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static facts of one call; its arrays are padded to `n` states and to a multiple of `CHANNELS` channels a group.

    Attributes:
        l: Time steps.
        e: Channels, padded.
        n: States of a channel, 8 or 16.
        g: Groups of B and C.
        softplus, bias, skip, gate, start, segments, reverse: Which parts of the op the call has: softplus of `dt`, its
            bias, D, z, h0, segment ids, and the direction.
        end: Whether the last state is asked for.
        exact: Whether dB and dC are summed from float32 products; from bfloat16 ones otherwise.
        forward, backward: Launch parameters. `backward.steps` is also the distance of the states that are stored.
    """

    l: int
    e: int
    n: int
    g: int
    softplus: bool
    bias: bool
    skip: bool
    gate: bool
    start: bool
    segments: bool
    reverse: bool
    end: bool
    exact: bool
    forward: Tile
    backward: Tile

    @property
    def changes_dt(self) -> bool:
        """Whether the step sizes differ from the numbers that came in."""
        return self.softplus or self.bias

    def blocks(self, tile: Tile) -> int:
        """Tiles of one chunk."""
        return math.ceil(math.ceil(self.l / tile.steps) / tile.chunks)

    def padded(self, tile: Tile) -> int:
        """Time steps that the tiles of all chunks cover."""
        return tile.chunks * self.blocks(tile) * tile.steps

    def stored(self) -> int:
        """States that the forward pass stores for the backward pass."""
        return self.padded(self.forward) // self.backward.steps


Widths = Mapping[str, int]
"""Bytes of a number of the arrays that are read by tiles: `x`, `dt`, `B`, `C`, and `z` and `kept` if there are any."""


def choose_tiles(b: int, l: int, e: int, n: int, widths: Widths, *, changes_dt: bool) -> tuple[Tile, Tile]:
    """Launch parameters of the forward and the backward kernel.

    A program must fit the shared memory; the sequence should be little longer when it is filled up to whole tiles; and
    there should be programs for every multiprocessor, by chunks of a long sequence if need be.
    """
    programs = b * e // CHANNELS
    groups = max(1, n // 8)
    unit = 128 // n  # a tile of B is read by 128 threads
    tried = range(unit, 40, unit)
    back = _cheapest(l, [q for q in tried if _backward_bytes(q, 4, n, groups, widths, changes_dt) <= SHARED_BYTES])
    forward_groups = groups if programs < 2 * MULTIPROCESSORS else 1
    limit = SHARED_BYTES if programs < 2 * MULTIPROCESSORS else SHARED_BYTES // 3
    steps = [back * k for k in range(1, 65 // back + 1)]
    fitting = [q for q in steps if _forward_bytes(q, n, forward_groups, widths, changes_dt) <= limit]
    front = _cheapest(l, fitting or [back])
    forward = Tile(front, 8, forward_groups, _chunks(programs, l, front, 2))
    return forward, Tile(back, 4, groups, _chunks(programs, l, back, 1))


def shared_bytes(n: int, forward: Tile, backward: Tile, widths: Widths, *, changes_dt: bool) -> tuple[int, int]:
    """Shared memory of a program of each kernel."""
    return (
        _forward_bytes(forward.steps, n, forward.groups, widths, changes_dt),
        _backward_bytes(backward.steps, backward.unroll, n, backward.groups, widths, changes_dt),
    )


def _cheapest(l: int, steps: list[int]) -> int:
    return min(reversed(steps), key=lambda q: math.ceil(l / q) * (q + TILE_OVERHEAD))


def _chunks(programs: int, l: int, steps: int, waves: int) -> int:
    """Into how many chunks to cut a sequence: none unless less than 60 % of the multiprocessors would have work."""
    if programs > 0.6 * MULTIPROCESSORS:
        return 1
    return max(1, min(waves * MULTIPROCESSORS // programs, math.ceil(l / steps) // 4))


def _tiles_bytes(q: int, n: int, widths: Widths) -> int:
    rows = sum(width for name, width in widths.items() if name in ("x", "dt", "z")) * CHANNELS
    return q * (rows + n * (widths["B"] + widths["C"]) + 4 * KEPT * ("kept" in widths))


def _forward_bytes(q: int, n: int, groups: int, widths: Widths, changes_dt: bool) -> int:
    parts = 4 * CHANNELS * groups if groups > 1 else 0
    step = 4 * CHANNELS if groups > 1 and changes_dt else 0
    return 2 * _tiles_bytes(q, n, widths) + q * (2 * CHANNELS * widths["x"] + 4 * 4 * n + parts + step)


def _backward_bytes(q: int, unroll: int, n: int, groups: int, widths: Widths, changes_dt: bool) -> int:
    tiles = 2 * (_tiles_bytes(q, n, widths) + q * CHANNELS * widths["x"])
    rows = 4 * q * CHANNELS * (changes_dt + ("z" in widths)) + 4 * 2 * q * n
    exchanged = 4 * 2 * unroll * (2 * n * 20 + (4 * CHANNELS if groups > 1 else 0))
    return tiles + rows + 4 * (q // unroll) * n * CHANNELS + exchanged
