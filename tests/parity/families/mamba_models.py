"""Language models and mixers of Mamba's family: logits, hidden states, caches, greedy tokens, gradients."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import mamba, mamba_hf
from ssmjax.layers import Mamba2, Mamba3
from ssmjax.models import registry
from ssmjax.models.language_model import LanguageModelConfig
from tests.parity.harness import Dump, family

Arrays = Mapping[str, np.ndarray]

PREFILL = 8
"""How many tokens the official implementation reads at once before it goes on token by token, in dumps with caches."""

PROMPT, NEW = 7, 10
"""The same in transformers, whose prompt this is also of the greedy continuation; and the tokens that follow it."""


@family("mamba1_official", "mamba2_official")
def run_official(dump: Dump) -> Arrays:
    inputs, config = dump.inputs(["input_ids"]), mamba.config_from_reference(dump.config)
    tokens = inputs["input_ids"].astype(np.int32)
    model = _loaded(config, mamba.convert(dump.section("param/"), config))
    results = _training(model, tokens, functools.partial(mamba.to_reference, config=config))
    if "logits_cached" in dump.section("out/"):
        logits, caches = _stepped(model, tokens, PREFILL)
        results |= {"out/logits_cached": logits}
        for when, cache in zip(("after_prefill", "end"), caches, strict=True):
            results |= {f"out/cache0_{when}_{i}": x for i, x in enumerate(cache)}
    return results


@family("mamba1_shared", "mamba2_shared")
def run_shared(dump: Dump) -> Arrays:
    inputs, theirs = dump.inputs(["input_ids", "targets"]), dict(dump.config["cfg"])
    theirs["vocab_size"] = theirs.pop("vocab")
    config = mamba.config_from_reference(theirs | {"tie_embeddings": True})
    model = _loaded(config, mamba.convert(dump.section("param/"), config))
    tokens, targets = (inputs[name].astype(np.int32) for name in ("input_ids", "targets"))
    back = functools.partial(mamba.to_reference, config=config)
    return {k: x for k, x in _training(model, tokens, back, targets).items() if k != "out/loss"}


@family("mamba1_hf", "falcon_mamba_hf", "mamba2_hf")
def run_hf(dump: Dump) -> Arrays:
    inputs, config = dump.inputs(["input_ids", "ids_left", "mask_left"]), mamba_hf.config_from_hf(dump.config)
    tokens, left = (inputs[name].astype(np.int32) for name in ("input_ids", "ids_left"))
    spelled = {"embedding": "embeddings"}
    model = _loaded(config, mamba.convert(dump.section("param/"), config, **spelled))
    results = _training(model, tokens, functools.partial(mamba.to_reference, config=config, **spelled))
    # Their single step of Mamba-2 forgets the limits of dt, so to compare with it ours is given none there.
    options = {name: value for name, value in config.mixer_options if name != "dt_limit"}
    unlimited = _loaded(dataclasses.replace(config, mixer_options=options), model_arrays(model))
    logits, (_, cache) = _stepped(model, tokens, PROMPT, unlimited)
    results |= {"out/logits_cached": logits, "out/cache_conv0": cache[0], "out/cache_ssm0": cache[1]}
    results["out/greedy"] = np.concatenate(
        [tokens[:, :PROMPT], ssmjax.generate(model, tokens[:, :PROMPT], max_new_tokens=NEW)], axis=1
    )
    padded = jax.jit(lambda: model.prefill(left, model.init_cache(*left.shape), mask=inputs["mask_left"] != 0)[0])
    return results | {"out/logits_leftpad_last": np.asarray(padded())}


def _loaded(config: LanguageModelConfig, arrays: Arrays) -> nnx.Module:
    model = nnx.eval_shape(lambda: registry.build("language_model", config))
    set_model_arrays(model, arrays)
    return model


def _training(model, tokens, to_reference, targets=None) -> dict[str, np.ndarray]:
    """Logits, the streams after each block and the last after the norm, the loss and its gradients."""
    definition, state = nnx.split(model)
    logits_of = slice(None) if targets is not None else slice(None, -1)
    targets = tokens[:, 1:] if targets is None else targets

    def loss(state):
        model = nnx.merge(definition, state)
        *_, streams = model._run(model.embed(tokens), every=True)
        logits = model(tokens)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, logits_of]), targets[..., None], axis=-1)
        return -chosen.mean(), (logits, streams["layers"], model.hidden_states(tokens)[-1])

    (value, (logits, streams, last)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    results = {"out/logits": logits, "out/loss": value}
    results |= {f"out/hidden{i}": x for i, x in enumerate([*streams, last])}
    gradients = to_reference(model_arrays(nnx.merge(definition, gradients)))
    results |= {f"grad/{name}": x for name, x in gradients.items()}
    return {name: np.asarray(x) for name, x in results.items()}


def _stepped(model, tokens, first: int, stepper=None) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The logits where the tokens after the `first` come one by one; and the first block's cache, then and at the end.

    The originals' window of the convolution has as many columns as taps, one more than ours, so the first of theirs is
    taken from our cache before the last token.
    """
    definition, state = nnx.split(model)
    of_steps = definition if stepper is None else nnx.graphdef(stepper)

    @jax.jit
    def run(state):
        model, stepper = nnx.merge(definition, state), nnx.merge(of_steps, state)
        cache = model.init_cache(*tokens.shape)
        _, before = model.prefill(tokens[:, : first - 1], cache)
        _, cache = model.prefill(tokens[:, :first], cache)

        def step(cache, token):
            logits, after = stepper.step(token, cache)
            return after, (logits, jax.tree.map(lambda x: x[0], after["layers"]))

        _, (logits, caches) = jax.lax.scan(step, cache, tokens[:, first:].T)
        caches = [*(jax.tree.map(lambda x: x[0], c["layers"]) for c in (before, cache)), caches]
        return jnp.concatenate([model(tokens[:, :first]), logits.swapaxes(0, 1)], axis=1), caches

    logits, (before, cache, later) = run(state)
    pairs = (before, cache), (jax.tree.map(lambda x: x[-2], later), jax.tree.map(lambda x: x[-1], later))
    windows = [np.concatenate([np.asarray(a.conv)[:, :1], np.asarray(b.conv)], axis=1) for a, b in pairs]
    return np.asarray(logits), [
        (window.swapaxes(1, 2), np.asarray(b.ssm)) for window, (_, b) in zip(windows, pairs, strict=True)
    ]


