"""Image processing of transformers: CLIP's crop, LLaVA's square and Qwen2-VL's patches, to the last bit."""

import itertools
from collections.abc import Mapping

import numpy as np
from einops import rearrange

from tests.parity.harness import Dump, family
from vlmjax import processing

SIZE, MOST = 28, 16 * 28 * 28
"""The side of the crops, and the largest area of the patches, in the dumps."""


@family("preproc", inputs=("img*",))
def preproc(dump: Dump) -> Mapping[str, np.ndarray]:
    images = dump.section("in/")
    found = {}
    for name, image in images.items():
        number = name.removeprefix("img")
        for key, fit in ((f"clip28_{number}", "crop"), (f"llava_pad28_{number}", "pad")):
            found[key] = rearrange(processing.fit_image(image, SIZE, fit=fit), "y x d -> 1 d y x")
        found[f"qwen_px_{number}"], grid = processing.image_patches(image, max_pixels=MOST)
        found[f"qwen_grid_{number}"] = np.array([grid])
    table = dump.arrays["out/smart_resize_h_w_min_max_H_W"]
    sizes = [processing.smart_resize(h, w, min_pixels=a, max_pixels=b) for h, w, a, b in table[:, :4].tolist()]
    found["smart_resize_h_w_min_max_H_W"] = np.concatenate([table[:, :4], sizes], axis=1)
    exact = [name for name, x in found.items() if not np.array_equal(x, dump.arrays[f"out/{name}"])]
    assert not exact, f"not equal bit for bit: {', '.join(itertools.islice(exact, 5))}"
    return {f"out/{name}": x for name, x in found.items()}
