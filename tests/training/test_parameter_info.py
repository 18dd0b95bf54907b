"""What parameters say of themselves reaches the optimizers, in `fit` and in a loop of one's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import make_stack
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.muon import muon, orthogonalize
from ssmjax.training.optim import ParameterGroup, adamw, decay_mask
from ssmjax.training.parameter_info import ParameterInfo, described, parameter_info
from tests.layers import quick


class Odd(nnx.Module):
    """Names that tell nothing, or the wrong thing."""

    def __init__(self, rngs: nnx.Rngs):
        self.A_logs = parameter(jnp.ones(3), "A")
        self.Ds = parameter(jnp.ones(3), "D")
        self.steps = parameter(jnp.ones(3), "dt")
        self.shift = parameter(jnp.ones(3), "bias")
        self.gain = parameter(jnp.ones(3), "norm")
        self.bias_table = parameter(jnp.ones((3, 3)), "embedding")
        self.mixing = with_kinds(nnx.Linear(3, 3, rngs=rngs))
        self.untold = nnx.Param(jnp.ones(3))

    def __call__(self, x):
        return self.mixing(x)


DECAYED = {"bias_table", "mixing.kernel", "untold"}


def no_gradient(model, batch, key):
    return 0.0 * model(batch).sum(), {}


def moved(before, after):
    """The names of parameters that differ."""
    old, new = (dict(nnx.to_flat_state(nnx.state(model, nnx.Param))) for model in (before, after))
    return {".".join(path) for path, value in old.items() if (value[...] != new[path][...]).any()}


def optimizers(**options):
    chained = optax.chain(optax.identity(), adamw(0.1, steps=5, weight_decay=0.5, **options))
    return {
        "adamw": adamw(0.1, steps=5, weight_decay=0.5, **options),
        "muon": muon(0.1, steps=5, weight_decay=0.5, **options),
        "chained": chained,
        "accumulated": optax.MultiSteps(chained, 1).gradient_transformation(),
    }


@pytest.mark.parametrize("name", optimizers())
def test_fit_decays_what_says_so(name):
    model = Odd(nnx.Rngs(0))
    config = FitConfig(progress=False)
    optimizer = optimizers()[name]
    result = fit(
        model, no_gradient, lambda step: np.ones((2, 3), np.float32), steps=2, optimizer=optimizer, config=config
    )
    assert moved(model, result.model) == DECAYED


@pytest.mark.parametrize("name", ["adamw", "muon", "chained"])
def test_a_loop_of_ones_own_gives_the_model(name):
    model = Odd(nnx.Rngs(0))
    before = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optimizers(model=model)[name], wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: 0.0 * model(jnp.ones((2, 3))).sum())(model))
    assert moved(before, model) == DECAYED


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_the_model_names_decide(name):
    model = Odd(nnx.Rngs(0))
    before = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optimizers()[name], wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: 0.0 * model(jnp.ones((2, 3))).sum())(model))
    assert {"A_logs", "mixing.kernel"} <= moved(before, model)


def test_kinds_come_before_patterns():
    params = {"A_logs": jnp.ones(2), "A": jnp.ones(2), "B": jnp.ones(2)}
    info = {"A_logs": ParameterInfo("A", False), "A": ParameterInfo("weight", True)}
    optimizer = adamw(
        0.1, steps=9, weight_decay=0.0, clip_norm=None, groups=[ParameterGroup("A|B", 0.01, kinds=("A",))]
    )
    with described(info):
        updates, _ = optimizer.update(params, optimizer.init(params), params)
    rates = {name: round(-float(x[0]), 4) for name, x in updates.items()}
    assert rates == {"A_logs": 0.01, "A": 0.1, "B": 0.01}  # B says nothing: by its name


def test_the_mask_of_a_state_is_what_its_variables_say():
    state = nnx.state(Odd(nnx.Rngs(0)), nnx.Param)
    names = [".".join(path) for path, _ in nnx.to_flat_state(state)]
    assert {name for name, decayed in zip(names, jax.tree.leaves(decay_mask(state)), strict=True) if decayed} == DECAYED


def test_a_name_that_is_no_parameter_is_refused(as_a_user):
    with pytest.raises(ValueError, match="Unknown parameter of Linear 'kernels'. Did you mean 'kernel'"):
        with_kinds(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), kernels="head")
    with pytest.raises(ValueError, match="Unknown kind of parameter 'weights'. Did you mean 'weight'"):
        parameter(jnp.ones(2), "weights")


def test_flax_layers_have_kinds():
    rngs = nnx.Rngs(0)
    layers = {
        "linear": nnx.Linear(2, 2, rngs=rngs),
        "conv": nnx.Conv(2, 2, (3,), rngs=rngs),
        "embed": nnx.Embed(2, 2, rngs=rngs),
        "norm": nnx.LayerNorm(2, rngs=rngs),
    }
    kinds = {
        f"{name}.{path}": info.kind
        for name, layer in layers.items()
        for path, info in parameter_info(with_kinds(layer)).items()
    }
    assert kinds == {
        "linear.kernel": "weight",
        "linear.bias": "bias",
        "conv.kernel": "filter",
        "conv.bias": "bias",
        "embed.embedding": "embedding",
        "norm.scale": "norm",
        "norm.bias": "bias",
    }


# --------------------------------------------------------------------------------------------------------------- muon


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 5, 5)])
def test_orthogonal_factors(key, shape):
    x = jax.random.normal(key, shape)
    u, s, vt = jnp.linalg.svd(orthogonalize(x), full_matrices=False)
    assert float(s.min()) > 0.5 and float(s.max()) < 1.3
    left, _, right = jnp.linalg.svd(x, full_matrices=False)
    # The singular vectors stay: both products with the exact factor are symmetric and near the identity.
    product = jnp.swapaxes(left @ right, -1, -2) @ orthogonalize(x)
    chex.assert_trees_all_close(product, jnp.swapaxes(product, -1, -2), atol=1e-4)
    assert orthogonalize(jnp.zeros((2, 3))).tolist() == [[0.0] * 3] * 2


class Deep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = make_stack(lambda rngs: with_kinds(nnx.Linear(3, 5, rngs=rngs)), 2, rngs)
        self.conv = with_kinds(nnx.Conv(3, 4, (2,), rngs=rngs))
        self.head = with_kinds(nnx.Linear(3, 4, rngs=rngs), kernel="head")
        self.A = parameter(jnp.ones((3, 4)), "A")


def test_muon_takes_each_matrix_of_a_stack_and_nothing_else(key):
    model = Deep(nnx.Rngs(0))
    info = parameter_info(model)
    params = {name: x[...] for name, x in ((".".join(p), v) for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param)))}
    keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
    grads = {name: jax.random.normal(keys[name], x.shape) for name, x in params.items()}
    options = dict(steps=10, weight_decay=0.0, clip_norm=None)
    with described(info):
        ours, theirs = muon(0.1, b2=0.999, **options), adamw(0.1, **options)
        updates, adam = (
            quick.jit(lambda grads, params, by=by: by.update(grads, by.init(params), params)[0])(grads, params)
            for by in (ours, theirs)
        )
    for name, update in updates.items():
        if name == "layers.kernel":
            each = quick.jit(lambda stack: jnp.stack([orthogonalize(1.95 * g) for g in stack]))(grads[name])
            chex.assert_trees_all_close(update, -0.1 * 0.2 * 5**0.5 * each, rtol=1e-4)
        else:
            chex.assert_trees_all_close(update, adam[name], rtol=1e-5)


def test_muon_reads_names_where_nothing_is_said():
    params = {
        "layers.proj.kernel": jnp.ones((2, 3, 4)),
        "head.kernel": jnp.ones((3, 4)),
        "conv.kernel": jnp.ones((3, 4)),
    }
    params |= {"layers.proj.bias": jnp.ones((2, 4)), "A": jnp.ones((3, 4))}
    optimizer = muon(0.1, steps=10, weight_decay=0.0, clip_norm=None)
    grads = jax.tree.map(lambda x: jnp.broadcast_to(jnp.arange(1.0, x.shape[-1] + 1), x.shape), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    signs = {name for name, update in updates.items() if np.allclose(update, -0.1, rtol=1e-3)}  # a first step of AdamW
    assert signs == params.keys() - {"layers.proj.kernel"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak": -1.0}, "muon: peak must be a finite number"),
        ({"momentum": 1.0}, "muon: momentum must be less than 1"),
        ({"iterations": 0}, "muon: iterations must be a positive int"),
    ],
)
def test_errors_of_muon(as_a_user, options, message):
    with pytest.raises(ValueError, match=message):
        muon(**{"peak": 0.1, "steps": 10, **options})