@family("mamba2_official_mixer")
def run_mamba2(dump: Dump) -> Arrays:
    arguments = dict(dump.config)
    layer = nnx.eval_shape(
        lambda: Mamba2(arguments.pop("d_model"), **mamba.mixer_arguments("mamba2", arguments), rngs=nnx.Rngs(0))
    )
    inputs = dump.inputs(["x", "gy"])
    results = _mixer(layer, dump, inputs["x"], inputs["gy"])
    return {name: x for name, x in results.items() if name != "grad/u"}


@family("mamba3")
def run_mamba3(dump: Dump) -> Arrays:
    arguments = dict(dump.config)
    layer = nnx.eval_shape(
        lambda: Mamba3(arguments.pop("d_model"), **mamba.mixer_arguments("mamba3", arguments), rngs=nnx.Rngs(0))
    )
    inputs = dump.inputs(["u", "gy"])
    return _mixer(layer, dump, inputs["u"], inputs["gy"])


def _mixer(layer, dump: Dump, u, gy) -> dict[str, np.ndarray]:
    table = mamba.mixer_table()
    set_model_arrays(layer, table.to_ours(dump.section("param/"), model_arrays(layer)))
    definition, state = nnx.split(layer)

    @jax.jit
    def run(state, u):
        y, pull_back = jax.vjp(lambda state, u: nnx.merge(definition, state)(u), state, u)
        return y, *pull_back(gy)

    y, gradients, du = run(state, u)
    gradients = table.to_source(model_arrays(nnx.merge(definition, gradients)))
    results = {"out/y": y, "grad/u": du} | {f"grad/{name}": x for name, x in gradients.items()}
    return {name: np.asarray(x) for name, x in results.items()}
