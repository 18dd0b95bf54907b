"""Equations of docstrings, which are plain text in the source, as the documentation typesets them; and signatures."""

import importlib
import inspect
import re
import sys

import pytest

from tests.repo.sources import ROOT

sys.path.append(str(ROOT / "docs" / "ext"))

coverage_check, equations, signatures = map(importlib.import_module, ("coverage_check", "equations", "signatures"))


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("h_t = a_t h_{t-1} + x_t", "h_{t} = a_{t} h_{t - 1} + x_{t}"),
        ("K_l = 2 Re C A_bar^(l+1) B", r"K_{l} = 2 \operatorname{Re} C \bar{A}^{l + 1} B"),
        ("C~ = C (1 - A_bar_n^L)", r"\tilde{C} = C ( 1 - \bar{A}_{n}^{L} )"),
        ("A - sum_r P_r P_r* by the rule", r"A - \sum_{r} P_{r} P_{r}^{*} \text{ by the rule }"),
        ("y * silu(dt_proj(z))", r"y \odot \mathrm{silu} ( \mathrm{dt\_proj} ( z ) )"),
        ("y_t = <C_t, h_t>", r"y_{t} = \langle C_{t} , h_{t} \rangle"),
    ],
)
def test_plain_text_becomes_tex(text, tex):
    assert equations.to_tex([text]) == rf"\begin{{array}}{{l}}{tex}\end{{array}}"


def test_a_gap_begins_a_line_and_a_table_is_kept():
    assert equations.to_tex(["x = 1,    y = 2"]).count(r"\\") == 1
    table = ["Kinds:", "", "    one    x + y", "    other  x"]
    assert equations.equations_of(table)[2:] == ["::", "", *table[2:]]


def test_every_equation_of_the_public_interface_is_balanced():
    blocks = 0
    for module, name in coverage_check.public_names(ROOT / "docs"):
        docstring = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        for line in equations.equations_of(docstring.splitlines()):
            if r"\begin{array}" in line:
                blocks += 1
                assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}"), line
                assert not re.search(r"_\{[^{}]*\} ?_", line), f"{name}: two indices: {line}"
    assert blocks > 30


def test_signatures_show_the_annotations_of_the_source():
    from ssmjax.layers import RMSNorm
    from ssmjax.ops import linear_scan

    arguments, returned = signatures.signature_of(linear_scan)
    assert "Array" in arguments and "reverse: bool=False" in arguments and "jax.Array" in returned
    assert signatures.signature_of(RMSNorm)[0].startswith("(d_model: int")
