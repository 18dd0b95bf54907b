"""The figure of the scan's times is drawn from records of the form that `benchmarks.ops --peer` writes."""

import pytest

from benchmarks.scan_plot import PASSES, draw, lines


def record(shape, which, variant, ms):
    times = {"ms": ms, "peer_ms": 2 * ms, "floor_ms": ms / 2}
    source = {"dtype": "bfloat16", "device": "nvidia_h200", "commit": "abc"}
    return {"op": "selective_scan", "shape": shape, "pass": which, "variant": variant} | times | source


def test_the_sizes_with_the_most_lengths_are_drawn(tmp_path):
    records = [
        record(f"8x{l}x2048x16", which, variant, l / 1000)
        for l in (1024, 256, 4096)
        for which in PASSES
        for variant in PASSES.values()
    ]
    records.append(record("1x16384x1536x16", "forward", "plain", 1.0))
    name, passes = lines(records)
    assert name == "8, L, 2048, 16"
    assert {which: list(by_length) for which, by_length in passes.items()} == dict.fromkeys(PASSES, [256, 1024, 4096])
    assert passes["forward+backward"][256]["variant"] == "with z, bias and softplus"
    draw(records, tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 10_000


def test_one_length_is_no_line():
    with pytest.raises(ValueError, match="at two lengths or more"):
        lines([record("8x256x2048x16", "forward", "plain", 1.0)])
