"""Converters from the parameters of original implementations in Flax: a key table a family, read both ways.

>>> from ssmjax.checkpoints import from_flax
>>> from_flax.s5.config_from_reference({"H": 8, "P": 4})["clip_eigs"]
False
"""

from ssmjax.checkpoints.from_flax import annotated_model, annotated_s4, event_ssm, lru, s5, s5_model

__all__ = ["annotated_model", "annotated_s4", "event_ssm", "lru", "s5", "s5_model"]
