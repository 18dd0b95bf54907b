"""How the benchmarks find an original implementation and compare it with ours before they time it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from benchmarks import model_peers, peers
from benchmarks.layer_cases import LAYER_CASES

SHAPE = (1, 8, 4, 4)


@pytest.fixture(scope="module")
def case():
    make, _ = LAYER_CASES["s4d"]
    return make(SHAPE, jnp.float32)


@pytest.fixture(scope="module")
def twin(case):
    """An opponent that is our own layer."""
    state, x = case.args
    y, pullback = jax.vjp(lambda x: case.reference(state, x), x)
    weights = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return peers.Peer(
        name="twin",
        passes={},
        weights={".".join(map(str, path)): np.asarray(value) for path, value in weights.items()},
        x=np.asarray(x),
        dy=np.ones_like(y),
        y=np.asarray(y),
        dx=np.asarray(pullback(jnp.ones_like(y))[0]),
    )


def test_the_same_weights_give_the_same_outputs_and_gradients(case, twin):
    assert max(peers.mismatch(case, twin).values()) < 1e-5


def test_other_weights_do_not(case, twin):
    other = dataclasses.replace(twin, weights=twin.weights | {"D": twin.weights["D"] + 1})
    found = peers.mismatch(case, other)
    assert found.keys() == {"forward", "forward+backward"} and min(found.values()) > 0.01


def test_weights_of_other_names_are_refused(case, twin):
    renamed = {name.replace("D", "d"): value for name, value in twin.weights.items()}
    with pytest.raises(ValueError, match=r"twin: weights .*'d'.*, ours are .*'D'"):
        peers.mismatch(case, dataclasses.replace(twin, weights=renamed))


def test_sources_are_found_in_the_folder_or_one_below(tmp_path):
    for source in ("theirs/models/s4/s4d.py", "s5/ssm.py"):
        (tmp_path / source).parent.mkdir(parents=True)
        (tmp_path / source).touch()
    wanted = {"s4d_glu": tmp_path / "theirs/models/s4/s4d.py", "s5": tmp_path / "s5/ssm.py"}
    assert peers.find_sources(tmp_path) == wanted


def test_a_folder_without_sources_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none of models/s4/s4.py, models/s4/s4d.py, s5/ssm.py is there"):
        peers.find_sources(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        peers.find_sources(tmp_path / "missing")


def test_models_without_an_opponent_or_its_source_are_refused(tmp_path):
    class Twin:
        pass

    with pytest.raises(ValueError, match="Twin has no opponent; vim and vmamba have"):
        model_peers.load_model_peer(tmp_path, Twin(), 1)
    Vim = type("Vim", (), {})
    with pytest.raises(ValueError, match=r"vim/models_mamba.py is not there nor one folder below"):
        model_peers.load_model_peer(tmp_path, Vim(), 1)
