"""The delay task: give back band-limited noise a fixed time later (Gu et al. 2023, "How to Train Your HiPPO")."""

import numpy as np

from ssmjax.data.synthetic.streams import at_least, stream
from ssmjax.errors import bad_argument

__all__ = ["delay_batch", "white_noise"]


def delay_batch(
    seed: int,
    step: int,
    *,
    batch_size: int,
    length: int = 4000,
    lag: int = 1000,
    dt: float = 2.5e-4,
    cutoff: float = 1000.0,
    rms: float = 0.5,
) -> dict[str, np.ndarray]:
    """A batch of the delay task: band-limited white noise, and the same noise `lag` steps later, zero before that.

    Args:
        seed: Of the task.
        step: Of the batch; (seed, step) determine it.
        batch_size: b.
        length: l, in steps.
        lag: By how many steps the target lags, 1 <= lag < length.
        dt: Seconds a step.
        cutoff: Highest frequency of the noise, in hertz.
        rms: Root mean square of the noise before it is shifted to start at 0.

    Returns:
        `signal` and `target`, both (b l 1) float32.

    Raises:
        ValueError: If a size is too small, the lag not inside the sequence, or the cutoff out of what a sequence of
            this length and step can hold.

    >>> batch = delay_batch(0, 0, batch_size=2, length=64, lag=16)
    >>> bool((batch["target"][:, 16:] == batch["signal"][:, :-16]).all()), float(abs(batch["target"][:, :16]).max())
    (True, 0.0)
    """
    at_least("delay_batch", 1, batch_size=batch_size)
    at_least("delay_batch", 2, length=length)
    if not 1 <= lag < length:
        raise bad_argument("delay_batch", "lag", lag, f"at least 1 and less than the length, {length}")
    signal = white_noise(
        stream("delay_batch", seed, step), batch_size=batch_size, length=length, dt=dt, cutoff=cutoff, rms=rms
    )
    target = np.zeros_like(signal)
    target[:, lag:] = signal[:, :-lag]
    return {"signal": signal[..., None], "target": target[..., None]}


def white_noise(
    rng: np.random.Generator, *, batch_size: int, length: int, dt: float, cutoff: float, rms: float
) -> np.ndarray:
    """Gaussian noise with a flat spectrum up to a cutoff and nothing above it, shifted to start at 0.

    Its Fourier coefficients are complex normal up to the cutoff; the power that the cutoff and the absent mean take
    away is given back to the coefficients that are kept, so that the root mean square is the one asked for.

    Args:
        rng: Drawn from.
        batch_size: b.
        length: l; of an odd length, the period is one step longer.
        dt: Seconds a step.
        cutoff: In hertz, from one period of the sequence up to the Nyquist frequency 1 / (2 dt).
        rms: Root mean square before the shift, positive.

    Returns:
        (b l) float32.

    Raises:
        ValueError: If dt or rms is not positive, or the cutoff is out of its range.

    >>> white_noise(np.random.default_rng(0), batch_size=1, length=5, dt=0.1, cutoff=5.0, rms=1.0).shape
    (1, 5)
    """
    for argument, value in (("dt", dt), ("rms", rms)):
        if not value > 0:
            raise bad_argument("white_noise", argument, value, "positive")
    half = -(-length // 2)
    lowest, nyquist = 1 / (2 * half * dt), 0.5 / dt
    # A hair of room: 1 / (2 half dt) and 0.5 / dt are exact bounds that the caller computes in another order.
    if not lowest * (1 - 1e-9) <= cutoff <= nyquist * (1 + 1e-9):
        raise bad_argument("white_noise", "cutoff", cutoff, f"from one period, {lowest:.6g} Hz, to {nyquist:.6g} Hz")
    kept = np.arange(half + 1) * lowest <= cutoff * (1 + 1e-9)
    kept[0] = False
    coefficients = rng.normal(0.0, rms * np.sqrt(0.5), (2, batch_size, half + 1))
    coefficients[1, :, -1] = 0.0  # the coefficient at the Nyquist frequency is real
    spectrum = (coefficients[0] + 1j * coefficients[1]) * kept
    spectrum *= np.sqrt(2 * half) * np.sqrt(half / kept.sum())
    noise = np.fft.irfft(spectrum, n=2 * half, axis=-1)[:, :length]
    return (noise - noise[:, :1]).astype(np.float32)
