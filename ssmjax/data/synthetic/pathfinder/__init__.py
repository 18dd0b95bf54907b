"""Pathfinder: whether two marked ends are those of one contour among distractors."""

from ssmjax.data.synthetic.pathfinder.config import PATHFINDER, PathfinderConfig
from ssmjax.data.synthetic.pathfinder.generator import Pathfinder, draw_pathfinder

__all__ = ["PATHFINDER", "Pathfinder", "PathfinderConfig", "draw_pathfinder"]
