"""Pathfinder images: are the two marked ends those of one contour?

Linsley et al. 2018, "Learning long-range spatial dependencies with horizontal gated recurrent units", with the rules
that Long Range Arena's images (Tay et al. 2021) were drawn by. Two contours are grown side by side from neighboring
seeds; where one of them can go no further, both are started again, some hundreds of times an image. So they are grown
on many canvases at once, and images are made in blocks.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing

import numpy as np

from ssmjax.data.synthetic.pathfinder.config import PATHFINDER, PathfinderConfig
from ssmjax.data.synthetic.pathfinder.contours import Contours, Field, first_places, grow, paste
from ssmjax.data.synthetic.pathfinder.paddles import DEGREES, PaddleTables, paddle_tables
from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int, bad_argument, bad_shape, unknown_name

__all__ = ["Pathfinder", "draw_pathfinder"]

_BLOCK = 64  # images drawn under one key; a part of the data set's definition
_WAVE_PIXELS = 2**22  # of the canvases on which targets are grown at once; likewise
_BARREN = 64  # waves in a row without two whole targets, after which there is taken to be no room for them
_FREE = 76  # of 255: up to a claim of 0.3 a pixel is free
_LEAST_FREE = 0.01  # share of free pixels below which no distractor is tried
_SEED_TRIES = 3  # draws of a distractor's first paddle


@dataclasses.dataclass(frozen=True, eq=False)
class Pathfinder:
    """Pathfinder images in memory.

    Attributes:
        images: (N y x 1) uint8.
        labels: (N) int32, 1 where both markers are on one contour.
        markers: (N 2 2) int32, row and column of the two markers: where a contour begins, and where one ends.
        targets: (N 2 k 2) int32, row and column of the k paddles of both contours: the tail of the first paddle, and
            the heads of the others.
    """

    images: np.ndarray
    labels: np.ndarray
    markers: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def draw_pathfinder(
    config: PathfinderConfig | str, count: int, *, seed: int, start: int = 0, workers: int = 1
) -> Pathfinder:
    """Draws the images start .. start + count - 1 of a Pathfinder data set.

    An image is a function of (config, seed, index). They are drawn in blocks of 64, so that one costs as much as 64.
    The published sets, whose seeds are lost, are of 200,000 images, split at random into 80, 10 and 10 %.

    Args:
        config: A name in `PATHFINDER`, or other parameters.
        count: N.
        seed: The seed of the data set, 0 <= seed < 2 ** 64.
        start: Index of the first image.
        workers: Processes that share the blocks. A script that asks for more than one needs the usual
            `if __name__ == "__main__":`.

    Returns:
        The images, and the geometry they were drawn from.

    Raises:
        ValueError: If an argument is out of its range, or the parameters leave the targets no room.

    >>> data = draw_pathfinder("pathfinder32", 2, seed=0)
    >>> data.images.shape, data.images.dtype, data.targets.shape
    ((2, 32, 32, 1), dtype('uint8'), (2, 2, 14, 2))
    """
    if isinstance(config, str):
        if config not in PATHFINDER:
            raise unknown_name("Pathfinder set", config, tuple(PATHFINDER))
        config = PATHFINDER[config]
    where = "draw_pathfinder"
    if not isinstance(config, PathfinderConfig):
        raise bad_shape(where, "config", config, "a PathfinderConfig or a name in PATHFINDER")
    count, workers = as_int(where, "count", count, least=1), as_int(where, "workers", workers, least=1)
    start = as_int(where, "start", start, least=0)
    stream(where, seed, 0)  # a bad seed is found before a worker starts
    first, last = start // _BLOCK, (start + count - 1) // _BLOCK
    draw = functools.partial(_draw_block, config, seed)
    if workers == 1:
        blocks = [draw(block) for block in range(first, last + 1)]
    else:
        # Spawned, not forked: the parent may run JAX's threads.
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            blocks = list(pool.map(draw, range(first, last + 1)))
    wanted = slice(start - first * _BLOCK, start - first * _BLOCK + count)
    names = [field.name for field in dataclasses.fields(Pathfinder)]
    return Pathfinder(*(np.concatenate([getattr(block, name) for block in blocks])[wanted] for name in names))


def _draw_block(config: PathfinderConfig, seed: int, block: int) -> Pathfinder:
    rng = stream("draw_pathfinder", seed, block)
    labels = rng.integers(0, 2, _BLOCK).astype(np.int32)
    margins = np.array(config.margins)[rng.integers(0, len(config.margins), _BLOCK)]
    origins = rng.integers(0, 2, _BLOCK)
    images = np.empty((_BLOCK, config.size, config.size, 1), np.uint8)
    targets = np.empty((_BLOCK, 2, config.contour_length, 2), np.int32)
    markers = np.empty((_BLOCK, 2, 2), np.int32)
    for margin in np.unique(margins).tolist():
        rows = np.flatnonzero(margins == margin)
        tables = paddle_tables(config, margin)
        contours, field = _draw_targets(config, tables, len(rows), rng)
        distractors = _draw_distractors(config, tables, field, rng)
        targets[rows] = tables.pixel(contours.place)
        origin = origins[rows]
        terminal = np.where(labels[rows] == 1, origin, 1 - origin)
        markers[rows] = np.stack([targets[rows, origin, 0], targets[rows, terminal, -1]], axis=1)
        images[rows, :, :, 0] = _render(config, tables, contours, distractors, markers[rows])
    return Pathfinder(images, labels, markers, targets)


def _draw_targets(
    config: PathfinderConfig, tables: PaddleTables, count: int, rng: np.random.Generator
) -> tuple[Contours, Field]:
    """Draws pairs of contours until `count` are whole, and what these take; the others leave no trace."""
    wave = max(_BLOCK, _WAVE_PIXELS // tables.canvas**2)
    found, taken, missing, barren = [], [], count, 0
    while missing:
        contours = Contours.start(tables, *_target_seeds(config, tables, wave, rng), config.contour_length)
        field = Field.empty(config, tables, wave)
        whole = grow(contours, field, config, tables, rng)[:missing]
        found.append(contours[whole])
        taken.append(field[whole])
        missing, barren = missing - len(whole), 0 if len(whole) else barren + 1
        if barren == _BARREN:
            wanted = f"so small that two targets find room in {config.size} pixels"
            remedy = (
                f"None did of the last {_BARREN * wave}: a smaller one, a larger size or a smaller continuity may do."
            )
            raise bad_argument("draw_pathfinder", "contour_length", config.contour_length, wanted, remedy)
    return Contours.concatenate(found), Field.concatenate(taken)


def _target_seeds(
    config: PathfinderConfig, tables: PaddleTables, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The first paddles of pairs of contours: poses and places (N 2)."""
    places, starts, possible = _first_target_places(config, tables.margin)
    pose = rng.integers(0, DEGREES, (count, 2))
    pose[:, 0] = possible[rng.integers(0, len(possible), count)]
    first = places[rng.integers(starts[pose[:, 0]], starts[pose[:, 0] + 1])]
    direction = np.deg2rad(rng.integers(0, 360, count))
    step = np.rint(config.seed_distance * np.stack([np.sin(direction), np.cos(direction)], axis=-1)).astype(np.int64)
    return pose, np.stack([first, first + step @ np.array([tables.canvas, 1])], axis=-1)


