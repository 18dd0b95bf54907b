"""A model that transformers wrote, in shards, and one that it reads back: the same numbers on both sides."""

import warnings

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays

TOKENS = np.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels that are not installed
        config = transformers.MambaConfig(vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=2)
        model = transformers.MambaForCausalLM(config).eval()
        folder = tmp_path_factory.mktemp("theirs")
        model.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder, logits(model)


def logits(model):
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def read_back(folder):
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.slow
def test_logits_agree_and_what_is_written_is_read(theirs, tmp_path):
    folder, wanted = theirs
    model = ssmjax.load_pretrained(folder)
    np.testing.assert_allclose(nnx.jit(model)(jnp.asarray(TOKENS)), wanted, atol=1e-5)
    ssmjax.save_pretrained(model, tmp_path / "ours", format="hf", shard_bytes=10_000)
    np.testing.assert_array_equal(logits(read_back(tmp_path / "ours")), wanted)


@pytest.mark.slow
def test_bfloat16_on_the_way_there_and_back(theirs, tmp_path):
    folder, _ = theirs
    model = ssmjax.load_pretrained(folder, param_dtype="bfloat16")
    ssmjax.save_pretrained(model, tmp_path / "half", format="hf")
    back = read_back(tmp_path / "half")
    assert {str(x.dtype) for x in back.state_dict().values()} == {"torch.bfloat16"}
    again = model_arrays(ssmjax.load_pretrained(tmp_path / "half"))
    for name, x in model_arrays(model).items():
        assert again[name].dtype == ml_dtypes.bfloat16 and np.array_equal(again[name], x), name
