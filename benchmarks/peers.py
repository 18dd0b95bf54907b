"""Reference implementations as opponents, from a copy of their sources that the user provides (`--peer`).

Nothing of theirs is here: modules are loaded from the given folder under names of our own. It may hold
`models/s4/s4.py` and `models/s4/s4d.py` (state-spaces/s4, which need torch and einops) and `s5/ssm.py`
(lindermanlab/S5), in itself or one folder below. Each is checked before it is timed: with its weights, our layer must
give its outputs and gradients.
"""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import sys
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from benchmarks.cases import Case

__all__ = ["Peer", "find_sources", "load_peer", "load_source", "mismatch"]

SOURCES = {
    "s4d": "models/s4/s4.py",
    "s4": "models/s4/s4.py",
    "s4d_glu": "models/s4/s4d.py",
    "s5": "s5/ssm.py",
}
"""For each layer case the source file of its opponent."""

Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Peer:
    """An opponent with everything that its two passes need.

    Attributes:
        name: With the beginning of its source's sha256.
        passes: `"forward"` and `"forward+backward"`, functions without arguments.
        weights: Under our names.
        x, dy: Input and cotangent, (b l h).
        y, dx: Output and gradient of the input, (b l h).
    """

    name: str
    passes: Mapping[str, Callable[[], object]]
    weights: Mapping[str, np.ndarray]
    x: np.ndarray
    dy: np.ndarray
    y: np.ndarray
    dx: np.ndarray


def find_sources(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The source files that the folder has, by layer case.

    Raises:
        ValueError: It has none.
    """
    if not folder.is_dir():
        raise ValueError(f"--peer {folder}: no such folder.")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = {layer: [p / source for p in places if (p / source).is_file()] for layer, source in SOURCES.items()}
    if not any(found.values()):
        wanted = ", ".join(sorted(set(SOURCES.values())))
        raise ValueError(f"--peer {folder}: none of {wanted} is there or one folder below.")
    return {layer: paths[0] for layer, paths in found.items() if paths}


def load_peer(layer: str, source: pathlib.Path, shape: Shape) -> Peer:
    """The opponent of a layer case at a shape (b l h n).

    Args:
        layer: A key of `SOURCES`.
        source: Its source file.
        shape: Batch, length, features, and full state size.

    Raises:
        ImportError: It needs a package that is not installed.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    return _LOADERS[layer](f"peer: {source.name} ({digest})", source, shape)


def mismatch(case: Case, peer: Peer) -> dict[str, float]:
    """The relative errors of our layer with the opponent's weights, by pass."""
    state, _ = case.args
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    names = {".".join(map(str, path)): path for path in flat}
    if names.keys() != peer.weights.keys():
        raise ValueError(f"{peer.name}: weights {sorted(peer.weights)}, ours are {sorted(names)}.")
    new = {path: jnp.asarray(peer.weights[name]).reshape(flat[path].shape) for name, path in names.items()}
    state = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(traverse_util.unflatten_dict(new)))

    @jax.jit
    def run(state, x, dy):
        y, pullback = jax.vjp(lambda x: case.ours["ours: auto"](state, x), x)
        return y, pullback(dy)[0]

    y, dx = run(state, jnp.asarray(peer.x), jnp.asarray(peer.dy))
    pairs = {"forward": (y, peer.y), "forward+backward": (dx, peer.dx)}
    return {which: float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for which, (a, b) in pairs.items()}


def _s4(name: str, source: pathlib.Path, shape: Shape, **options) -> Peer:
    b, l, h, n = shape
    module = _torch_module("peer_s4", source, _without_lightning())
    layer = module.FFTConv(h, l_max=l, activation=None, d_state=n, **options)
    return _torch_peer(name, layer, shape, lambda state: {k: v for k, v in state.items() if k != "kernel.l_kernel"})


def _s4d_minimal(name: str, source: pathlib.Path, shape: Shape) -> Peer:
    def ours(state):
        C = state["kernel.C"][None]
        return {
            "layer.D": state["D"],
            "layer.kernel.C": C,
            "layer.kernel.B": np.broadcast_to(np.array([1, 0], np.float32), C.shape),
            "layer.kernel.inv_dt": state["kernel.log_dt"],
            "layer.kernel.A_real": state["kernel.log_A_real"],
            "layer.kernel.A_imag": -state["kernel.A_imag"],
            "output_linear.kernel": state["output_linear.0.weight"][..., 0].T,
            "output_linear.bias": state["output_linear.0.bias"],
        }

    module = _torch_module("peer_s4d", source, _without_dropout())
    return _torch_peer(name, module.S4D(shape[2], d_state=shape[3]), shape, ours)


