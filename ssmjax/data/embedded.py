"""The data set that needs no download: scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak, 1998)."""

import numpy as np

from ssmjax.data.archives import DataUnavailable, Records

__all__ = ["read_digits"]

_TEST_SHARE = 0.2
_SPLIT_KEY = 0


def read_digits() -> Records:
    """Reads the digits and splits them, always in the same way.

    The set has no official split. Ours is stratified: of each class, a fifth (rounded) is the test set, drawn with
    Philox under the fixed key 0; within a split the images keep scikit-learn's order. Intensities 0..16 become 0..255.

    Returns:
        1,438 training and 359 test images of shape (8, 8, 1).

    Raises:
        DataUnavailable: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataUnavailable(
            "The data set 'digits' comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # Philox's raw stream is the same in every version of numpy; that of Generator.permutation may change.
    priority = np.random.Philox(key=_SPLIT_KEY).random_raw(len(labels))
    test = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        drawn = members[np.argsort(priority[members])[: round(_TEST_SHARE * len(members))]]
        test[drawn] = True
    splits = {
        "train": {"image": images[~test], "label": labels[~test]},
        "test": {"image": images[test], "label": labels[test]},
    }
    return Records(splits, {"label": tuple("0123456789")})
