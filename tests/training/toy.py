"""A model that trains in a second: an MLP with batch statistics and dropout, on a noisy linear problem."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax.training.fit import FitConfig, FitResult, fit
from ssmjax.training.optim import adamw

BATCH = 16


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, *, train=False, key=None):
        x = jax.nn.gelu(self.norm(self.first(x), use_running_average=not train))
        if key is not None:
            x = x * jax.random.bernoulli(key, 0.9, x.shape)
        return self.last(x)


def mlp() -> Mlp:
    return Mlp(nnx.Rngs(0))


def batch_fn(step: int, *, nan_at: frozenset[int] = frozenset(), fill: float = np.nan) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((1, step))
    x = rng.normal(size=(BATCH, 4)).astype(np.float32)
    y = np.stack([x[:, 0] + x[:, 1], x[:, 2], -x[:, 3]], 1) + 0.01 * rng.normal(size=(BATCH, 3)).astype(np.float32)
    if step in nan_at:
        x[0, 0] = fill
    return {"x": x, "y": y.astype(np.float32)}


def loss(model, batch, key):
    error = model(batch["x"], train=True, key=key) - batch["y"]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def train(steps: int = 12, *, batches=batch_fn, **options) -> FitResult:
    """Trains the toy model; `options` are those of `fit` and the fields of `FitConfig`."""
    fields = {name: options.pop(name) for name in list(options) if name in FitConfig.__dataclass_fields__}
    config = FitConfig(**{"log_every": 1, "progress": False, "ema_decay": 0.9, **fields})
    optimizer = adamw(0.01, steps=20, warmup_steps=2)
    return fit(mlp(), loss, batches, steps=steps, config=config, **{"optimizer": optimizer, **options})


def with_nan(*steps: int, fill: float = np.nan):
    """Batches that are not finite at some steps."""
    return functools.partial(batch_fn, nan_at=frozenset(steps), fill=fill)


def state_bytes(state) -> dict[str, bytes]:
    """The bytes of each array of a state."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).tobytes()
        for path, x in leaves
    }


def without_rate(records) -> list[dict]:
    """Records without what depends on the clock."""
    return [{name: value for name, value in record.items() if not name.endswith("_per_second")} for record in records]
