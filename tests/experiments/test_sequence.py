"""What the sequence experiments do to their data, their settings and their results, before anything is trained."""

import dataclasses
import importlib
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments import listops, pathfinder32, sequential_mnist, spoken_digits, tables
from experiments.shared import classifier, common, sequence
from ssmjax.data import sequence_data
from ssmjax.training.optim_groups import S5_MODES, s5_groups

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

EXPERIMENTS = {
    "sequential_mnist": "digits",
    "sequential_cifar": "digits",
    "listops": "short",
    "spoken_digits": "touch_tones",
    "s4nd_cifar": "digits",
    "pathfinder32": "few",
    "lti_shootout": "digits",
    "discretisation_study": "digits",
}
"""Every experiment, and the data that it needs no download for."""


def module(name):
    return importlib.import_module(f"experiments.{name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "mnits"}, "Unknown data set 'mnits'"),
        ({"layer": "s6"}, "Unknown layer 's6'"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"minutes": -1.0}, "minutes must be positive"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1"),
    ],
)
def test_bad_settings_are_refused_at_once(name, changed, message):
    with pytest.raises(ValueError, match=message):
        module(name).main(module(name).Config(**changed))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_recipe_fills_in_every_setting(name, tmp_path):
    experiment = module(name)
    for data in experiment.RECIPES:
        config = experiment.Config(data=data, out_dir=tmp_path, runs_dir=tmp_path)
        found = sequence.resolve(name, config, experiment.RECIPES)
        for field in ("epochs", "batch_size", "learning_rate", "d_model", "depth", "d_state"):
            assert getattr(found, field) is not None, (data, field)
        assert found.dtype in ("float32", "bfloat16")
    assert EXPERIMENTS[name] in experiment.RECIPES


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_docstring_is_a_recipe(name):
    text = module(name).__doc__
    assert f"python -m experiments.{name}" in text and "H100" in text and "two CPU cores" in text


def test_claims_have_plain_names_and_others_a_digest(tmp_path):
    def named(**changed):
        config = sequential_mnist.Config(out_dir=tmp_path, runs_dir=tmp_path, **changed)
        found, claim = (
            sequence.resolve("x", c, sequential_mnist.RECIPES)
            for c in (config, sequential_mnist.Config(data=config.data, out_dir=tmp_path, runs_dir=tmp_path))
        )
        return classifier.result_name(["sequential_mnist"], found, claim)

    assert named() == named(seeds=3) == named(minutes=2.0) == named(epochs=12) == "sequential_mnist"
    assert named(smoke=True) == "sequential_mnist_smoke"
    assert named(epochs=3).startswith("sequential_mnist_") and named(epochs=3) != named(epochs=4)


