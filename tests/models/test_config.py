"""Configurations with nested ones and tuples of any length: checked, changed, and equal to themselves after JSON."""

import dataclasses
import json
from typing import Literal, no_type_check

import pytest

from ssmjax.models.config import as_json, check_fields, from_json, override


@no_type_check
@dataclasses.dataclass(frozen=True)
class Text:
    width: int = 4
    rope: Literal["none", "default"] = "none"
    theta: float = 1e4
    __post_init__ = check_fields


@no_type_check
@dataclasses.dataclass(frozen=True)
class Image:
    depths: tuple[int, ...] = (2, 2)
    sizes: tuple[tuple[int, float], ...] = ()
    __post_init__ = check_fields


@no_type_check
@dataclasses.dataclass(frozen=True)
class Both:
    name: str
    text: Text = Text()
    tower: Image | Text = Image()
    towers: tuple[Image, ...] = ()
    draft: Text | None = None
    side: int | tuple[int, int] = 3
    rates: tuple[float, ...] | None = None
    __post_init__ = check_fields


CONFIGS = [
    Both("a"),
    Both("b", Text(8, "default"), Text(5), (Image((1, 2, 3)), Image((), ((1, 2.5),))), Text(7), (4, 5), (1, 2.5)),
    Both("c", tower=Image((3,)), towers=()),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_is_the_identity(config):
    content = json.loads(json.dumps(as_json(config)))
    again = from_json(Both, content, "test")
    assert again == config and hash(again) == hash(config)
    assert repr(again) == repr(config)  # 1 and 1.0 are told apart


def test_the_class_is_named_where_there_is_a_choice():
    content = as_json(CONFIGS[1])
    assert content["tower"]["config_class"] == "Text" and "config_class" not in content["text"]


def test_lists_numbers_and_dictionaries_are_taken():
    config = Both("d", text={"width": 6}, towers=[{"depths": [1]}], rates=[1, 2])
    assert config == Both("d", Text(6), towers=(Image((1,)),), rates=(1.0, 2.0))
    assert isinstance(config.rates[0], float)


def test_a_dictionary_changes_a_nested_configuration():
    config = override(CONFIGS[1], {"text": {"width": 9}, "draft": None}, "test")
    assert config.text == Text(9, "default") and config.draft is None
    assert override(CONFIGS[0], {"draft": {"width": 2}}, "test").draft == Text(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": {"widht": 3}}, "Text: Unknown option 'widht'. Did you mean 'width'?"),
        ({"text": {"width": "3"}}, "Text: width must be an integer, got '3'"),
        ({"text": 3}, "Both: text must be a Text, got 3"),
        ({"tower": {"config_class": "Other"}}, "Both: tower must be a Image or a Text"),
        ({"towers": [Text()]}, "Both: towers must be a tuple, each a Image"),
        ({"rates": (1, "2")}, "Both: rates must be a tuple, each a number or None, got"),
        ({"side": (1, 2, 3)}, r"Both: side must be an integer or \(an integer, an integer\), got \(1, 2, 3\)"),
    ],
)
def test_messages(fields, message):
    with pytest.raises(ValueError, match=message):
        Both("e", **fields)


def test_messages_of_changes():
    with pytest.raises(ValueError, match="test: text: Unknown option 'widht'. Did you mean 'width'?"):
        override(CONFIGS[0], {"text": {"widht": 3}}, "test")
    with pytest.raises(ValueError, match="test: name must be given, as Both has no default for it"):
        from_json(Both, {}, "test")


def test_annotations_must_be_types():
    text = dataclasses.make_dataclass("Text", [("width", "int", 3)], namespace={"__post_init__": check_fields})
    with pytest.raises(TypeError, match="the annotation of width is text. Remove `from __future__"):
        text()
