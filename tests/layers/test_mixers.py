"""Every mixer by name: one call, packed sequences whole, in chunks and in steps, and blocks of any of them."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax.layers import (
    DSS,
    LRU,
    S4,
    S4D,
    S5,
    BiMamba,
    Mamba,
    Mixer,
    PackedState,
    SequenceBlock,
    make_mixer,
    registered_mixers,
)
from tests.layers import quick

D = 4
MIXERS = {
    "s4": {"l_max": 12},
    "s4d": {},
    "dss": {"l_max": 12},
    "dss(zoh)": {"discretization": "zoh"},
    "s5": {},
    "lru": {},
    "mamba": {},
    "mamba2": {"head_dim": 4},
    "mamba3": {"head_dim": 4},
}
IDS = np.array([[4, 4, 4, 4, 4, 7, 7, 7, 1, 1, 1, 4], [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]])
u = jax.random.normal(jax.random.key(3), (2, 12, D))


def make(name, **options):
    return make_mixer(name.split("(")[0], D, {"d_state": 4, **MIXERS.get(name, {}), **options}, rngs=nnx.Rngs(0))


def alone(layer, u, ids, mask=None, **options):
    """Every packed sequence by itself, the others masked (which other tests compare with loops over time)."""
    run = np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, axis=1)
    definition, parameters = nnx.split(layer)
    call = quick.jit(lambda parameters, u, mask: nnx.merge(definition, parameters)(u, mask=mask, **options))
    each = [(run == i) & (True if mask is None else mask) for i in range(run.max() + 1)]
    return sum(np.where(here[..., None], call(parameters, u, here), 0) for here in each)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        *(
            pytest.param(n, (5,), marks=[pytest.mark.slow] * ("(" in n or n in ("lru", "dss", "mamba3")))
            for n in MIXERS
        ),
        *(pytest.param(n, (2, 8, 9), marks=pytest.mark.slow) for n in MIXERS),
    ],
)
def test_packed_and_chunked(name, cuts):
    """Whole, in chunks that are cut inside and between sequences, and token by token: each as if it were alone."""
    layer = make(name)
    assert isinstance(layer, Mixer)
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, ids):
        layer = nnx.merge(definition, parameters)
        results = [layer(u, segment_ids=ids)]
        for cut in cuts:
            first, state = layer(u[:, :cut], segment_ids=ids[:, :cut], return_state=True)
            second = layer(u[:, cut:], segment_ids=ids[:, cut:], state=state)
            results.append(jnp.concatenate([first, second], axis=1))

        def step(state, token):
            y, state = layer.step(token[0], state, segment_ids=token[1])
            return state, y

        start = PackedState(layer.init_state(len(u)), ids[:, 0])
        _, y = jax.lax.scan(step, start, (u.swapaxes(0, 1), ids.T))
        return [*results, y.swapaxes(0, 1)]

    expected = alone(layer, u, IDS)
    for y in run(parameters, u, jnp.asarray(IDS)):
        np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s4d", "s5", "mamba"])
def test_packed_and_padded_chunks(name):
    layer, mask = make(name), np.ones((2, 12), bool)
    mask[0, [0, 4, 5, 11]], mask[1, :6] = False, False
    definition, parameters = nnx.split(layer)

    @quick.jit
    def run(parameters, u, ids, mask):
        layer = nnx.merge(definition, parameters)
        whole = layer(u, segment_ids=ids, mask=mask)
        state, pieces = None, []
        for first, last in ((0, 3), (3, 6), (6, 12)):  # the second row's first chunks are padding alone
            here = slice(first, last)
            y, state = layer(u[:, here], segment_ids=ids[:, here], mask=mask[:, here], state=state, return_state=True)
            pieces.append(y)
        return whole, jnp.concatenate(pieces, axis=1)

    expected = alone(layer, u, IDS, mask)
    for y in run(parameters, u, jnp.asarray(IDS), jnp.asarray(mask)):
        np.testing.assert_allclose(y, expected, atol=2e-5)


def test_the_state_carries_the_segment_it_ended_in():
    """The second half is another sequence: its outputs are those of the whole (0.18 away when the state went on)."""
    layer = Mamba(8, d_state=4, rngs=nnx.Rngs(0))
    chunk = quick.jit(functools.partial(layer, return_state=True))
    u = jax.random.normal(jax.random.key(0), (2, 16, 8))
    ids = jnp.repeat(jnp.arange(2)[None], 8, axis=1).sort(axis=1).repeat(2, axis=0)
    first, state = chunk(u[:, :8], segment_ids=ids[:, :8])
    assert state.segment.tolist() == [0, 0]
    second, state = chunk(u[:, 8:], segment_ids=ids[:, 8:], state=state)
    whole, _ = chunk(u, segment_ids=ids)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)
    _, further = quick.jit(layer.step)(u[:, 0], state)  # without an id it stays in its sequence
    assert further.segment.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("cls", "direction"), [(S4D, "exclusive"), (S4D, "inclusive"), (S5, "exclusive"), (LRU, "inclusive"), (BiMamba, "")]
)
def test_packed_in_both_directions(cls, direction):
    options = {} if cls is BiMamba else {"bidirectional": direction}
    layer = cls(D, d_state=4, **options, rngs=nnx.Rngs(0))
    y = quick.apply(layer, u, segment_ids=jnp.asarray(IDS))
    np.testing.assert_allclose(y, alone(layer, u, IDS), atol=2e-5)


def test_packed_events_in_both_directions():
    """The length of a step into the reverse direction is 1 where a sequence ends."""
    dts = jax.random.uniform(jax.random.key(1), (2, 12), minval=0.5, maxval=2.0)
    layer = S5(D, d_state=4, bidirectional="inclusive", rngs=nnx.Rngs(0))
    y = quick.apply(layer, u, segment_ids=jnp.asarray(IDS), dts=dts)
    np.testing.assert_allclose(y, alone(layer, u, IDS, dts=dts), atol=2e-5)


@pytest.mark.usefixtures("as_a_user")
def test_messages():
    ids = jnp.asarray(IDS)
    for name in MIXERS:
        layer = quick.lively(lambda: make(name))  # noqa: B023
        where = type(layer).__name__
        with pytest.raises(ValueError, match=rf"^{where}: segment_ids must be \(b, l\) = \(2, 12\), got \(2, 3\)"):
            layer(u, segment_ids=ids[:, :3])
        with pytest.raises(ValueError, match=f"^{where}: segment_ids must be of integers, got .* float32"):
            layer(u, segment_ids=ids * 1.0)
        with pytest.raises(ValueError, match=rf"^{where}.step: segment_ids must be \(b\) = \(2,\), got \(2, 12\)"):
            layer.step(u[:, 0], layer.init_state(2), segment_ids=ids)
    for cls in (S4, S4D, DSS):
        with pytest.raises(ValueError, match=f"{cls.__name__}: mode must be 'scan' or 'auto' with segment_ids"):
            cls(D, d_state=4, l_max=12, rngs=nnx.Rngs(0))(u, segment_ids=ids, mode="conv")
    with pytest.raises(ValueError, match="DSS: l_max must be given for a state, a step or a scan"):
        DSS(D, d_state=4, rngs=nnx.Rngs(0))(u, segment_ids=ids)
    for call in (lambda m: m(u, return_state=True), lambda m: m.init_state(2), lambda m: m.step(u[:, 0], None)):
        with pytest.raises(ValueError, match="BiMamba: state must be left out in both directions"):
            call(BiMamba(D, d_state=4, rngs=nnx.Rngs(0)))
    block = SequenceBlock(D, layer="mamba", layer_options={"d_state": 4}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="SequenceBlock: rate must be left out with layer='mamba'.*It takes mask, "):
        block(u, rate=2.0)
    image = SequenceBlock(D, layer="s4nd", layer_options={"d_state": 4}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="SequenceBlock: mask must be left out with layer='s4nd'"):
        image(u[:, None], mask=jnp.ones((2, 1), bool))


def test_every_mixer_has_the_call():
    for entry in registered_mixers():
        if not entry.spatial:
            call, step = (inspect.signature(getattr(entry.build, name)).parameters for name in ("__call__", "step"))
            assert list(call)[:2] == ["self", "u"] and {"mask", "segment_ids", "state", "return_state"} <= set(call)
            assert list(step)[:3] == ["self", "u", "state"] and "segment_ids" in step


@pytest.mark.parametrize("layer", ["mamba", "bimamba", "lru"])
def test_blocks_of_any_mixer(layer):
    block = SequenceBlock(D, layer=layer, layer_options={"d_state": 4}, rngs=nnx.Rngs(0))
    y = quick.apply(block, u, segment_ids=jnp.asarray(IDS))
    np.testing.assert_allclose(y, alone(block, u, IDS), atol=2e-5)
