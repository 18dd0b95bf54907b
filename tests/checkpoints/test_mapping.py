"""What a key table can say beyond one name for one name: hybrids, cut and joined matrices, tied weights, eras."""

import jax
import ml_dtypes
import numpy as np
import pytest

from ssmjax.checkpoints.arrays import specs
from ssmjax.checkpoints.mapping import Era, KeyTable, Layout, Rule


def spec(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def random(shapes, seed=0):
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def check_round_trip(table, source, ours):
    """Their arrays become arrays of the specs wanted, and those become theirs again, bit for bit."""
    made = table.to_ours(source, ours)
    assert specs(made) == ours
    back = table.to_source(made)
    assert back.keys() == source.keys()
    for name, x in source.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
    return made


HYBRID = KeyTable(
    (
        Rule("layers.{i}.mixer.A_log", "mamba.A_log", stack=(0, 1, 3)),
        Rule("layers.{i}.attn.qkv.weight", ("attn.q.kernel", "attn.k.kernel"), "linear", stack=(2, 4)),
        Rule("layers.{i}.norm.weight", "norms.scale"),
    )
)
HYBRID_SHAPES = {
    **{f"layers.{i}.norm.weight": (4,) for i in range(5)},
    **{f"layers.{i}.mixer.A_log": (4, 2) for i in (0, 1, 3)},
    **{f"layers.{i}.attn.qkv.weight": (6, 4) for i in (2, 4)},
}
HYBRID_OURS = {
    "attn.k.kernel": spec(2, 4, 2),
    "attn.q.kernel": spec(2, 4, 4),
    "mamba.A_log": spec(3, 4, 2),
    "norms.scale": spec(5, 4),
}


def test_layers_of_two_kinds_are_two_stacks():
    source = random(HYBRID_SHAPES)
    ours = check_round_trip(HYBRID, source, HYBRID_OURS)
    np.testing.assert_array_equal(ours["mamba.A_log"][2], source["layers.3.mixer.A_log"])
    np.testing.assert_array_equal(ours["attn.q.kernel"][1], source["layers.4.attn.qkv.weight"][:4].T)
    np.testing.assert_array_equal(ours["attn.k.kernel"][0], source["layers.2.attn.qkv.weight"][4:].T)


def test_a_layer_of_the_other_kind_is_unknown_and_its_place_missing():
    source = random(HYBRID_SHAPES)
    source["layers.2.mixer.A_log"] = source.pop("layers.3.mixer.A_log")
    with pytest.raises(ValueError, match=r"unknown: layers.2.mixer.A_log\n  missing: layers.3.mixer.A_log"):
        HYBRID.to_ours(source, HYBRID_OURS)


def test_a_stack_of_another_depth_than_the_rule_lists():
    with pytest.raises(ValueError, match=r"stack must be as long as the stack 'mamba.A_log', \(2,\), got \(0, 1, 3\)"):
        HYBRID.source_specs({"mamba.A_log": spec(2, 4, 2)})


def test_blocks_under_several_names_are_one_stack():
    places = ("in_blocks.0", "mid_block", "out_blocks.0")
    table = KeyTable((Rule("{i}.fc.weight", "blocks.kernel", "linear", stack=places),))
    source = random({f"{place}.fc.weight": (3, 2) for place in places})
    ours = check_round_trip(table, source, {"blocks.kernel": spec(3, 2, 3)})
    np.testing.assert_array_equal(ours["blocks.kernel"][1], source["mid_block.fc.weight"].T)


@pytest.mark.parametrize("stacked", [False, True])
def test_several_matrices_become_one_of_unequal_parts(stacked):
    places = ["layers.0.", "layers.1."] if stacked else [""]
    names, sizes = ("q.weight", "k.weight", "v.weight"), (8, 2, 2)
    theirs = tuple(("layers.{i}." if stacked else "") + name for name in names)
    table = KeyTable((Rule(theirs, "qkv.kernel", "linear", sizes=sizes),))
    source = random({p + name: (size, 5) for p in places for name, size in zip(names, sizes, strict=True)})
    ours = check_round_trip(table, source, {"qkv.kernel": spec(*([2] if stacked else []), 5, 12)})["qkv.kernel"]
    last = ours[-1] if stacked else ours
    np.testing.assert_array_equal(last[:, 8:10], source[f"{places[-1]}k.weight"].T)


def test_parts_along_another_axis_and_of_equal_length():
    table = KeyTable((Rule("gate_up", ("gate", "up"), axis=1), Rule(("a", "b"), "ab")))
    source = random({"gate_up": (3, 8), "a": (2, 3), "b": (2, 3)})
    ours = check_round_trip(table, source, {"ab": spec(4, 3), "gate": spec(3, 4), "up": spec(3, 4)})
    np.testing.assert_array_equal(ours["up"], source["gate_up"][:, 4:])


def test_rules_that_contradict_themselves():
    with pytest.raises(ValueError, match="target must be one name where there are several sources"):
        Rule(("a", "b"), ("c", "d"))
    with pytest.raises(ValueError, match="sizes must be as many lengths as there are sources, 2"):
        Rule(("a", "b"), "c", sizes=(1, 2, 3))
    with pytest.raises(ValueError, match="sizes must be lengths that sum to 4"):
        KeyTable((Rule(("a", "b"), "c", sizes=(1, 2)),)).source_specs({"c": spec(4)})
    with pytest.raises(ValueError, match=r"cuts one array into \('a', 'b'\); \['b'\] are not there"):
        KeyTable((Rule("ab", ("a", "b")),)).source_specs({"a": spec(4)})
    with pytest.raises(ValueError, match="Unknown layout 'lineal'. Did you mean 'linear'"):
        KeyTable((Rule("a", "a", "lineal"),)).source_specs({"a": spec(4, 2)})


def test_axes_are_taken_apart():
    layout = Layout("(k e) n", "n k e", {"k": 4})
    source = random({"A_logs": (12, 5)})
    ours = check_round_trip(KeyTable((Rule("A_logs", "A_log", layout),)), source, {"A_log": spec(5, 4, 3)})
    np.testing.assert_array_equal(ours["A_log"][1, 2], source["A_logs"][6:9, 1])


def test_convolutions_in_three_dimensions():
    source = random({"proj.weight": (6, 3, 2, 4, 5)})
    ours = check_round_trip(
        KeyTable((Rule("proj.weight", "kernel", "conv3d"),)), source, {"kernel": spec(2, 4, 5, 3, 6)}
    )
    np.testing.assert_array_equal(ours["kernel"][1, 2, 3], source["proj.weight"][:, :, 1, 2, 3].T)


def test_two_letters_are_two_leading_axes():
    table = KeyTable((Rule("layers.{i}.experts.{j}.w", "experts"),))
    source = random({f"layers.{i}.experts.{j}.w": (2,) for i in range(3) for j in range(4)})
    ours = check_round_trip(table, source, {"experts": spec(3, 4, 2)})
    np.testing.assert_array_equal(ours["experts"][2, 1], source["layers.2.experts.1.w"])


# -------------------------------------------------------------------------------------------------------------- tied

TIED = KeyTable((Rule("embed.weight", "embed"),), tied={"lm_head.weight": "embed.weight"})


def test_a_tied_weight_may_be_there_once_or_twice():
    (x,) = random({"x": (3, 2)}).values()
    x[0, 0] = np.nan
    for source in (
        {"embed.weight": x},
        {"lm_head.weight": x},
        {"embed.weight": x, "lm_head.weight": x.copy()},
    ):
        np.testing.assert_array_equal(TIED.to_ours(source, {"embed": spec(3, 2)})["embed"], x)
    assert list(TIED.to_source({"embed": x})) == ["embed.weight"]


def test_a_tied_weight_that_differs_is_refused():
    x = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="model.bin: lm_head.weight and embed.weight differ, and the configuration"):
        TIED.to_ours({"embed.weight": x, "lm_head.weight": 2 * x}, {"embed": spec(3, 2)}, "model.bin")
    with pytest.raises(ValueError, match="missing: embed.weight"):
        TIED.to_ours({}, {"embed": spec(3, 2)})


