"""DiS: the output, the training losses and their gradients, the respaced schedule, DDPM, DDIM and guidance."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import dis
from ssmjax.diffusion import guide, hybrid_terms, linear_schedule, sample
from ssmjax.diffusion.steps import estimate, posterior_mean, tables
from ssmjax.models import registry
from tests.parity.harness import Dump, family

IMAGES = ("x", "noise", "xt")
GUIDED_CHANNELS = 3  # the original's, whatever the images have
SCALE, TIME, INDEX, STEPS = 1.5, 5, 9, 10


@family("dis")
def run(dump: Dump) -> Mapping[str, np.ndarray]:
    inputs = dump.inputs(["x", "t"], ["y", "noise", "xt"])
    inputs = {k: rearrange(x, "b d y x -> b y x d") if k in IMAGES else x.astype(np.int32) for k, x in inputs.items()}
    config = dis.config_from_reference(dump.config)
    model = nnx.eval_shape(lambda: registry.build("dis", config))
    set_model_arrays(model, dis.convert(dump.section("param/"), config))
    outputs, gradients = _trained(*nnx.split(model), inputs)
    if config.learn_sigma:
        outputs |= _sampled(model, inputs)
    gradients = dis.to_reference(model_arrays(nnx.merge(nnx.graphdef(model), gradients)))
    return {f"out/{name}": _channels_first(x) for name, x in outputs.items()} | {
        f"grad/{name}": x for name, x in gradients.items()
    }


def _channels_first(x) -> np.ndarray:
    return np.asarray(rearrange(x, "b y x d -> b d y x") if x.ndim == 4 else x)


@functools.partial(jax.jit, static_argnums=0)
def _trained(graphdef, state, inputs):
    schedule, labels = linear_schedule(), inputs.get("y")

    def loss(state):
        model = nnx.merge(graphdef, state)
        out = model(inputs["x"], inputs["t"], labels)
        if not model.learn_sigma:
            return jnp.square(out).mean(), {"out": out}
        terms = hybrid_terms(model, inputs["x"], inputs["t"], inputs["noise"], labels, schedule=schedule)
        return terms["loss"].mean(), {"out": out, **terms}

    gradients, outputs = jax.grad(loss, has_aux=True)(state)
    return outputs, gradients


def _sampled(model, inputs) -> dict[str, np.ndarray]:
    x, labels, count = inputs["xt"], inputs.get("y"), len(inputs["xt"])
    respaced = linear_schedule().respaced(STEPS)
    row = {name: jnp.asarray(table[INDEX]) for name, table in tables(respaced).items()}
    call = nnx.jit(model)
    out = call(x, jnp.full((count,), respaced.timesteps[INDEX]), labels)
    found = estimate(out, x, row, learned=True)
    given = {"count": count} if labels is None else {"labels": labels}
    result = {
        "respaced_timesteps": respaced.timesteps,
        "respaced_betas": respaced.betas,
        "p_mean": posterior_mean(found.image, x, row),
        "p_logvar": found.log_variance,
        "pred_x0": found.image,
        "ddim": sample(model, **given, key=jax.random.key(0), steps=STEPS, noise=x, clip=None),
    }
    if labels is not None:
        both = jnp.concatenate([labels, jnp.full_like(labels, model.null_label)])
        with_class, without = jnp.split(call(jnp.concatenate([x, x]), jnp.full((2 * count,), TIME), both), 2)
        first = guide(with_class, without, SCALE, GUIDED_CHANNELS)
        second = jnp.concatenate([first[..., :GUIDED_CHANNELS], without[..., GUIDED_CHANNELS:]], axis=-1)
        result["cfg"] = jnp.concatenate([first, second])
    return result
