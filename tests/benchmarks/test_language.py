"""Benchmarks of language models: what the records hold, and that training keeps no logits of all tokens."""

import json

import pytest

from benchmarks import language

SMALL = ("vocab_size=211", "vocab_multiple=1", "d_model=16", "depth=1")


def test_training_never_has_the_logits_of_all_tokens(tmp_path):
    """Of 2 x 24 tokens, 16 at a time: the compiled step has no array of (b l v), which the peers keep in float32."""
    config = language.Config(
        model=("mamba_nano",), task=("memory",), batch=(2,), length=24, loss_chunk=16, changes=SMALL, out=tmp_path / "x"
    )
    (record,) = language.main(config)
    assert record["largest_with_vocabulary"] == (16, 211) or record["largest_with_vocabulary"] == (211, 16)
    assert not record["whole_logits"] and record["peak_gb"] is not None
    assert json.loads((tmp_path / "x").read_text())[0]["task"] == "memory"


@pytest.mark.slow
def test_records(tmp_path):
    config = language.Config(
        model=("mamba_nano",),
        task=("decode", "prefill", "train"),
        batch=(2,),
        tokens=4,
        length=8,
        changes=SMALL,
        rounds=2,
        out=tmp_path / "x",
    )
    decode, prefill, train = language.main(config)
    assert (decode["size"], prefill["size"], train["size"]) == ("16+4", "8", "8")
    assert decode["per_second"] == pytest.approx(2000 / decode["ms"], rel=1e-2)
    assert train["per_second"] == pytest.approx(2 * 8 * 1000 / train["ms"], rel=1e-2)
    assert len(language.main(config)) == len(json.loads((tmp_path / "x").read_text())) == 3
