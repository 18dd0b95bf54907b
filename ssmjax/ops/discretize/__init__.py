"""Discretizations of a diagonal state space."""

from ssmjax.ops.discretize.api import discretize

__all__ = ["discretize"]
