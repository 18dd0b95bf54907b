"""Fresh, random models of transformers, converted both ways: `make parity-torch`, where PyTorch is installed."""

import chex
import numpy as np
import pytest

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from tests.torch.random_weights import lively

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}


def configuration(kind, seed):
    """A random configuration of a kind."""
    rng = np.random.default_rng(seed)
    options = SMALL | {
        "state_size": int(rng.choice([4, 8, 16])),
        "expand": int(rng.choice([1, 2])),
        "conv_kernel": int(rng.choice([2, 3, 4])),
        "use_bias": bool(rng.integers(2)),
        "use_conv_bias": bool(rng.integers(2)),
        "tie_word_embeddings": bool(rng.integers(2)),
    }
    if kind == "Mamba2":
        heads = int(rng.choice([2, 4, 8]))
        options |= {"num_heads": heads, "head_dim": options["expand"] * 32 // heads}
        options |= {"n_groups": int(rng.choice([1, 2])), "chunk_size": 8}
    return getattr(transformers, f"{kind}Config")(**options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["Mamba", "FalconMamba", "Mamba2"])
def test_fresh_models(kind, seed, tmp_path):
    theirs = lively(getattr(transformers, f"{kind}ForCausalLM")(configuration(kind, seed)), seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ssmjax.load_pretrained(tmp_path / "theirs")
    tokens = np.random.default_rng(seed).integers(0, 53, (2, 19))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    scale = np.abs(wanted).max()
    assert np.abs(np.asarray(ours(tokens)) - wanted).max() <= 1e-4 * scale

    ssmjax.save_pretrained(ours, tmp_path / "ours", format="hf")
    chex.assert_trees_all_equal(model_arrays(ssmjax.load_pretrained(tmp_path / "ours")), model_arrays(ours))
    again = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(tmp_path / "ours").eval()
    found = dict(again.named_parameters())
    for name, x in theirs.named_parameters():
        assert torch.equal(found[name], x), name
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(tokens)).logits.numpy(), wanted)
