"""S4, S4D, DSS and The Annotated S4: one layer in all its modes, and the gradients of sum(y * w)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_flax import annotated_s4
from ssmjax.checkpoints.from_torch import dss, s4, s4d_minimal
from ssmjax.layers import DSS, S4, S4D
from ssmjax.layers.lti.state_space import as_complex
from ssmjax.ops.recurrences.scan import scan
from tests.parity.harness import Dump, family, relative_error

Arrays = Mapping[str, np.ndarray]

REWRITE = 1e-4
"""How far our C~ may be from what the original made of its C, in float32."""


@family("s4")
def run_s4(dump: Dump) -> Arrays:
    state, theirs = dump.section("param/"), _s4_arguments(dump)
    cls, arguments = s4.layer_arguments(theirs, state)
    layer = _loaded(lambda: cls(**arguments, rngs=nnx.Rngs(0)), s4.convert(state, cls, arguments))
    inputs, wanted = dump.inputs(["u", "w"]), dump.section("out/")
    results = _results(layer, inputs, s4.to_reference) | {"out/K": _kernel(layer, wanted["K"].shape[-1])}
    if cls is S4:
        _check_rewrite(dump, arguments)
    if "ychunk" in wanted:
        results |= _chunks(layer, inputs["u"], wanted["ychunk"].shape[-1])
    for form in ("dense", "linear") if cls is S4 else ("",):
        suffix = f"_{form}" if form else ""
        if f"ystep{suffix}" in wanted:
            results |= {f"out/{name}{suffix}": x for name, x in _steps(layer, inputs["u"], form).items()}
    return results


@family("s4d_minimal")
def run_s4d_minimal(dump: Dump) -> Arrays:
    state, rest = _without_block(dump.section("param/"))
    arguments = s4d_minimal.layer_arguments(state)
    layer = _loaded(lambda: S4D(**arguments, rngs=nnx.Rngs(0)), s4d_minimal.convert(state, arguments))

    def block(rest, y):
        y = jnp.einsum("oik,bli->blo", rest["output_linear.0.weight"], jax.nn.gelu(y, approximate=False))
        return jax.nn.glu(y + rest["output_linear.0.bias"][None, None])

    inputs = dump.inputs(["u", "w"])
    kernel = _kernel(layer, inputs["u"].shape[-1])[0]
    return _results(layer, inputs, s4d_minimal.to_reference, block=block, rest=rest) | {"out/K": kernel}


@family("dss")
def run_dss(dump: Dump) -> Arrays:
    description = {"module", "L", "B", "note", "rel_re_pos"}
    renamed = {"H": "d_model", "N": "d_state"}
    theirs = {renamed.get(name, name): x for name, x in dump.config.items() if name not in description}
    if theirs.get("Lambda_init") == "randn":
        theirs.pop("Lambda_init")
    arguments = dss.layer_arguments(theirs)
    state, rest = _without_block(dump.section("param/"))
    layer = _loaded(lambda: DSS(**arguments, rngs=nnx.Rngs(0)), dss.convert(state, arguments))

    def block(rest, y):
        y = jnp.einsum("oi,bli->blo", rest["output_linear.weight"], jax.nn.gelu(y, approximate=False))
        return y + rest["output_linear.bias"][None, None, :, 0]

    inputs = dump.inputs(["u", "w"])
    length = inputs["u"].shape[-1]
    prepare = _detached(length) if dump.config["rel_re_pos"] else None
    results = _results(layer, inputs, dss.to_reference, block=block, rest=rest, prepare=prepare)
    return results | {"out/K": _kernel(layer, length)}


@family("s4_annotated")
def run_s4_annotated(dump: Dump) -> Arrays:
    variant = dump.config["variant"].partition("_")[0]
    parameters, inputs = dump.section("param/"), dump.inputs(["u", "w"])
    cls, arguments = annotated_s4.layer_arguments(variant, parameters, l_max=len(inputs["u"]))
    arrays = annotated_s4.convert(parameters, variant, arguments)
    layer = _loaded(lambda: cls(**arguments, rngs=nnx.Rngs(0)), arrays)
    inputs = {name: x.T[None] for name, x in inputs.items()}  # one sequence, (l h)

    def to_reference(gradients):
        theirs = annotated_s4.to_reference(gradients, variant)
        dead = {name: np.zeros_like(x) for name, x in theirs.items() if name in ("B_re", "B_im")}
        # `jax.grad` of a complex array is the conjugate of the pair of real gradients
        return {name: x.conj() if np.iscomplexobj(x) else x for name, x in theirs.items()} | dead

    results = _results(layer, inputs, to_reference)
    return results | {name: x[0].T for name, x in results.items() if name in ("out/y", "grad_in/u")}


def _s4_arguments(dump: Dump) -> dict[str, object]:
    """The original's arguments: those of the convolution, and of its kernel."""
    description = {"module", "H", "N", "B", "u_len", "layer_kw"}
    theirs = {name: value for name, value in dump.config.items() if name not in description}
    return theirs | dump.config["layer_kw"] | {"d_model": dump.config["H"], "d_state": dump.config["N"]}


def _loaded(build: Callable[[], nnx.Module], arrays: Arrays) -> nnx.Module:
    layer = nnx.eval_shape(build)
    set_model_arrays(layer, arrays)
    return layer