def test_pixels_are_normalized_by_the_training_set():
    rng = np.random.default_rng(0)
    splits = [
        {"inputs": rng.integers(0, 256, (40, 12, 2), np.uint8), "label": np.zeros(40, np.int32)} for _ in range(2)
    ]
    data = sequence_data("x", *splits, ("a",), source="test")
    prepare = sequence.pixels(data)
    train = prepare(data.train, None, False)["inputs"]
    np.testing.assert_allclose(train.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(train.std((0, 1)), 1, rtol=1e-5)
    scale, mean = data.train["inputs"].std((0, 1)), data.train["inputs"].mean((0, 1))
    np.testing.assert_allclose(
        prepare(data.test, None, False)["inputs"], (data.test["inputs"] - mean) / scale, rtol=1e-4, atol=1e-5
    )


def test_mirrored_pixels_are_mirrored_row_by_row():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(1, 6, 4, 1).repeat(16, 0)
    inputs = images.reshape(16, 24, 1)
    split = {"inputs": inputs, "label": np.zeros(16, np.int32)}
    data = sequence_data("x", split, split, ("a",), source="test")
    plain = np.asarray(sequence.pixels(data)(split, None, False)["inputs"])
    got = np.asarray(sequence.pixels(data, flip_width=4)(split, jax.random.key(0), True)["inputs"])
    mirrored = plain.reshape(16, 6, 4, 1)[:, :, ::-1].reshape(plain.shape)
    kinds = [np.array_equal(g, p) + 2 * np.array_equal(g, m) for g, p, m in zip(got, plain, mirrored, strict=True)]
    assert set(kinds) == {1, 2}


def test_a_recording_is_only_varied_within_itself():
    time = jnp.arange(400.0)
    inputs = jnp.sin(0.05 * time)[None, :, None] * (time < 300)[None, :, None]
    batch = jnp.broadcast_to(inputs, (8, 400, 1))
    lengths = jnp.full(8, 300)
    same, unchanged = spoken_digits.vary(jax.random.key(1), batch, lengths, speed=0.0, shift=0, noise=0.0)
    ratio = same[:, 1:300, 0] / batch[:, 1:300, 0]
    np.testing.assert_allclose(ratio, jnp.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)  # only the loudness
    np.testing.assert_array_equal(unchanged, lengths)
    varied, new = spoken_digits.vary(jax.random.key(2), batch, lengths, speed=0.1, shift=40, noise=0.1)
    chex.assert_shape(varied, batch.shape)
    assert 270 <= int(new.min()) < int(new.max()) <= 374
    for row, length in zip(varied, new, strict=True):
        assert not np.asarray(row[int(length) :]).any()


def test_a_slower_recording_is_the_same_wave_stretched():
    time = jnp.arange(400.0)
    batch = jnp.broadcast_to(jnp.sin(0.02 * time)[None, :, None], (16, 400, 1))
    varied, lengths = spoken_digits.vary(jax.random.key(3), batch, jnp.full(16, 200), speed=0.2, shift=0, noise=0.0)
    for row, length in zip(np.asarray(varied[..., 0]), np.asarray(lengths), strict=True):
        factor = 200 / length
        wanted = np.sin(0.02 * factor * np.arange(length - 2))
        loudness = row[: length - 2] @ wanted / (wanted @ wanted)
        np.testing.assert_allclose(row[: length - 2], loudness * wanted, atol=0.05 * loudness)


def test_every_recording_is_scaled_to_one_loudness():
    waves = np.zeros((2, 50, 1), np.int16)
    waves[0, :30], waves[1, :50] = 100, -2000
    batch = {"inputs": waves, "lengths": np.array([30, 50]), "label": np.zeros(2, np.int32)}
    got = spoken_digits.make_prepare()(batch, None, False)
    np.testing.assert_allclose(got["inputs"][0, :30], 1, rtol=1e-3)
    np.testing.assert_allclose(got["inputs"][1], -1, rtol=1e-3)


def test_drawn_data_are_kept(tmp_path):
    config = listops.Config(data="short", smoke=True, runs_dir=tmp_path)
    first = listops.load(config)
    (stored,) = (tmp_path / "data").iterdir()
    written = stored.stat().st_mtime_ns
    second = listops.load(config)
    assert stored.stat().st_mtime_ns == written
    for a, b in zip(first, second, strict=True):
        chex.assert_trees_all_equal(vars(a), vars(b))
    assert (len(first[0]), len(first[1])) == (256, 64)


def test_a_length_of_contours_that_was_not_published_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"contour_length must be one of \(6, 9, 14\), .* got 5"):
        pathfinder32.main(pathfinder32.Config(contour_length=5, smoke=True, runs_dir=tmp_path, out_dir=tmp_path))


def test_pathfinder_data_are_split_and_kept(tmp_path):
    config = pathfinder32.Config(data="few", smoke=True, runs_dir=tmp_path)
    first, second = pathfinder32.load(config), pathfinder32.load(config)
    assert first.checksum == second.checksum
    chex.assert_shape([first.train["inputs"], first.test["inputs"]], [(64, 1024, 1), (32, 1024, 1)])


def test_kept_arrays_are_drawn_once(tmp_path):
    calls = []

    def draw():
        calls.append(1)
        return {"x": np.arange(3)}

    path = tmp_path / "deep" / "x.npz"
    for _ in range(2):
        chex.assert_trees_all_equal(common.kept(path, draw), {"x": np.arange(3)})
    assert len(calls) == 1 and [p.name for p in path.parent.iterdir()] == ["x.npz"]


