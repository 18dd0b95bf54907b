"""Text from language models: a parallel prefill, then steps with a cache, in one compiled loop.

A model takes part if it has the three methods of `Generative`; transformers, state space models and vision-language
models have them alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.shapes import Array, Float, Int, Mask, PRNGKey

__all__ = ["Generative", "generate", "sample", "stream"]

_LAID_OUT_ANEW = 16  # steps that pay for it


class Generative(Protocol):
    """What a model needs for `generate`.

    Attributes:
        init_cache: `init_cache(batch, length)`, what the model keeps of up to `length` tokens a row, none so far; a
            tree of arrays. It raises `ValueError` for a length beyond the model's.
        prefill: `prefill(tokens, cache, *, mask=None, **inputs)`, for tokens (b l) and a mask (b l) that is False at
            padding on the left: the logits after the last token, (b v), and the cache. Padding changes no output. The
            inputs are what else a model reads, such as images.
        step: `step(tokens, cache)`, for one token a row, (b): the logits after it, (b v), and the cache.
        check_inputs: `check_inputs(tokens, *, mask=None, **inputs)`, where a model has it, raises `ValueError` if the
            inputs do not fit the tokens. It sees arrays with values, before anything is compiled.
        unstacked: `unstacked()` and `decoder(rows, transposed=...)`, where a model has them, give the form in which its
            steps are fastest; see `LanguageModel`.
    """

    def init_cache(self, batch: int, length: int) -> Any:
        """Makes an empty cache."""

    def prefill(self, tokens: Array, cache: Any, *, mask: Array | None = None, **inputs: Any) -> tuple[Array, Any]:
        """Reads prompts."""

    def step(self, tokens: Array, cache: Any) -> tuple[Array, Any]:
        """Reads one token a row."""


def generate(
    model: nnx.Module,
    tokens: Int[Array, "b l"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    eos_id: int | Sequence[int] | None = None,
    pad_id: int = 0,
    attention_mask: Mask | Int[Array, "b l"] | None = None,
    key: PRNGKey | None = None,
    return_logits: bool = False,
    **inputs: Any,
) -> Int[jax.Array, "b n"] | tuple[Int[jax.Array, "b n"], Float[jax.Array, "b n v"]]:
    """Continues prompts: one prefill in parallel, then one compiled loop of steps, which ends when every row has ended.

    Without a temperature the most likely token is taken. With one, a token is drawn from
    `softmax(logits / temperature)`, of which only those remain that `top_k`, `top_p` and `min_p` all keep.

    Args:
        model: A model with the methods of `Generative`.
        tokens: (b l) int, the prompts.
        max_new_tokens: How many tokens to make at most.
        temperature: 0 is greedy.
        top_k: Keeps the `k` most likely tokens (and those as likely as the last of them).
        top_p: Keeps the smallest set of the most likely tokens whose probabilities sum to `p` or more (nucleus
            sampling, https://arxiv.org/abs/1904.09751).
        min_p: Keeps tokens at least `min_p` times as likely as the most likely one (https://arxiv.org/abs/2407.01082).
        repetition_penalty: Divides positive logits of tokens that the row holds already, and multiplies negative ones
            (CTRL, https://arxiv.org/abs/1909.05858, section 4.1).
        eos_id: The token, or the tokens, after which a row ends; it is part of the result.
        pad_id: What fills a row after its end.
        attention_mask: (b l), zero or False at padding, on whichever side. A padded batch gives what each prompt alone
            gives (greedily; draws depend on the batch).
        key: A random key; needed with a temperature.
        return_logits: Also returns the logits that each token was chosen from, before any filter.
        **inputs: What else the model's `prefill` takes, such as `images`; a function among them is compiled with the
            rest, so pass the same one again.

    Returns:
        (b max_new_tokens) int32, the new tokens; with `return_logits` also (b max_new_tokens v) float32.

    Raises:
        ValueError: An argument does not fit, or there is no room for so many tokens.

    >>> import jax, jax.numpy as jnp, vlmjax, ssmjax
    >>> model = vlmjax.create_model("llama_nano", depth=1)
    >>> ssmjax.generate(model, jnp.array([[1, 2, 3]]), max_new_tokens=4).shape
    (1, 4)
    """
    call = _Call(
        model, tokens, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, eos_id, attention_mask, key
    )
    inputs = call.check(model, inputs)
    errors.require_flags("generate", return_logits=return_logits)
    new, logits = _loop(
        call.definition,
        call.state,
        call.rows,
        call.tokens,
        call.mask,
        call.key,
        inputs,
        call.numbers,
        count=max_new_tokens,
        top_k=top_k,
        eos=call.eos,
        pad=pad_id,
        keep=return_logits,
    )
    return (new, logits) if return_logits else new


def stream(
    model: nnx.Module,
    tokens: Int[Array, "b l"],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    eos_id: int | Sequence[int] | None = None,
    pad_id: int = 0,
    attention_mask: Mask | Int[Array, "b l"] | None = None,
    key: PRNGKey | None = None,
    **inputs: Any,
) -> Iterator[np.ndarray]:
    """`generate`, token by token, for people who wait: yields (b) int32 as each is made.

    Args:
        model: The model; it and the other arguments are those of `generate`.
        tokens: The prompts.
        max_new_tokens: How many tokens to make at most.
        temperature: 0 is greedy.
        top_k: Keeps the `k` most likely tokens.
        top_p: Keeps the nucleus.
        min_p: Keeps tokens nearly as likely as the first.
        repetition_penalty: Against repetition.
        eos_id: What ends a row.
        pad_id: What fills a row after its end.
        attention_mask: Zero at padding.
        key: A random key.
        **inputs: What else the model's `prefill` takes.

    >>> import jax.numpy as jnp, vlmjax
    >>> model = vlmjax.create_model("llama_nano", depth=1)
    >>> len([token for token in stream(model, jnp.array([[1, 2, 3]]), max_new_tokens=3)])
    3
    """
    call = _Call(
        model, tokens, max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, eos_id, attention_mask, key
    )
    inputs = call.check(model, inputs)
    settings = dict(top_k=top_k, eos=call.eos, pad=pad_id)
    held = call.definition, call.state, call.rows
    carry = _start(*held, call.tokens, call.mask, inputs, call.numbers, room=max_new_tokens)
    for i in range(max_new_tokens):
        token, carry, ended = _next(*held, carry, call.key, i, call.numbers, last=i + 1 == max_new_tokens, **settings)
        yield np.asarray(token)
        if bool(ended):
            return


def sample(
    logits: Float[Array, "b v"],
    key: PRNGKey | None = None,
    *,
    temperature: float | Array | None = None,
    top_k: int | None = None,
    top_p: float | Array | None = None,
    min_p: float | Array | None = None,
) -> Int[jax.Array, "b"]:
    """Chooses a token for each row; see `generate`.

    Args:
        logits: (b v).
        key: A random key, if there is a temperature.
        temperature: None is greedy.
        top_k: Keeps the `k` most likely tokens.
        top_p: Keeps the nucleus.
        min_p: Keeps tokens nearly as likely as the first.

    >>> import jax, jax.numpy as jnp
    >>> sample(jnp.array([[0.0, 2.0, 1.0]])).tolist()
    [1]
    >>> sample(jnp.array([[0.0, 2.0, 1.0]]), jax.random.key(0), temperature=1.0, top_k=1).tolist()
    [1]
    """
    logits = jnp.asarray(logits, jnp.float32)
    if temperature is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        kept = jnp.cumsum(shares, axis=-1) - shares < top_p  # what stands before a token has not reached p yet
        least = jnp.where(kept, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if min_p is not None:
        least = logits.max(-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


# --------------------------------------------------------------------------------------------------- inside


class _Call:
    """The arguments of a call, checked, in the form that the compiled parts take."""

    def __init__(self, model, tokens, count, temperature, top_k, top_p, min_p, penalty, eos_id, mask, key):
        where = "generate"
        missing = [name for name in ("init_cache", "prefill", "step") if not hasattr(model, name)]
        if missing:
            wanted = f"a language model; {type(model).__name__} has no {', '.join(missing)}"
            raise errors.bad_argument(where, "model", type(model).__name__, wanted)
        tokens = jnp.asarray(tokens)
        if tokens.ndim != 2 or 0 in tokens.shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise errors.bad_shape(where, "tokens", tokens, "an integer array (b l), both at least 1")
        errors.as_int(where, "max_new_tokens", count, least=1)
        if top_k is not None:
            errors.as_int(where, "top_k", top_k, least=1)
        self.numbers = _numbers(where, temperature, top_p, min_p, penalty)
        if "temperature" in self.numbers and key is None:
            raise errors.bad_argument(
                where, "key", None, "a random key where there is a temperature", "jax.random.key(0)"
            )
        if "temperature" not in self.numbers and any(x is not None for x in (top_k, top_p, min_p)):
            remedy = "Filters act on draws; temperature=1.0 draws."
            raise errors.bad_argument(where, "temperature", temperature, "above 0 with top_k, top_p or min_p", remedy)
        eos = () if eos_id is None else (eos_id,) if isinstance(eos_id, int | np.integer) else eos_id
        self.eos = tuple(errors.as_int(where, "eos_id", each, least=0) for each in eos)
        if mask is not None:
            if tuple(jnp.shape(mask)) != tokens.shape:
                raise errors.bad_shape(where, "attention_mask", mask, f"of the shape of tokens, {tokens.shape}")
            mask = jnp.asarray(mask) != 0
            if not isinstance(mask, jax.core.Tracer) and not bool(mask.any(1).all()):
                raise errors.bad_argument(where, "attention_mask", "a row without a token", "at least one token a row")
        self.tokens, self.mask, self.key = tokens, mask, key
        self.definition, self.state = nnx.split(model)
        self.rows = model.unstacked() if hasattr(model, "unstacked") else None

    def check(self, model: nnx.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Lets the model look at its further inputs, where it has a method for that; returns what the loop takes."""
        if hasattr(model, "check_inputs"):
            model.check_inputs(self.tokens, mask=self.mask, **inputs)
        return {name: _Function(x) if callable(x) else x for name, x in inputs.items()}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Function:
    """A function among the inputs, such as one that merges visual tokens: a part of the program and no array."""

    call: Callable

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.call(*args, **options)


def _numbers(where: str, temperature, top_p, min_p, penalty) -> dict[str, float]:
    """The options that are used; they are traced, so another value compiles nothing."""
    numbers = {}
    if errors.as_nonnegative(where, "temperature", temperature) > 0:
        numbers["temperature"] = float(temperature)
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None:
            numbers[name] = errors.as_nonnegative(where, name, value, positive=True)
            if numbers[name] > 1:
                raise errors.bad_argument(where, name, value, "a probability, at most 1")
    if penalty is not None:
        numbers["penalty"] = errors.as_nonnegative(where, "repetition_penalty", penalty, positive=True)
    return numbers


def _prefill(definition, state, tokens, mask, inputs, numbers, room):
    """The logits after the prompts, the cache, and which tokens each row holds (None if nobody asks)."""
    if mask is not None:  # padding goes to the left, wherever it was
        order = jnp.argsort(mask, axis=1, stable=True)
        tokens, mask = (jnp.take_along_axis(x, order, axis=1) for x in (tokens, mask))
        tokens = jnp.where(mask, tokens, 0)
    model = nnx.merge(definition, state)
    cache = model.init_cache(tokens.shape[0], tokens.shape[1] + room)
    logits, cache = model.prefill(tokens, cache, mask=mask, **inputs)
    seen = None
    if "penalty" in numbers:
        rows = jnp.arange(tokens.shape[0])[:, None]
        held = jnp.ones_like(tokens, bool) if mask is None else mask
        seen = jnp.zeros(logits.shape, bool).at[rows, tokens].max(held)
    return logits, cache, seen


def _choose(logits, seen, key, i, numbers, top_k):
    """The next token of each row."""
    if seen is not None:
        penalty = numbers["penalty"]
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    filters = {name: value for name, value in numbers.items() if name != "penalty"}
    key = None if "temperature" not in numbers else jax.random.fold_in(key, i)
    return sample(logits, key, top_k=top_k, **filters)


def _take(logits, seen, done, key, i, numbers, top_k, eos, pad):
    """One choice: the tokens, what the rows hold with them, and which rows have ended."""
    token = jnp.where(done, pad, _choose(logits, seen, key, i, numbers, top_k))
    if seen is not None:
        seen = seen | (jax.nn.one_hot(token, seen.shape[1], dtype=bool) & ~done[:, None])
    for each in eos:
        done = done | (token == each)
    return token, seen, done


class _AsItIs:
    """A model whose steps run in its own form."""

    def __init__(self, model):
        self.step = model.step

    def adopt(self, cache):
        return cache


def _decoder(model, rows, *, transposed=False):
    """What runs the steps: the model, or its decoder where it has a faster one."""
    decoder = model.decoder(rows, transposed=transposed) if hasattr(model, "decoder") else None
    return _AsItIs(model) if decoder is None else decoder


@functools.partial(jax.jit, static_argnames=("definition", "count", "top_k", "eos", "pad", "keep"))
def _loop(definition, state, rows, tokens, mask, key, inputs: Mapping, numbers, *, count, top_k, eos, pad, keep):
    """All new tokens, and their logits if they are to be kept."""
    logits, cache, seen = _prefill(definition, state, tokens, mask, inputs, numbers, count)
    b, v = logits.shape
    out = jnp.full((b, count), pad, jnp.int32)
    kept = jnp.zeros((b, count, v), jnp.float32) if keep else None
    several = b > 1 and count >= _LAID_OUT_ANEW
    decoder = _decoder(nnx.merge(definition, state), rows, transposed=several)
    cache = decoder.adopt(cache)

    def running(carry):
        i, *_, done, _, _ = carry
        return (i < count) & ~done.all()

    def body(carry):
        i, logits, cache, seen, done, out, kept = carry
        token, seen, done = _take(logits, seen, done, key, i, numbers, top_k, eos, pad)
        out = jax.lax.dynamic_update_slice(out, token[:, None], (0, i))
        if keep:
            kept = jax.lax.dynamic_update_slice(kept, logits[:, None].astype(jnp.float32), (0, i, 0))
        logits, cache = decoder.step(token, cache)
        return i + 1, logits, cache, seen, done, out, kept

    first = (jnp.zeros((), jnp.int32), logits, cache, seen, jnp.zeros((b,), bool), out, kept)
    *_, out, kept = jax.lax.while_loop(running, body, first)
    return out, kept


@functools.partial(jax.jit, static_argnames=("definition", "room"))
def _start(definition, state, rows, tokens, mask, inputs: Mapping, numbers, *, room):
    logits, cache, seen = _prefill(definition, state, tokens, mask, inputs, numbers, room)
    cache = _decoder(nnx.merge(definition, state), rows).adopt(cache)
    return logits, cache, seen, jnp.zeros((tokens.shape[0],), bool)


@functools.partial(jax.jit, static_argnames=("definition", "last", "top_k", "eos", "pad"))
def _next(definition, state, rows, carry, key, i, numbers, *, last, top_k, eos, pad):
    logits, cache, seen, done = carry
    token, seen, done = _take(logits, seen, done, key, i, numbers, top_k, eos, pad)
    if not last:
        logits, cache = _decoder(nnx.merge(definition, state), rows).step(token, cache)
    return token, (logits, cache, seen, done), done.all()
