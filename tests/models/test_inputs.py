"""Layouts that could be read in two ways."""

import numpy as np
import pytest

from ssmjax.models.inputs import check_images


def test_an_image_of_three_rows_is_not_taken_for_channels_first():
    check_images("Vim", np.zeros((2, 3, 3, 3), np.float32), (3, 3), 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_floating_dtype_passes(dtype):
    check_images("Vim", np.zeros((2, 4, 6, 1), dtype), (4, 6), 1)


def test_a_transposed_image_size_is_named():
    with pytest.raises(ValueError, match=r"got \(2, 6, 4, 1\).*img_size=\(6, 4\)"):
        check_images("Vim", np.zeros((2, 6, 4, 1), np.float32), (4, 6), 1)
