"""Initial values of parameters, each with the equation and the paper it comes from."""

from ssmjax.init.projections import fan_in_uniform, uniform
from ssmjax.init.s4d_real import s4d_real_log
from ssmjax.init.step_size import inverse_softplus, step_size_bias

__all__ = ["fan_in_uniform", "inverse_softplus", "s4d_real_log", "step_size_bias", "uniform"]
