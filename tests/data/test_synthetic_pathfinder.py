"""Pathfinder: the pictures against the geometry they claim to show, and that geometry against the rules."""

import dataclasses

import numpy as np
import pytest

from ssmjax.data.synthetic import PATHFINDER, Pathfinder, PathfinderConfig, draw_pathfinder
from ssmjax.data.synthetic.pathfinder import generator, raster
from ssmjax.data.synthetic.pathfinder.contours import Contours, Field, first_places
from ssmjax.data.synthetic.pathfinder.paddles import DEGREES, PaddleTables, paddle_tables, translate

COUNT = 512
SMALL = PATHFINDER["pathfinder32"]


@pytest.fixture(scope="module")
def data() -> Pathfinder:
    return draw_pathfinder("pathfinder32", COUNT, seed=0)


@pytest.fixture(scope="module")
def tables() -> PaddleTables:
    return paddle_tables(SMALL, 1)


def at(data: Pathfinder, pixels: np.ndarray) -> np.ndarray:
    """The brightness (N q) at pixels (N q 2)."""
    return data.images[np.arange(len(data))[:, None], pixels[..., 0], pixels[..., 1], 0]


def test_arrays(data: Pathfinder):
    assert data.images.shape == (COUNT, 32, 32, 1)
    assert data.targets.shape == (COUNT, 2, 14, 2)
    assert data.markers.shape == (COUNT, 2, 2)
    assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int32)
    assert set(np.unique(data.labels)) == {0, 1}
    np.testing.assert_array_equal(data.images.max((1, 2, 3)), 255)
    np.testing.assert_array_equal(data.images.min((1, 2, 3)), 0)


def test_the_label_says_whether_the_markers_are_on_one_contour(data: Pathfinder):
    begun = (data.targets[:, :, 0] == data.markers[:, None, 0]).all(-1)
    ended = (data.targets[:, :, -1] == data.markers[:, None, 1]).all(-1)
    np.testing.assert_array_equal(begun.sum(1), 1)
    # Last paddles are not claimed, so that both contours may end at one pixel, if rarely.
    told = ended.sum(1) == 1
    assert told.mean() > 0.99
    assert ended.any(1).all()
    np.testing.assert_array_equal(data.labels[told], (begun.argmax(1) == ended.argmax(1))[told])
    assert abs(data.labels.mean() - 0.5) < 0.06
    assert abs(begun.argmax(1).mean() - 0.5) < 0.06