def _record(name, **changed):
    return {
        "name": name,
        "command": f"python -m experiments.{name}",
        "config": {"layer": "s5", "smoke": False},
        "data": {"name": "sequential mnist", "length": 784},
        "device": {"kind": "cpu"},
        "seeds": [0, 1],
        "parameters": 12345,
        "seconds": {"mean": 90.0},
        "metrics": {"test_accuracy": {"mean": 0.5, "spread": 0.01}},
        **changed,
    }


def test_the_table_shows_what_was_published_and_leaves_out_smoke_runs(tmp_path):
    published = {"accuracy": 99.65, "label": "S5", "source": "arXiv"}
    for i, record in enumerate(
        [
            _record("listops", baseline={"accuracy": 37.1, "label": "first token only"}),
            _record("sequential_mnist", published=published),
            _record("sequential_mnist", config={"layer": "s5", "smoke": True}),
        ]
    ):
        (tmp_path / f"{i}.json").write_text(json.dumps(record))
    rows = tables.render("sequences", tmp_path).splitlines()[2:]
    assert rows == [
        "| sequential mnist | s5 | 784 | 12,345 | 50.00 ± 1.00 | 99.65 (S5, arXiv) | 2 | 1.5 | cpu | "
        "`python -m experiments.sequential_mnist` |",
        "| sequential mnist | s5 | 784 | 12,345 | 50.00 ± 1.00; first token only: 37.1 |  | 2 | 1.5 | cpu | "
        "`python -m experiments.listops` |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_run(name, tmp_path):
    experiment = module(name)
    folders = {"out_dir": tmp_path, "runs_dir": tmp_path / "runs", "progress": False}
    report = experiment.main(experiment.Config(data=EXPERIMENTS[name], smoke=True, **folders))
    assert report["config"]["smoke"] and len(report["data"]["sha256"]) == 64
    (result,) = (tmp_path / "experiments" / "results").iterdir()
    assert (tmp_path / "figures" / f"{result.stem}.png").is_file()


@pytest.mark.slow
def test_a_run_in_pieces_is_the_whole_run(tmp_path):
    def run(folder, **changed):
        config = sequential_mnist.Config(data="digits", smoke=True, out_dir=tmp_path, runs_dir=folder, progress=False)
        return sequential_mnist.main(dataclasses.replace(config, **changed))

    whole = run(tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            run(tmp_path / "pieces", minutes=1e-9)
    pieces = run(tmp_path / "pieces")
    assert pieces["metrics"] == whole["metrics"] and pieces["curves"] == whole["curves"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_recorded_command_gives_the_same_settings(name):
    experiment = module(name)
    changed = {"epochs": 3, "learning_rate": 0.5, "prenorm": False, "resume": False, "d_state": 8}
    changed |= {"lengths": (64, 256), "layers": ("s4", "s5")} if name == "lti_shootout" else {}
    changed |= {"largest_steps": (0.5, 2.0)} if name == "discretisation_study" else {}
    config = experiment.Config(**changed)
    words = common.command(name, config, experiment.Config()).split()
    assert words[:3] == ["python", "-m", f"experiments.{name}"]
    assert tyro.cli(experiment.Config, args=words[3:]) == config


def test_the_mode_of_s5_decides_its_groups():
    groups = {mode: sequence.groups(listops.Config(s5_mode=mode)) for mode in S5_MODES}
    for mode, found in groups.items():
        assert found == s5_groups(mode, 1e-3)
    assert len(set(groups.values())) == len(S5_MODES)


def test_a_smoke_run_takes_the_settings_that_it_is_given():
    given = sequential_mnist.Config(data="digits", smoke=True, d_model=24)
    found = sequence.resolve("sequential_mnist", given, sequential_mnist.RECIPES)
    assert (found.d_model, found.depth, found.epochs) == (24, 2, 1)
    with pytest.raises(ValueError, match="d_state must be positive, got 0"):
        sequence.resolve("sequential_mnist", dataclasses.replace(given, d_state=0), sequential_mnist.RECIPES)


def test_an_experiment_on_sequences_has_no_layer_for_images():
    with pytest.raises(ValueError, match="Unknown layer 's4nd'"):
        sequence.resolve("sequential_mnist", sequential_mnist.Config(layer="s4nd"), sequential_mnist.RECIPES)
