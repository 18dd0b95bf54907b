"""Layers and models on a mesh of eight devices against one device: `python -m tests.models.mesh_target [NAME...]`.

It runs in a process of its own, since the number of a CPU's devices is fixed once jax has started. Every name, of a
layer of the registry or of a tiny model, is run on an explicit mesh, which `jax.make_mesh` makes by default, inside of
`jax.set_mesh` and outside, and on an automatic one, with the batch split over the devices: the output and all gradients
are those of one device.
"""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tests.layers import quick
from tests.models.registry_cases import case, failures, layer_names, model_names

DEVICES = 8
EXPLICIT, AUTO = (AxisType.Explicit,), (AxisType.Auto,)


def with_gradients(run):
    """The output and the gradients of its sum of squares, in the parameters and in what is a float."""

    def both(state, inputs):
        floats = {k: v for k, v in inputs.items() if jnp.issubdtype(v.dtype, jnp.floating)}

        def loss(state, floats):
            y = run(state, inputs | floats)
            return sum((v.astype(jnp.float32) ** 2).sum() for v in jax.tree.leaves(y)), y

        (_, y), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, floats)
        return y, gradients

    return both


def trace(name):
    """Traces it on an explicit mesh, for which no device is needed."""
    run, _, state, inputs = case(name, DEVICES)
    mesh = AbstractMesh((DEVICES,), ("data",), axis_types=EXPLICIT)

    def placed(tree, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), tree)

    for v in jax.tree.leaves(jax.eval_shape(with_gradients(run), placed(state), placed(inputs, "data"))[0]):
        assert v.sharding.spec[0] == "data", f"the rows of the output are not split: {v.sharding}"


def comparable(path):
    """The array whose largest value is the scale of one's errors: itself, but for the bias of an attention's keys.

    A softmax does not see what all keys have in common, so that its gradient is zero but for rounding (unless a
    rotation comes between): it is compared on the scale of the queries' bias.
    """
    return jax.tree_util.keystr(path).replace("['k']['bias']", "['q']['bias']")


def compare(name):
    """Raises if a mesh gives other numbers than one device."""
    it = case(name, DEVICES)
    run, args = with_gradients(it.run), it.arguments()
    wanted = dict(jax.tree_util.tree_leaves_with_path(quick.jit(run)(*args)))
    scales = {jax.tree_util.keystr(path): np.abs(np.asarray(v)).max() for path, v in wanted.items()}
    for types, inside in ((EXPLICIT, True), (EXPLICIT, False), (AUTO, True)):
        mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=types)
        shardings = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        placed = [jax.device_put(v, sharding) for v, sharding in zip(args, shardings, strict=True)]
        with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
            got = quick.jit(run)(*placed)
        for path, ours in jax.tree_util.tree_leaves_with_path(got):
            error = np.abs(np.asarray(ours) - np.asarray(wanted[path])).max() / (scales[comparable(path)] + 1e-6)
            assert error < 1e-4, f"{types}, {jax.tree_util.keystr(path)}: {error:.1e}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    wrong = failures(compare, sys.argv[1:] or [*layer_names(), *model_names()])
    print(wrong or "all as on one device")
    sys.exit(bool(wrong))
