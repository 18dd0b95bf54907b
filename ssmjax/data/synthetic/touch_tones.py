"""The digits of a telephone keypad as sound: two sine tones each, a low one for the row and a high one for the column.

ITU-T Recommendation Q.23. Drawn at 8 kHz with varying length, loudness, phase and noise, it stands in for speech where
no recording is at hand; even at half the sampling rate all tones are below the Nyquist frequency.
"""

import numpy as np

from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int, as_nonnegative

__all__ = ["TOUCH_TONES", "touch_tones"]

SAMPLE_RATE = 8000
TOUCH_TONES = (
    *((941, 1336), (697, 1209), (697, 1336), (697, 1477), (770, 1209)),
    *((770, 1336), (770, 1477), (852, 1209), (852, 1336), (852, 1477)),
)
"""The two frequencies of each digit, in Hz."""


def touch_tones(
    count: int, *, seed: int, length: int = 2000, noise: float = 0.2
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws recordings of keys.

    Args:
        count: N.
        seed: The seed of the data set, 0 <= seed < 2 ** 64.
        length: The longest recording, in samples; the shortest is half of it.
        noise: The standard deviation of the white noise, where the amplitude of a tone is 0.1 to 0.5.

    Returns:
        Waveforms (N l 1) int16, zero after their ends; their lengths (N) int32; and the digits (N) int32.

    Raises:
        ValueError: If an argument is out of its range.

    >>> waves, lengths, digits = touch_tones(3, seed=0)
    >>> waves.shape, waves.dtype, bool((lengths >= 1000).all())
    ((3, 2000, 1), dtype('int16'), True)
    """
    where = "touch_tones"
    count, length = as_int(where, "count", count, least=1), as_int(where, "length", length, least=2)
    noise = as_nonnegative(where, "noise", noise, remedy="It is a standard deviation.")
    rng = stream(where, seed, 0)
    digits = rng.integers(0, 10, count)
    lengths = rng.integers(length // 2, length + 1, count)
    phase, amplitude = rng.uniform(0, 2 * np.pi, (count, 2, 1)), rng.uniform(0.1, 0.5, (count, 2, 1))
    time = np.arange(length) / SAMPLE_RATE
    tones = amplitude * np.sin(2 * np.pi * np.array(TOUCH_TONES)[digits][..., None] * time + phase)
    waves = tones.sum(1) + noise * rng.standard_normal((count, length))
    waves = np.where(np.arange(length) < lengths[:, None], np.clip(waves, -1, 1) * 32767, 0)
    return np.rint(waves)[..., None].astype(np.int16), lengths.astype(np.int32), digits.astype(np.int32)
