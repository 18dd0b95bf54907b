"""How one call of the scan is cut into tiles, warpgroups and chunks: plain numbers, no Pallas."""

import dataclasses
import math
from collections.abc import Mapping

__all__ = ["CHANNELS", "KEPT", "SHARED_BYTES", "Plan", "Tile", "Widths", "case_of", "choose_tiles", "shared_bytes"]

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
        helper: Whether one more warpgroup prepares and finishes tiles; with two others and three slots.
    """

    steps: int
    unroll: int
    groups: int
    chunks: int = 1
    slots: int = 2
    helper: bool = False


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

    def written(self, tile: Tile) -> int:
        """Time steps of the arrays that a kernel writes by tiles.

        A tile that ends after the sequence is clipped where the copy engine knows the array's rows. Where a program
        has all channels, the tile's bytes are contiguous, and Mosaic copies them as such: the last tile of a batch row
        would end in the next one.
        """
        return self.padded(tile) if self.e == CHANNELS else self.l

    def stored(self) -> int:
        """States that the forward pass stores for the backward pass."""
        return self.padded(self.forward) // self.backward.steps


Widths = Mapping[str, int]
"""Bytes of a number of the arrays that are read by tiles: `x`, `dt`, `B`, `C`, and `z` and `kept` if there are any."""


def case_of(programs: int, widths: Widths, changes_dt: bool) -> str:
    """The case of a call in `tiles.json`: a program for each multiprocessor or more; only the scan or more work."""
    more = "more" if changes_dt or "z" in widths else "plain"
    return f"{'alone' if programs <= MULTIPROCESSORS else 'several'}, {more}"


def choose_tiles(
    b: int,
    l: int,
    e: int,
    n: int,
    widths: Widths,
    *,
    changes_dt: bool,
    helpers: Mapping[str, Mapping[str, bool]] | None = None,
) -> tuple[Tile, Tile]:
    """Launch parameters of the forward and the backward kernel.

    A program must fit the shared memory, the sequence should be little longer when it is filled up to whole tiles, and
    there should be programs for every multiprocessor, by chunks of a long sequence if need be. The backward kernel
    fills a multiprocessor with one program; so does the forward kernel where there are so few, and else with several
    small ones.

    `helpers` says by case (`case_of`) whether a helper paid in the `forward` and the `backward` kernel, as measured on
    a device; where nothing was measured, there is none.
    """
    programs = b * e // CHANNELS
    unit = 128 // n  # a tile of B is read by 128 threads
    paid = (helpers or {}).get(case_of(programs, widths, changes_dt), {"forward": False, "backward": False})

    def fits(size, tile, limit=SHARED_BYTES):
        return size(tile, n, widths, changes_dt) <= limit

    backward = [Tile(q, 4, n // 8) for q in range(unit, 33, unit)]
    if n == 16 and paid["backward"]:
        helped = [dataclasses.replace(tile, slots=3, helper=True) for tile in backward]
        backward = [tile for tile in helped if fits(_backward_bytes, tile)] or backward
    backward = _cheapest(l, [tile for tile in backward if fits(_backward_bytes, tile)])
    backward = dataclasses.replace(backward, chunks=_chunks(programs, l, backward.steps, 1))
    chunks = _chunks(programs, l, 2 * backward.steps, 2)
    steps = range(backward.steps, 65, backward.steps)
    forward = []
    if n == 16 and chunks == 1 and programs <= MULTIPROCESSORS and paid["forward"]:
        forward = [Tile(q, 8, 2, slots=3, helper=True) for q in steps]
        forward = [tile for tile in forward if fits(_forward_bytes, tile)]
    if not forward:
        forward = [Tile(q, 8, 1) for q in steps if q <= 48]
        limit = SHARED_BYTES // (1 if programs <= MULTIPROCESSORS else 3)
        forward = [tile for tile in forward if fits(_forward_bytes, tile, limit)] or forward[:1]
    return dataclasses.replace(_cheapest(l, forward), chunks=chunks), backward


def shared_bytes(n: int, forward: Tile, backward: Tile, widths: Widths, *, changes_dt: bool) -> tuple[int, int]:
    """Shared memory of a program of each kernel."""
    return _forward_bytes(forward, n, widths, changes_dt), _backward_bytes(backward, n, widths, changes_dt)


def _cheapest(l: int, tiles: list[Tile]) -> Tile:
    return min(reversed(tiles), key=lambda tile: math.ceil(l / tile.steps) * (tile.steps + TILE_OVERHEAD))


def _chunks(programs: int, l: int, steps: int, waves: int) -> int:
    """Into how many chunks to cut a sequence: none unless less than 60 % of the multiprocessors would have work."""
    if programs > 0.6 * MULTIPROCESSORS:
        return 1
    return max(1, min(waves * MULTIPROCESSORS // programs, math.ceil(l / steps) // 4))


def _tiles_bytes(n: int, widths: Widths) -> int:
    """A time step of the tiles that are copied in."""
    rows = sum(width for name, width in widths.items() if name in ("x", "dt", "z")) * CHANNELS
    return rows + n * (widths["B"] + widths["C"]) + 4 * KEPT * ("kept" in widths)


def _forward_bytes(tile: Tile, n: int, widths: Widths, changes_dt: bool) -> int:
    parts = 4 * CHANNELS * (tile.groups + changes_dt) * (1 + tile.helper) if tile.groups > 1 else 0
    return tile.steps * (tile.slots * _tiles_bytes(n, widths) + 2 * CHANNELS * widths["x"] + 4 * 4 * n + parts)


def _backward_bytes(tile: Tile, n: int, widths: Widths, changes_dt: bool) -> int:
    copied = tile.slots * (_tiles_bytes(n, widths) + CHANNELS * widths["x"])
    prepared = 4 * (CHANNELS * (changes_dt + ("z" in widths)) + 2 * n) * (1 + tile.helper)
    before = 4 * n * CHANNELS // tile.unroll
    sums = 2 + tile.helper if tile.groups > 1 else 0
    exchanged = 4 * 2 * tile.unroll * (2 * n * 20 + tile.groups * sums * CHANNELS)
    return tile.steps * (copied + prepared + before) + exchanged
