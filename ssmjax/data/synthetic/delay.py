"""The delay task: give back band-limited noise a fixed time later (Gu et al. 2023, "How to Train Your HiPPO")."""

import numpy as np

from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int, as_nonnegative, bad_argument, bad_shape

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
        seed: The seed of the task.
        step: The number of the batch; (seed, step) determine it.
        batch_size: b.
        length: l, in steps.
        lag: By how many steps the target lags, 1 <= lag < length.
        dt: Seconds a step.
        cutoff: Highest frequency of the noise, in hertz.
        rms: Root mean square of the noise before it is shifted to start at 0.

    Returns:
        `signal` and `target`, both (b l 1) float32.

    Raises:
        ValueError: If a size is not a whole number or is too small, the lag not inside the sequence, the cutoff out of
            what a sequence of this length and step can hold, or the seed or the step out of its range.

    >>> batch = delay_batch(0, 0, batch_size=2, length=64, lag=16)
    >>> bool((batch["target"][:, 16:] == batch["signal"][:, :-16]).all()), float(abs(batch["target"][:, :16]).max())
    (True, 0.0)
    """
    where = "delay_batch"
    batch_size, length = as_int(where, "batch_size", batch_size, least=1), as_int(where, "length", length, least=2)
    wanted = f"an int, at least 1 and less than the length, {length}"
    lag = as_int(where, "lag", lag, wanted, least=1, most=length - 1)
    signal = white_noise(stream(where, seed, step), batch_size=batch_size, length=length, dt=dt, cutoff=cutoff, rms=rms)
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
        ValueError: If a size is not a positive int, dt or rms is not positive, the cutoff is out of its range, or `rng`
            is no generator.

    >>> white_noise(np.random.default_rng(0), batch_size=1, length=5, dt=0.1, cutoff=5.0, rms=1.0).shape
    (1, 5)
    """
    where = "white_noise"
    if not isinstance(rng, np.random.Generator):
        raise bad_shape(where, "rng", rng, "a numpy.random.Generator", "Make one: numpy.random.default_rng(seed).")
    batch_size, length = (as_int(where, n, v, least=1) for n, v in (("batch_size", batch_size), ("length", length)))
    named = (("dt", dt), ("cutoff", cutoff), ("rms", rms))
    dt, cutoff, rms = (as_nonnegative(where, n, v, positive=True) for n, v in named)
    half = -(-length // 2)
    lowest, nyquist = 1 / (2 * half * dt), 0.5 / dt
    # A hair of room: 1 / (2 half dt) and 0.5 / dt are exact bounds that the caller computes in another order.
    if not lowest * (1 - 1e-9) <= cutoff <= nyquist * (1 + 1e-9):
        raise bad_argument(where, "cutoff", cutoff, f"from one period, {lowest:.6g} Hz, to {nyquist:.6g} Hz")
    kept = np.arange(half + 1) * lowest <= cutoff * (1 + 1e-9)
    kept[0] = False
    coefficients = rng.normal(0.0, rms * np.sqrt(0.5), (2, batch_size, half + 1))
    coefficients[1, :, -1] = 0.0  # the coefficient at the Nyquist frequency is real
    spectrum = (coefficients[0] + 1j * coefficients[1]) * kept
    spectrum *= np.sqrt(2 * half) * np.sqrt(half / kept.sum())
    noise = np.fft.irfft(spectrum, n=2 * half, axis=-1)[:, :length]
    return (noise - noise[:, :1]).astype(np.float32)
