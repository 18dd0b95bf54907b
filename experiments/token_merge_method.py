"""How the anchored merge works, on one picture: the scores, the anchors, the groups, the sizes, and the answers.

The small teacher that comes with the project looks at one validation picture of DigitScenes, with a merger that
`experiments.token_merge` or `experiments.vlm_finetune` trained, or with one that nobody trained, which is density
anchors. What they make of it is kept in `experiments/results/token_merge_method.json`; the figure is drawn from that.

Recipe (device, minutes, what is expected):
    python -m experiments.token_merge_method                                                 two CPU cores, 1
    python -m experiments.token_merge_method --merger runs/token_merge/llava_scenes/merger   two CPU cores, 1
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vlmjax
from experiments.shared import common, plots_vlm, scenes
from experiments.shared.plots import encode_images
from ssmjax.data.synthetic import QUESTION_TYPES
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.layers import Merger
from vlmjax.metrics import answer_divergence

NAME = "token_merge_method"


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    teacher: Path = Path("experiments/weights/llava_scenes")
    merger: Path | None = None
    """A folder of `save_merger`; None is a merger that was not trained."""
    picture: int = 0
    """Which of the validation pictures."""
    tokens: int = 16
    """How many are left of 144."""
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing, with a fresh teacher and merger."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Looks at the picture, writes the results file and draws the figure.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    common.require_writable("out_dir", config.out_dir)
    begin = time.time()
    if config.smoke:
        model = vlmjax.create_model("llava_scenes", vision={"depth": 1}, text={"depth": 1})
    else:
        model = vlmjax.load_pretrained(config.teacher, param_dtype="float32")
    untrained = config.merger is None
    merger = Merger(128, grid=(12, 12), rngs=nnx.Rngs(0)) if untrained else vlmjax.load_merger(config.merger)
    split = scenes.load(config.picture + 1, seed=3, split="validation")
    image = split.arrays["images"][config.picture][None]
    questions, wanted = (split.arrays[name][config.picture, 0] for name in ("questions", "answers"))
    x = model.visual_tokens(scenes.normalized(image))
    score = merger.heads(x)[1][0]
    state = merger(x, config.tokens)
    whole, merged = (
        scenes.answer_logits(model.language, model.projector(tokens), questions[None], kept)[0]
        for tokens, kept in ((x, None), (state.tokens, state))
    )
    report = make_report(
        NAME,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"teacher": config.teacher.name, "out_dir": ""},
        runs=[
            {
                "seed": 0,
                "seconds": time.time() - begin,
                "metrics": {"kl": float(answer_divergence(whole, merged)), "mass": float(state.size.sum())},
            }
        ],
        data={"name": "DigitScenes, validation", "sha256": split.sha256},
        example={
            "trained": not untrained,
            "image": encode_images((np.clip(np.asarray(image, np.float32), 0, 1) * 255).astype(np.uint8)),
            "score": np.round(np.asarray(score), 4).reshape(12, 12),
            "anchors": np.asarray(state.position[0]),
            "sizes": np.asarray(state.size[0]),
            "groups": np.asarray(state.assign[0].argmax(0)).reshape(12, 12),
            "questions": np.asarray(questions),
            "answers": np.asarray(wanted),
            "whole": np.asarray(whole.argmax(-1)),
            "merged": np.asarray(merged.argmax(-1)),
            "sure": np.round(np.asarray(jnp.max(jax.nn.softmax(merged), axis=-1)), 4),
            "types": list(QUESTION_TYPES),
        },
    )
    results, figure = common.result_paths(config.out_dir, NAME)
    write_report(results, report)
    plots_vlm.draw_merge_method(results, figure)
    print(render_table(report))
    return report


if __name__ == "__main__":
    common.run_cli(main, Config)
