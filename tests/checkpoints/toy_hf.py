"""A small model with everything that a Hugging Face layout asks of a key table, in a family that only tests have."""

import contextlib
import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import nnx

from ssmjax.checkpoints.mapping import Era, KeyTable, Rule
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.models import registry
from ssmjax.models.config import check_fields
from ssmjax.models.family import Family, HFLayout


@no_type_check
@dataclasses.dataclass(frozen=True)
class ToyConfig:
    width: int = 4
    depth: int = 3
    vocab: int = 7
    tied: bool = False
    __post_init__ = check_fields


class Layer(nnx.Module):
    def __init__(self, config, *, rngs):
        self.q = nnx.Linear(config.width, config.width, rngs=rngs)
        self.k = nnx.Linear(config.width, 2, rngs=rngs)

    def __call__(self, x):
        return x + self.q(x) * self.k(x).sum(-1, keepdims=True)


class Toy(nnx.Module):
    def __init__(self, config, *, rngs):
        self.config = config
        draw = jax.random.normal(rngs.params(), (config.vocab, config.width))
        self.embed = parameter(draw, "embedding")
        self.layers = make_stack(lambda rngs: Layer(config, rngs=rngs), config.depth, rngs)
        self.statistics = nnx.BatchStat(jnp.zeros(2))
        self.head = None if config.tied else nnx.Linear(config.width, config.vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = apply_stack(self.layers, lambda x, layer, _: layer(x), self.embed[...][tokens])
        return x @ self.embed[...].T if self.head is None else self.head(x)


def read(description):
    rest = {"model_type", "architectures", "torch_dtype", "ssmjax_version"}
    return ToyConfig(**{name: value for name, value in description.items() if name not in rest})


def write(config):
    return {"model_type": "toy", "architectures": ["ToyForCausalLM"], **dataclasses.asdict(config)}


def table(config):
    parts = ("layers.q", "layers.k")
    return KeyTable(
        (
            Rule("model.embed.weight", "embed"),
            Rule("model.layers.{i}.qk.weight", tuple(f"{part}.kernel" for part in parts), "linear"),
            Rule("model.layers.{i}.qk.bias", tuple(f"{part}.bias" for part in parts)),
            Rule("model.running", "statistics"),
            Rule("lm_head.weight", "head.kernel", "linear"),
        ),
        ignored=("model.layers.{i}.inv_freq",),
        tied={"lm_head.weight": "model.embed.weight"} if config.tied else {},
        eras=(Era("memory", {"model.language_model.": "model."}),),
    )


LAYOUT = HFLayout(("toy",), read=read, write=write, table=table, architectures=("ToyForCausalLM",))


def inputs(config, batch):
    return {"tokens": jax.ShapeDtypeStruct((batch, 5), jnp.int32)}


@contextlib.contextmanager
def registered(monkeypatch, **fields):
    """The family is there for the time of a test."""
    registry.families()
    monkeypatch.setattr(registry, "_families", dict(registry._families))
    registry.register_family(Family("toy", ToyConfig, Toy, inputs=inputs, **({"hf": LAYOUT} | fields)))
    yield