def _without_block(state: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The state space's arrays, and those of the linear map after it."""
    rest = {name: x for name, x in state.items() if name.startswith("output_linear")}
    return {name: x for name, x in state.items() if name not in rest}, rest


def _results(layer, inputs, to_reference, *, block=None, rest=None, prepare=None) -> dict[str, np.ndarray]:
    """Output and gradients; the originals put time last. `rest` are parameters of a `block` after the layer."""
    definition, state = nnx.split(layer)
    u, w = (rearrange(inputs[name], "b h l -> b l h") for name in ("u", "w"))

    @jax.jit
    def run(state, rest, u):
        def loss(state, rest, u):
            layer = nnx.merge(definition, state)
            if prepare is not None:
                prepare(layer)
            y = layer(u) if block is None else block(rest, layer(u))
            return jnp.sum(y * w), y

        return jax.grad(loss, (0, 1, 2), has_aux=True)(state, rest, u)

    (gradients, of_rest, of_u), y = run(state, rest or {}, u)
    gradients = to_reference(model_arrays(nnx.merge(definition, gradients))) | of_rest
    outputs = {"out/y": rearrange(y, "b l h -> b h l"), "grad_in/u": rearrange(of_u, "b l h -> b h l")}
    return {name: np.asarray(x) for name, x in outputs.items()} | {
        f"grad/{name}": np.asarray(x) for name, x in gradients.items()
    }


def _kernel(layer, length: int) -> np.ndarray:
    return np.asarray(rearrange(jax.jit(layer.kernel, static_argnums=0)(length), "c l h -> c h l"))


def _chunks(layer, u: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """Two chunks, with the state passed on."""
    definition, state = nnx.split(layer)

    @jax.jit
    def run(state, u):
        layer = nnx.merge(definition, state)
        first, carried = layer(u[:, : length // 2], return_state=True)
        second, last = layer(u[:, length // 2 :], state=carried, return_state=True)
        return jnp.concatenate([first, second], axis=1), last

    y, last = run(state, rearrange(u[..., :length], "b h l -> b l h"))
    return {"out/ychunk": np.asarray(rearrange(y, "b l h -> b h l")), "out/state_chunk": np.asarray(last)}


def _steps(layer, u: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """All steps one by one, and the matrices; the original's dense form keeps the conjugates of the state."""
    definition, state = nnx.split(layer)

    @jax.jit
    def run(state, u):
        layer = nnx.merge(definition, state)
        recurrence = layer.recurrence(form=form) if form else layer.recurrence()
        y, last = scan(recurrence, u, None, layer.init_state(len(u)))
        y = jnp.moveaxis(y + layer.D[...][None, :, None] * u[:, None], 1, 2).reshape(*u.shape[:2], -1)
        return y, last, layer.recurrence()

    y, last, matrices = jax.tree.map(np.asarray, run(state, rearrange(u, "b h l -> b l h")))
    results = {"ystep": rearrange(y, "b l h -> b h l")}
    if not form:
        return results | {"state_final": last} | dict(zip(("dA", "dB", "dC"), matrices, strict=True))
    n = last.shape[-1]
    A_bar, B, row = matrices.E + np.eye(2 * n), matrices.B_bar, matrices.C
    a, b, c, d = (A_bar[:, i : i + n, j : j + n] for i in (0, n) for j in (0, n))
    same, other = 0.5 * (a + d + 1j * (c - b)), 0.5 * (a - d + 1j * (c + b))
    dA = np.block([[same, other], [other.conj(), same.conj()]])
    C = 0.5 * (row[..., :n] - 1j * row[..., n:])
    results |= {"dA": dA, "dB": _completed(B[:, :n] + 1j * B[:, n:])}
    if form == "linear":
        return results | {"state_final": last, "dC": 2 * C}
    return results | {"state_final": _completed(last), "dC": _completed(C)}


def _completed(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x.conj()], axis=-1)


def _check_rewrite(dump: Dump, arguments: Mapping[str, object]) -> None:
    """The original makes C~ of its C in its first call: `param0` before, `param` after."""
    before, after = dump.section("param0/"), dump.section("param/")
    layer = _loaded(
        lambda: S4(**arguments, rngs=nnx.Rngs(0)),
        s4.convert(before | {"kernel.l_kernel": after["kernel.l_kernel"]}, S4, arguments),
    )
    layer.kernel.set_output(as_complex(layer.kernel.C[...]), int(after["kernel.l_kernel"]))
    error = relative_error(np.asarray(layer.kernel.C[...]), after["kernel.C"])
    if not error <= REWRITE:
        raise ValueError(f"C~ is off by {error:.1e} of what the original made of its C")


def _detached(length: int) -> Callable[[DSS], None]:
    """Gives a layer the original's gradients where real parts are positive.

    The original subtracts the largest exponent from all and detaches it, although its closed form of the sum does not
    have it. The values stay, the gradients lose a term; a factor `exp(x - stop_gradient(x))` takes it out here.
    """

    def prepare(layer: DSS) -> None:
        A, dt = layer.kernel.scaled()
        largest = jnp.where(A.real > 0, A * dt, 0) * (length - 1)
        factor = jnp.exp(largest - jax.lax.stop_gradient(largest))
        W = as_complex(layer.kernel.W[...]) * factor[None]
        layer.kernel.W[...] = jnp.stack([W.real, W.imag], axis=-1)

    return prepare