@functools.lru_cache(maxsize=16)
def _first_target_places(config: PathfinderConfig, margin: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the first paddle of the first target may lie: places pose by pose, their bounds, and the poses with any."""
    tables = paddle_tables(config, margin)
    edge = 2 * config.seed_distance
    free = np.zeros((tables.canvas, tables.canvas), bool)
    middle = slice(tables.inset + edge, -tables.inset - edge)
    free[middle, middle] = True
    places = [first_places(free.reshape(-1), reach, tables) for reach in tables.reach]
    sizes = np.array([len(p) for p in places])
    if not sizes.any():
        wanted = f"less than half of what leaves a paddle some room in {config.size} pixels"
        raise bad_argument("draw_pathfinder", "seed_distance", config.seed_distance, wanted)
    return np.concatenate(places), np.concatenate([[0], np.cumsum(sizes)]), np.flatnonzero(sizes)


def _draw_distractors(
    config: PathfinderConfig, tables: PaddleTables, field: Field, rng: np.random.Generator
) -> np.ndarray:
    """Draws the distractors of all canvases into the free parts of the field, in place: (N canvas^2) uint8."""
    drawn = np.zeros_like(field.claim)
    for _ in range(config.distractors):
        pending = np.arange(len(drawn))
        for _ in range(config.distractor_tries):
            seeds = [_distractor_seed(tables, claim, rng) for claim in field.claim[pending]]
            seeded = np.array([seed is not None for seed in seeds], bool)
            rows = pending[seeded]
            if not len(rows):
                continue
            pose, place = np.array([seed for seed in seeds if seed is not None]).T[..., None]
            contours, trial = Contours.start(tables, pose, place, config.distractor_length), field[rows]
            whole = grow(contours, trial, config, tables, rng)
            field[rows[whole]] = trial[whole]
            for step in range(config.distractor_length):
                paste(drawn, tables.look, rows[whole], contours.pose[whole, 0, step], contours.place[whole, 0, step])
            pending = np.setdiff1d(pending, rows[whole])
    return drawn


def _distractor_seed(tables: PaddleTables, claim: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """Pose and place of a distractor's first paddle, or None where it finds no room."""
    free = claim <= _FREE
    if free.sum() < _LEAST_FREE * tables.inside.sum():
        return None
    free &= tables.interior
    for _ in range(_SEED_TRIES):
        pose = int(rng.integers(0, DEGREES))
        places = first_places(free, tables.reach[pose], tables)
        if not len(places):
            return None
        place = int(places[rng.integers(0, len(places))])
        head = place + tables.head[pose]
        if tables.inside[head] and tables.inside[place + tables.pivot[pose]]:
            return pose, place
    return None


def _render(
    config: PathfinderConfig, tables: PaddleTables, contours: Contours, distractors: np.ndarray, markers: np.ndarray
) -> np.ndarray:
    """The images (N y x) uint8, their brightest pixel at 255."""
    targets, discs = np.zeros_like(distractors), np.zeros_like(distractors)
    rows = np.arange(len(distractors))
    for which in range(contours.pose.shape[1]):
        for step in range(contours.pose.shape[2]):
            paste(targets, tables.look, rows, contours.pose[:, which, step], contours.place[:, which, step])
    for row, column in markers.transpose(1, 2, 0):
        paste(discs, tables.marker, rows, np.zeros_like(rows), tables.place(row, column))
    image = np.maximum(config.target_contrast * targets, config.distractor_contrast * distractors)
    image = np.maximum(image, discs)[:, tables.inside].reshape(-1, config.size, config.size)
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    return np.floor((image - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