def test_markers_and_paddles_are_where_the_geometry_has_them(data: Pathfinder):
    assert (at(data, data.markers) > 110).all()  # the markers' contrast is 1, up to 2 of which are at most 255
    tips = data.targets.reshape(COUNT, -1, 2)
    # A tip may fall between two pixels' worth of a thin paddle: its brightest neighbor counts.
    around = np.stack([at(data, np.clip(tips + [y, x], 0, 31)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    assert (around.max(0) > 60).mean() > 0.99


def test_the_paddles_of_a_contour_follow_each_other_at_the_gap(data: Pathfinder):
    heads = data.targets[:, :, 1:].astype(float)
    step = np.linalg.norm(np.diff(heads, axis=2), axis=-1)
    # Head to head: a gap of twice the margin and the paddle's length, each rounded to whole pixels.
    assert 2 < step.min()
    assert step.max() < SMALL.paddle_length + 2 * SMALL.margins[0] + 2.5
    assert abs(step.mean() - (SMALL.paddle_length + 2 * SMALL.margins[0])) < 0.6
    first = np.linalg.norm(data.targets[:, 0, 0].astype(float) - data.targets[:, 1, 0], axis=-1)
    assert np.abs(first - SMALL.seed_distance).max() < 1
    assert (data.targets[:, 0, 0] >= 2 * SMALL.seed_distance - SMALL.paddle_length - 1).all()
    assert (data.targets[:, :, 1:] > SMALL.padding).all()
    assert (data.targets < 32 - SMALL.padding).all()


def test_statistics_are_those_of_the_original_program(data: Pathfinder):
    # The original at commit ab9c130 with OpenCV, 311 images: mean 20.20 +- 0.11, deviation 50.96 +- 0.15; shares of
    # pixels above 12, 64, 128 and 200: 0.158, 0.126, 0.085, 0.016.
    images = data.images[..., 0].astype(float)
    assert abs(images.mean() - 20.20) < 0.4
    assert abs(images.std((1, 2)).mean() - 50.96) < 0.6
    shares = [(images > level).mean() for level in (12, 64, 128, 200)]
    np.testing.assert_allclose(shares, [0.158, 0.126, 0.085, 0.016], atol=0.003)


def test_an_image_is_a_function_of_seed_and_index(data: Pathfinder):
    part = draw_pathfinder(SMALL, 70, seed=0, start=30)
    for name in ("images", "labels", "markers", "targets"):
        np.testing.assert_array_equal(getattr(part, name), getattr(data, name)[30:100])
    other = draw_pathfinder(SMALL, 4, seed=1)
    assert (other.images != data.images[:4]).any((1, 2, 3)).all()


@pytest.mark.slow
def test_workers_draw_the_same_images(data: Pathfinder):
    shared = draw_pathfinder("pathfinder32", 192, seed=0, workers=2)
    np.testing.assert_array_equal(shared.images, data.images[:192])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pathfinder64", "pathfinder128", "pathfinder256"])
def test_larger_sizes(name: str):
    config = PATHFINDER[name]
    data = draw_pathfinder(name, 64, seed=0)
    assert data.images.shape == (64, config.size, config.size, 1)
    begun = (data.targets[:, :, 0] == data.markers[:, None, 0]).all(-1).argmax(1)
    ended = (data.targets[:, :, -1] == data.markers[:, None, 1]).all(-1).argmax(1)
    np.testing.assert_array_equal(data.labels, begun == ended)
    assert at(data, data.markers).min() >= 245  # no contour is brighter than a marker here
    paddles = round(255 * config.target_contrast)
    assert (data.images == paddles).any((1, 2, 3)).mean() > 0.9


def test_longer_distractors_and_shorter_contours():
    config = dataclasses.replace(SMALL, contour_length=6)
    assert (config.distractor_length, config.distractors) == (2, 10)
    assert (SMALL.distractor_length, SMALL.distractors) == (4, 5)
    assert draw_pathfinder(config, 3, seed=0).targets.shape == (3, 2, 6, 2)


@pytest.mark.parametrize("length", [3, 5, 16])
def test_lengths_other_than_the_published_ones_follow_the_same_rules(length: int):
    data = draw_pathfinder(dataclasses.replace(SMALL, contour_length=length), 64, seed=0)
    test_the_paddles_of_a_contour_follow_each_other_at_the_gap(data)
    ended = (data.targets[:, :, -1] == data.markers[:, None, 1]).all(-1)
    assert ended.any(1).all()


def test_contours_too_long_for_the_image_are_refused(monkeypatch):
    monkeypatch.setattr(generator, "_BARREN", 2)
    message = "contour_length must be so small that two targets find room in 32 pixels, got 60.* a larger size"
    with pytest.raises(ValueError, match=f"draw_pathfinder: {message}"):
        draw_pathfinder(dataclasses.replace(SMALL, contour_length=60), 1, seed=0)


def test_numbers_of_numpy_are_parameters(as_a_user, data: Pathfinder):
    config = dataclasses.replace(SMALL, size=np.int16(32), margins=[np.int64(1)], contour_length=np.uint8(14))
    assert config == SMALL
    drawn = draw_pathfinder(config, np.int64(2), seed=np.int64(0), start=np.uint8(1))
    np.testing.assert_array_equal(drawn.images, data.images[1:3])


def test_without_distractors_only_targets_and_markers_are_drawn():
    bare = draw_pathfinder(dataclasses.replace(SMALL, distractor_paddles=0), 64, seed=0)
    tips = bare.targets.reshape(64, -1, 2)
    y, x = np.mgrid[:32, :32]
    distance = np.hypot(y[None, None] - tips[..., 0, None, None], x[None, None] - tips[..., 1, None, None]).min(1)
    # The filter's faint ripples aside, nothing is further from a tip than a paddle and a marker reach.
    assert bare.images[..., 0][distance > SMALL.paddle_length + 1.5].max() < 12


def test_paddles_look_as_drawn_by_hand(tables: PaddleTables):
    """A level paddle of length 2: five pixels of the finer canvas, the middle one at the tail."""
    fine = raster.line(17, (8, 12), 1)
    assert np.argwhere(fine).tolist() == [[8, c] for c in range(8, 13)]
    look = np.zeros((9, 9), np.uint8)
    rows, columns = np.divmod(tables.look.offset[180] + 4 * tables.canvas + 4, tables.canvas)
    look[rows, columns] = tables.look.value[180]
    np.testing.assert_array_equal(look, raster.shrink(fine, 9))
    assert look[4, 4:7].min() > 100
    assert np.delete(look, 4, axis=0).max() < 60


def test_wide_lines_are_parallelograms():
    fine = raster.line(15, (7, 12), 3)
    assert np.argwhere(fine).tolist() == [[r, c] for r in (6, 7, 8) for c in range(7, 13)]
    even = raster.line(15, (12, 7), 2)
    assert (even > 0).sum() == 12
    slanted = raster.line(15, (11, 11), 3)
    np.testing.assert_array_equal(slanted, slanted.T)


def test_shrinking_keeps_a_flat_image_and_the_mean():
    np.testing.assert_array_equal(raster.shrink(np.full((17, 17), 200, np.uint8), 9), 200)
    spot = np.zeros((33, 33), np.uint8)
    spot[12:21, 12:21] = 120
    assert raster.shrink(spot, 11).astype(float).sum() * 9 == pytest.approx(spot.astype(float).sum(), rel=0.05)


def test_dilation_is_the_maximum_over_a_disc():
    assert len(raster.disc(1)) == 5
    assert len(raster.disc(2)) == 13
    image = np.random.default_rng(0).integers(0, 256, (9, 11)).astype(np.uint8)
    wide = raster.dilate(image, raster.disc(2))
    for y, x in np.ndindex(9, 11):
        disc = [image[y + dy, x + dx] for dy, dx in raster.disc(2) if 0 <= y + dy < 9 and 0 <= x + dx < 11]
        assert wide[y, x] == max(disc)


def test_steps_are_rounded_up():
    angle = np.deg2rad([0, 90, 180, -90, 30, -150])
    assert translate(angle, 5).tolist() == [[0, 5], [5, 0], [0, -5], [-5, 0], [3, 5], [-2, -4]]


def test_a_straight_course_has_the_largest_weight(tables: PaddleTables):
    level = tables.turn[180]  # a first paddle at 0 degrees, followed by one to each pixel of the circle
    heads = tables.pixel(tables.circle + tables.place(0, 0))
    assert heads[level == level.max()].tolist() == [[0, 2], [0, 3]]
    assert level.max() == 1
    np.testing.assert_allclose(level[heads[:, 1] < 0], 0, atol=1e-12)
    angle = np.arctan2(heads[:, 0], heads[:, 1])
    np.testing.assert_allclose(level, np.maximum(np.cos(np.clip(angle, -np.pi / 2, np.pi / 2)), 0) ** 2, atol=1e-6)


def test_a_taken_claim_is_widened_into_the_halo(tables: PaddleTables):
    field = Field.empty(SMALL, tables, 2)
    before = field[np.arange(2)]
    place = tables.place(np.array([16]), np.array([16]))
    field.take(tables, np.array([1]), np.array([180]), place)
    np.testing.assert_array_equal(field.claim[0], before.claim[0])
    claim, halo = (canvas[1].reshape(tables.canvas, -1) for canvas in (field.claim, field.halo))
    np.testing.assert_array_equal(halo[tables.inset : -tables.inset], raster.dilate(claim, raster.disc(1))[7:-7])
    assert claim.reshape(-1)[place[0]] == 255


def test_first_places_are_those_with_all_offsets_free(tables: PaddleTables):
    reach = next(r for r in tables.reach if len(r))
    free = tables.interior & (np.random.default_rng(0).random(len(tables.interior)) < 0.6)
    places = first_places(free, reach, tables)
    expected = [p for p in np.flatnonzero(tables.inside) if all(free[p + offset] for offset in reach)]
    assert places.tolist() == expected
    assert len(first_places(free, reach[:0], tables)) == 0


def test_a_contour_starts_behind_its_tail(tables: PaddleTables):
    contour = Contours.start(tables, np.array([[180]]), tables.place(np.array([[10]]), np.array([[10]])), 3)
    assert tables.pixel(contour.pivot).tolist() == [[[10, 9]]]  # the margin behind the tail
    ahead = tables.pixel(contour.pivot + tables.advance[180])
    assert ahead.tolist() == [[[10, 13]]]  # the margin before the head at 12
    assert tables.turn.shape == (DEGREES + len(tables.circle), len(tables.circle))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"margins": ()}, "margins"),
        ({"margins": (0,)}, r"margins\[0\]"),
        ({"margins": (1, 1.5)}, r"margins\[1\]"),
        ({"margins": 1}, "margins"),
        ({"paddle_thickness": 0.7}, "paddle_thickness"),
        ({"paddle_thickness": 0.0}, "paddle_thickness"),
        ({"paddle_thickness": "1"}, "paddle_thickness"),
        ({"marker_radius": float("inf")}, "marker_radius"),
        ({"target_contrast": float("nan")}, "target_contrast"),
        ({"contour_length": 2}, "contour_length"),
        ({"contour_length": 14.0}, "contour_length"),
        ({"size": 32.0}, "size"),
        ({"antialias": None}, "antialias"),
        ({"distractor_tries": True}, "distractor_tries"),
        ({"seed_distance": 4}, "seed_distance"),
        ({"size": 28}, "size"),
        ({"padding": 0}, "padding"),
        ({"continuity": -1.0}, "continuity"),
        ({"distractor_paddles": -1}, "distractor_paddles"),
    ],
)
def test_bad_parameters(as_a_user, changes: dict, named: str):
    with pytest.raises(ValueError, match=f"PathfinderConfig: {named} must be"):
        dataclasses.replace(SMALL, **changes)


def test_bad_arguments(as_a_user):
    with pytest.raises(ValueError, match="Did you mean 'pathfinder32'"):
        draw_pathfinder("pathfinder23", 1, seed=0)
    with pytest.raises(ValueError, match="config must be a PathfinderConfig or a name in PATHFINDER, got a int"):
        draw_pathfinder(32, 1, seed=0)
    bad = ({"count": 0}, {"start": -1}, {"workers": 0}, {"seed": -1})
    for arguments in (*bad, {"count": 2.0}, {"start": 0.5}, {"workers": None}, {"seed": "0"}):
        with pytest.raises(ValueError, match=f"draw_pathfinder: {next(iter(arguments))} must be"):
            draw_pathfinder(**{"config": SMALL, "count": 1, "seed": 0, **arguments})


def test_no_room_for_a_first_paddle():
    crowded = PathfinderConfig(29, (1,), 4, 0.5, 1.5, 7, 1.0, 0, target_contrast=1.0, distractor_contrast=1.0)
    with pytest.raises(ValueError, match="draw_pathfinder: seed_distance must be"):
        draw_pathfinder(crowded, 1, seed=0)
