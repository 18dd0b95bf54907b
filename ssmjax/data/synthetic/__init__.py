"""Data sets that are drawn, not downloaded; each a function of its parameters and a seed."""

from ssmjax.data.synthetic.adding import adding_batch
from ssmjax.data.synthetic.copying import copying_batch
from ssmjax.data.synthetic.delay import delay_batch, white_noise
from ssmjax.data.synthetic.digit_scenes import (
    COLORS,
    QUESTION_TYPES,
    SCENE_VOCABULARY,
    DigitScenes,
    draw_digit_scenes,
    scene_questions,
)
from ssmjax.data.synthetic.listops import (
    LISTOPS_VOCABULARY,
    ListOps,
    draw_listops,
    evaluate_listops,
    majority_rule,
    root_operator_rule,
    tokenize_listops,
)
from ssmjax.data.synthetic.pathfinder import PATHFINDER, Pathfinder, PathfinderConfig, draw_pathfinder
from ssmjax.data.synthetic.touch_tones import TOUCH_TONES, touch_tones

__all__ = [
    "COLORS",
    "QUESTION_TYPES",
    "SCENE_VOCABULARY",
    "DigitScenes",
    "draw_digit_scenes",
    "scene_questions",
    "LISTOPS_VOCABULARY",
    "PATHFINDER",
    "TOUCH_TONES",
    "ListOps",
    "Pathfinder",
    "PathfinderConfig",
    "adding_batch",
    "copying_batch",
    "delay_batch",
    "evaluate_listops",
    "draw_listops",
    "majority_rule",
    "draw_pathfinder",
    "root_operator_rule",
    "tokenize_listops",
    "touch_tones",
    "white_noise",
]
