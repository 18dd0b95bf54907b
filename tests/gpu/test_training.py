"""Two runs of training steps on the GPU agree in every bit with default flags: no sum is in an order of chance."""

import jax
import numpy as np
import pytest

import ssmjax
from benchmarks.models import example_batch, training_step
from ssmjax.training.state import commit

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["vim_tiny", "vim_compact_small"])
def test_two_runs_of_training_steps_are_bit_identical(name):
    model = ssmjax.create_model(name, dtype="bfloat16", img_size=64, num_classes=10, drop_path_rate=0.1)
    batch = example_batch((16, 64, 64, 3), np.float32, model.config)
    step, state = training_step(model)
    step = jax.jit(step)

    def run():
        now = commit(state)
        for _ in range(3):
            now, metrics = step(now, batch)
        return jax.device_get((now.params, metrics))

    first, second = run(), run()
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
