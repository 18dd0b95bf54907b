"""The tasks of the experiments with language models: every label is the answer that the tokens ask for."""

import itertools
import json

import jax
import numpy as np
import pytest

from experiments import (
    mamba_induction_heads,
    mamba_mqar,
    mamba_pretrained_embeddings,
    mamba_selective_copying,
    mamba_state_tracking,
    mamba_text,
)

DRAWS = itertools.count()


def fresh_key():
    return jax.random.key(next(DRAWS))


def arrays(drawn):
    return np.asarray(drawn["tokens"]), np.asarray(drawn["labels"])


def test_induction_heads():
    tokens, labels = arrays(mamba_induction_heads.draw(fresh_key(), 50, 20))
    for row, wanted in zip(tokens, labels, strict=True):
        (first, last) = np.flatnonzero(row == 15)
        assert last == 19 and (wanted[:-1] < 0).all() and wanted[-1] == row[first + 1]


def test_selective_copying():
    tokens, labels = arrays(mamba_selective_copying.draw(fresh_key(), 20, 40))
    for row, wanted in zip(tokens, labels, strict=True):
        assert (wanted[:40] < 0).all() and (row[40:] == mamba_selective_copying.MARK).all()
        np.testing.assert_array_equal(wanted[40:], row[:40][row[:40] != mamba_selective_copying.NOISE])


@pytest.mark.parametrize("modulus", [2, 5])
def test_state_tracking(modulus):
    tokens, labels = arrays(mamba_state_tracking.draw(fresh_key(), 20, modulus, 30))
    assert (tokens[:, 0] == modulus).all() and (labels[:, 0] < 0).all()
    np.testing.assert_array_equal(labels[:, 1:], np.cumsum(tokens[:, 1:], axis=1) % modulus)


def test_associative_recall():
    tokens, labels = arrays(mamba_mqar.draw(fresh_key(), 20, 4, 30))
    for row, wanted in zip(tokens, labels, strict=True):
        value = dict(zip(row[0:8:2], row[1:8:2], strict=True))
        places = np.flatnonzero(wanted >= 0)
        assert len(value) == len(places) == 4 and places.min() >= 8
        assert [value[row[place]] for place in places] == wanted[places].tolist()


def test_text(tmp_path):
    (tmp_path / "text").write_text("abca\n")
    tokens, characters = mamba_text.read_text(tmp_path / "text")
    assert "".join(characters[i] for i in tokens) == "abca\n"
    with pytest.raises(ValueError, match="mamba_text: text must be a file, got 'None'"):
        mamba_text.read_text(None)


def test_documents_and_vectors(tmp_path):
    speeches = "".join(f"{name}:\n{' '.join([word] * 50)}\n\n" for name, word in (("ONE", "to"), ("TWO", "be")) * 5)
    (tmp_path / "play").write_text(speeches)
    documents = mamba_pretrained_embeddings.read(mamba_pretrained_embeddings.Config(text=tmp_path / "play"))
    (rows, classes), (held_out, _) = documents.train, documents.test
    assert rows.shape[1] == 40 and len(rows) + len(held_out) == 12 and set(classes) == {0, 1}
    assert {documents.words[i] for i in rows[classes == classes[0]].ravel()} in ({"to"}, {"be"})
    np.savez(tmp_path / "vectors.npz", words=np.array(["be", "to"]), vectors=np.eye(2, 6, dtype=np.float32))
    table = mamba_pretrained_embeddings.vectors_of(tmp_path / "vectors.npz", documents.words, 4)
    assert table.shape == (len(documents.words), 4) and table[documents.words.index("to")].any() and not table[0].any()


@pytest.mark.slow
def test_smoke(tmp_path):
    config = mamba_state_tracking.Config(models=("mamba2",), smoke=True, progress=False, out_dir=tmp_path)
    report = mamba_state_tracking.main(config)
    stored = json.loads((tmp_path / "experiments/results/mamba_state_tracking.json").read_text())
    assert stored["metrics"] == report["metrics"] and (tmp_path / "figures/mamba_state_tracking.png").is_file()
