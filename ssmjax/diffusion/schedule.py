"""How much noise each step has, and what follows from it, in float64 on the host."""

import dataclasses
import functools
import math

import numpy as np

from ssmjax import errors

__all__ = ["SPACINGS", "Schedule", "cosine_schedule", "linear_schedule"]

SPACINGS = ("uniform", "quadratic", "log_snr")
"""How the steps of a shorter schedule may be spread over the full one's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The variances of the noise that the steps add: `x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise`.

    The names follow "Denoising Diffusion Probabilistic Models" (https://arxiv.org/abs/2006.11239): `alpha_bar_t` is the
    product of `1 - beta` up to `t`, so that `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise`.

    Attributes:
        betas: (steps) float64, each in (0, 1).
        timesteps: (steps) what the network is told at each step; those of a shortened schedule are some of the full
            one's.

    Raises:
        ValueError: A beta is out of (0, 1), or the two have different lengths.

    >>> schedule = linear_schedule(1000)
    >>> len(schedule), schedule.respaced(4).timesteps.tolist()
    (1000, [0, 333, 666, 999])
    """

    betas: np.ndarray
    timesteps: np.ndarray

    def __post_init__(self) -> None:
        betas, timesteps = np.asarray(self.betas, np.float64), np.asarray(self.timesteps)
        if betas.ndim != 1 or not len(betas) or not np.all((betas > 0) & (betas < 1)):
            raise errors.bad_argument("Schedule", "betas", self.betas, "a sequence of numbers in (0, 1)")
        if timesteps.shape != betas.shape:
            raise errors.bad_shape("Schedule", "timesteps", timesteps, f"({len(betas)}), one a beta")
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "timesteps", timesteps)

    def __len__(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alpha_bars(self) -> np.ndarray:
        """The share of the image's variance that is left at each step."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def previous_alpha_bars(self) -> np.ndarray:
        """The share that is left one step before, 1 for the first step."""
        return np.concatenate([[1.0], self.alpha_bars[:-1]])

    @functools.cached_property
    def posterior_variances(self) -> np.ndarray:
        """The variance of `x_{t-1}` when `x_t` and `x_0` are known, 0 at the first step."""
        return self.betas * (1 - self.previous_alpha_bars) / (1 - self.alpha_bars)

    @functools.cached_property
    def log_variance_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The logarithms of the least and the largest variance of a denoising step.

        The least is that of the posterior; at the first step, where it is 0, the second step's stands in.
        """
        least = self.posterior_variances.copy()
        least[0] = least[1] if len(self) > 1 else self.betas[0]
        return np.log(least), np.log(self.betas)

    @functools.cached_property
    def posterior_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """The factors of `x_0` and of `x_t` in the mean of `x_{t-1}`."""
        before, rest = self.previous_alpha_bars, 1 - self.alpha_bars
        return np.sqrt(before) * self.betas / rest, np.sqrt(1 - self.betas) * (1 - before) / rest

    def respaced(self, steps: int, spacing: str = "uniform") -> "Schedule":
        """A schedule of fewer steps, from the first of this one to its last.

        The share of noise at each of them stays what it was (https://arxiv.org/abs/2102.09672, section 4).

        Args:
            steps: How many steps, at most as many as there are.
            spacing: How they are spread: `"uniform"` in time; `"quadratic"`, the square roots of the times evenly, with
                more steps where there is little noise; or `"log_snr"`, the logarithm of signal over noise evenly.

        Raises:
            ValueError: There are not as many steps, or the spacing is unknown.
        """
        remedy = f"The schedule has {len(self)} steps; a sampler can leave steps out, not add them."
        steps = errors.as_int("respaced", "steps", steps, least=1, most=len(self), remedy=remedy)
        if spacing not in SPACINGS:
            raise ValueError(f"respaced: {errors.unknown_name('spacing', spacing, SPACINGS)}")
        kept = self._places(steps, spacing) if steps > 1 else np.array([len(self) - 1])
        bars = self.alpha_bars[kept]
        return Schedule(1 - bars / np.concatenate([[1.0], bars[:-1]]), self.timesteps[kept])

    def _places(self, steps: int, spacing: str) -> np.ndarray:
        """Which steps a shorter schedule keeps: those nearest to an even spread, each once."""
        last = len(self) - 1
        even = np.arange(steps) / (steps - 1)
        if spacing == "log_snr":
            ratios = np.log(self.alpha_bars / (1 - self.alpha_bars))
            wanted = ratios[0] + even * (ratios[-1] - ratios[0])
            kept = np.round(np.interp(-wanted, -ratios, np.arange(len(self))))
        else:
            kept = np.round(last * even if spacing == "uniform" else last * even**2)
        for i in range(1, steps):  # two that were rounded to the same one move apart
            kept[i] = min(max(kept[i], kept[i - 1] + 1), last - (steps - 1 - i))
        return kept.astype(int)


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """Betas that grow linearly, as in DDPM (https://arxiv.org/abs/2006.11239, section 4).

    Args:
        steps: How many steps.
        first: The first beta of a schedule of 1000 steps; other lengths scale it by `1000 / steps`.
        last: The last beta, scaled likewise.

    Raises:
        ValueError: A beta is out of (0, 1), or the number of steps is none.

    >>> linear_schedule(1000).betas[[0, -1]].tolist()
    [0.0001, 0.02]
    """
    scale = 1000 / errors.as_int("linear_schedule", "steps", steps, least=1)
    return Schedule(np.linspace(scale * first, scale * last, steps), np.arange(steps))


def cosine_schedule(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Schedule:
    """The share of the image falls as a squared cosine (https://arxiv.org/abs/2102.09672, equation 17).

    It keeps small images visible for longer than `linear_schedule` does.

    Args:
        steps: How many steps.
        offset: Keeps the first betas from being too small.
        largest: Betas above it are lowered to it.

    Raises:
        ValueError: The number of steps is none.

    >>> cosine_schedule(1000).alpha_bars[[0, 500, 999]].round(4).tolist()
    [1.0, 0.4923, 0.0]
    """
    steps = errors.as_int("cosine_schedule", "steps", steps, least=1)
    place = (np.arange(steps + 1) / steps + offset) / (1 + offset)
    left = np.cos(place * math.pi / 2) ** 2
    return Schedule(np.minimum(1 - left[1:] / left[:-1], largest), np.arange(steps))
