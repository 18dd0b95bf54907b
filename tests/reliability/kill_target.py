"""A training run to be killed: `python -m tests.reliability.kill_target DIRECTORY CACHE`.

The same command resumes it. At its end it writes the sha256 of every array of its last state to `final.json`.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.evaluate import evaluate
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw

STEPS, SAVE_EVERY = 200, 10


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(8, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)  # a random state inside of the model, to be carried too
        self.last = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x, *, train=False):
        x = jax.nn.relu(self.norm(self.first(x), use_running_average=not train))
        return self.last(self.drop(x, deterministic=not train))


def batch_fn(step: int) -> dict[str, np.ndarray]:
    time.sleep(0.002)
    rng = np.random.default_rng((7, step))
    image = rng.normal(size=(32, 8)).astype(np.float32)
    return {"image": image, "label": image[:, :4].argmax(1).astype(np.int32)}


def prepare(batch, key, train):
    return {**batch, "image": batch["image"] + 0.1 * jax.random.normal(key, batch["image"].shape)}


def loss(model, batch, key):
    return jnp.mean(softmax_cross_entropy(model(batch["image"], train=True), batch["label"], label_smoothing=0.1)), {}


def evaluation(model, step):
    metrics = evaluate(model, [batch_fn(10_000 + i) for i in range(3)])
    return {"loss": metrics["loss"], "accuracy": metrics["accuracy"]}


def digests(state) -> dict[str, str]:
    """The sha256 of each array of a state, by path."""

    def digest(x):
        x = jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return hashlib.sha256(np.asarray(x).tobytes()).hexdigest()

    return {jax.tree_util.keystr(path): digest(x) for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def main(directory: str, cache: str) -> int:
    enable_compilation_cache(cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = FitConfig(
        log_every=1,
        eval_every=25,
        save_every=SAVE_EVERY,
        checkpoint_dir=directory,
        keep=2,
        ema_decay=0.99,
        progress=False,
    )
    result = fit(
        Classifier(nnx.Rngs(0)),
        loss,
        batch_fn,
        steps=STEPS,
        optimizer=adamw(0.01, steps=STEPS, warmup_steps=10),
        config=config,
        prepare=prepare,
        eval_fn=evaluation,
    )
    if not result.interrupted:
        (Path(directory) / "final.json").write_text(json.dumps(digests(result.state)))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