# -------------------------------------------------------------------------------------------------------------- eras

ERAS = KeyTable(
    (Rule("vision.{i}.norm.weight", "vision.scale"), Rule("language.model.norm.weight", "scale")),
    ignored=("vision.{i}.inv_freq",),
    eras=(
        Era("hub", {"vision.": "vision.", "vision.vision_model.": "vision."}),
        Era("memory", {"model.vision.{i}.ln_1.": "vision.{i}.norm.", "model.language.": "language.model."}),
    ),
)
ERAS_OURS = {"scale": spec(3), "vision.scale": spec(12, 3)}


@pytest.mark.parametrize("era", [None, "hub", "memory"])
def test_every_era_is_read_and_written(era):
    ours = random({name: x.shape for name, x in ERAS_OURS.items()})
    source = ERAS.to_source(ours, era=era)
    if era == "memory":
        assert "model.vision.11.ln_1.weight" in source and "model.language.norm.weight" in source
        source["model.vision.3.inv_freq"] = np.ones(2)  # ignored where it is spelled as in the table
        source["vision.3.inv_freq"] = source.pop("model.vision.3.inv_freq")
    back = ERAS.to_ours(source, ERAS_OURS)
    for name, x in ours.items():
        np.testing.assert_array_equal(back[name], x)


