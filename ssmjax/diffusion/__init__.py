"""Diffusion: schedules of noise, losses, samplers in one compiled loop, flow matching, and measures of quality.

It knows nothing of state space models. What it needs of a network is in `Denoiser`: `DiS` is one, and so is a user's
own module. Weights that are averaged over the training come from `ssmjax.training.fit` (`ema_decay`).
"""

from ssmjax.diffusion.denoiser import Denoiser, guide
from ssmjax.diffusion.flow import flow_loss, sample_flow
from ssmjax.diffusion.losses import add_noise, diffusion_loss, hybrid_terms
from ssmjax.diffusion.quality import frechet_distance, precision_recall
from ssmjax.diffusion.sampling import SAMPLERS as _SAMPLERS
from ssmjax.diffusion.sampling import sample
from ssmjax.diffusion.schedule import Schedule, cosine_schedule, linear_schedule

__all__ = [
    "SAMPLERS",
    "Denoiser",
    "Schedule",
    "add_noise",
    "cosine_schedule",
    "diffusion_loss",
    "flow_loss",
    "frechet_distance",
    "guide",
    "hybrid_terms",
    "linear_schedule",
    "precision_recall",
    "sample",
    "sample_flow",
]

SAMPLERS = _SAMPLERS
"""The samplers by name: DDPM with fresh noise in each step, DDIM, and the second-order DPM-Solver++."""