def _torch_module(name: str, source: pathlib.Path, stand_ins: Mapping[str, types.ModuleType]) -> types.ModuleType:
    import torch

    torch.manual_seed(0)  # its layers draw their weights from the global state
    return load_source(name, source, stand_ins)


def _torch_peer(name: str, layer, shape: Shape, ours: Callable[[dict], dict]) -> Peer:
    """A torch layer that maps (b h l) to (b h l), the layout that it is fastest in, on as many threads as XLA takes."""
    import torch

    torch.set_num_threads(os.cpu_count())
    b, l, h, _ = shape
    x, dy = torch.randn(b, h, l, requires_grad=True), torch.randn(b, h, l)
    layer(x.detach())  # S4 rewrites its C at the first call
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def forward():
        with torch.no_grad():
            return layer(x)[0]

    def both():
        return torch.autograd.grad(layer(x)[0], inputs, dy)

    weights = ours({k: v.detach().numpy() for k, v in layer.state_dict().items()})
    arrays = (np.moveaxis(v.detach().numpy(), 1, 2) for v in (x, dy, forward(), both()[0]))
    return Peer(name, {"forward": forward, "forward+backward": both}, weights, *arrays)


def _s5(name: str, source: pathlib.Path, shape: Shape) -> Peer:
    """Over a batch, compiled once a pass."""
    b, l, h, n = shape
    package = types.ModuleType("peer_s5")
    package.__path__ = [str(source.parent)]
    aliases = {} if hasattr(jnp, "DeviceArray") else {"DeviceArray": jax.Array}  # a name that newer JAX lacks
    for alias, value in aliases.items():
        setattr(jnp, alias, value)
    try:
        init = load_source("peer_s5.ssm_init", source.parent / "ssm_init.py", {"peer_s5": package})
        ssm = load_source("peer_s5.ssm", source, {"peer_s5": package, "peer_s5.ssm_init": init})
        Lambda, _, _, V, _ = init.make_DPLR_HiPPO(n)
        Lambda, V = Lambda[: n // 2], V[:, : n // 2]
        matrices = dict(Lambda_re_init=Lambda.real, Lambda_im_init=Lambda.imag, V=V, Vinv=V.conj().T)
        options = dict(C_init="trunc_standard_normal", discretization="zoh", dt_min=1e-3, dt_max=0.1)
        layer = ssm.S5SSM(H=h, P=n // 2, **matrices, **options)
    finally:
        for alias in aliases:
            delattr(jnp, alias)
    keys = jax.random.split(jax.random.key(0), 3)
    params = layer.init(keys[0], jnp.zeros((l, h)))
    x, dy = (jax.random.normal(key, (b, l, h)) for key in keys[1:])
    apply = jax.vmap(layer.apply, in_axes=(None, 0))

    def gradients(params, x, dy):
        y, pullback = jax.vjp(apply, params, x)
        return y, pullback(dy)

    forward = jax.jit(apply).lower(params, x).compile()
    both = jax.jit(gradients).lower(params, x, dy).compile()
    passes = {"forward": lambda: forward(params, x), "forward+backward": lambda: both(params, x, dy)}
    y, (_, dx) = both(params, x, dy)
    return Peer(name, passes, {k: np.asarray(v) for k, v in params["params"].items()}, x, dy, y, dx)


_LOADERS = {
    "s4d": lambda *args: _s4(*args, mode="diag", init="diag-lin"),
    "s4": lambda *args: _s4(*args, mode="dplr", init="legs"),
    "s4d_glu": _s4d_minimal,
    "s5": _s5,
}


def load_source(name: str, path: pathlib.Path, stand_ins: Mapping[str, types.ModuleType]) -> types.ModuleType:
    """A source file as a module; the stand-ins can be imported while it is loaded."""
    missing = {key: module for key, module in stand_ins.items() if key not in sys.modules}
    sys.modules.update(missing)
    try:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for key in missing:
            del sys.modules[key]
    return module


def _without_lightning() -> dict[str, types.ModuleType]:
    """What `s4.py` takes from pytorch_lightning where that is not installed: a decorator of its logger."""
    if importlib.util.find_spec("pytorch_lightning"):
        return {}
    root, utilities = types.ModuleType("pytorch_lightning"), types.ModuleType("pytorch_lightning.utilities")
    utilities.rank_zero_only = lambda function: function
    return {"pytorch_lightning": root, "pytorch_lightning.utilities": utilities}


def _without_dropout() -> dict[str, types.ModuleType]:
    """What `s4d.py` takes from the rest of its repository: a dropout, which it does not use at a rate of zero."""
    modules = {name: types.ModuleType(name) for name in ("src", "src.models", "src.models.nn")}
    modules["src.models.nn"].DropoutNd = None
    return modules