def test_an_array_in_two_spellings_is_refused():
    ours = random({name: x.shape for name, x in ERAS_OURS.items()})
    source = ERAS.to_source(ours, era="memory")
    source["vision.3.norm.weight"] = source.pop("model.vision.3.ln_1.weight")
    back = ERAS.to_ours(source, ERAS_OURS)  # unambiguous, as every name is known in the one spelling or the other
    np.testing.assert_array_equal(back["vision.scale"], ours["vision.scale"])
    source["model.vision.3.ln_1.weight"] = source["vision.3.norm.weight"]
    with pytest.raises(ValueError, match="unknown: "):
        ERAS.to_ours(source, ERAS_OURS)
    with pytest.raises(ValueError, match="Unknown era 'hubb'. Did you mean 'hub'?"):
        ERAS.to_source(ours, era="hubb")


# ------------------------------------------------------------------------------------------------------------- dtypes


def test_stored_float_types_stay():
    half = np.array([1, 2.5], ml_dtypes.bfloat16)
    source = {f"layers.{i}.norm.weight": half for i in range(2)}
    table = KeyTable((Rule("layers.{i}.norm.weight", "norms"),))
    wanted = table.stored_specs(source, {"norms": spec(2, 2)})
    assert wanted["norms"].dtype == ml_dtypes.bfloat16
    made = table.to_ours(source, wanted)["norms"]
    assert made.dtype == ml_dtypes.bfloat16 and made.tobytes() == np.stack([half, half]).tobytes()


def test_a_float_is_rounded_only_if_asked():
    source, wanted = {"w": np.array([1 + 2**-12], np.float32)}, {"w": spec(1, dtype=ml_dtypes.bfloat16)}
    table = KeyTable((Rule("w", "w"),))
    with pytest.raises(ValueError, match=r"w: got \(1,\) float32, wanted \(1,\) bfloat16"):
        table.to_ours(source, wanted)
    assert table.to_ours(source, wanted, cast=True)["w"].tolist() == [1.0]
    with pytest.raises(ValueError, match="int32"):
        table.to_ours({"w": np.array([1], np.int32)}, wanted, cast=True)
