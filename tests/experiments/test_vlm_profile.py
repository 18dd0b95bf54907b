"""The profile of vision-language models runs through in its smoke form, and counts what a hand counts."""

import pytest

from experiments import vlm_profile


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [None, 1])
def test_the_profile(tmp_path, blocks):
    report = vlm_profile.main(vlm_profile.Config(smoke=True, rounds=1, blocks=blocks, out_dir=tmp_path))
    assert list((tmp_path / "figures").glob("vlm_profile*.png"))
    assert set(report["cases"]) == {"llava_nano 32", "qwen2_vl_nano 56"}
    for case in report["cases"].values():
        for stage in case["stages"].values():
            assert stage["ms"] > 0 and all(part["ms"] > 0 and part["bytes"] > 0 for part in stage["parts"].values())
    # Operations of the parts, counted by hand: 16 patches of width 64 in four blocks.
    tower = report["cases"]["qwen2_vl_nano 56"]["stages"]["tower"]["parts"]
    assert tower["attention"]["flops"] == 4 * 4 * 16 * 16 * 64
    assert 2 * 4 * 16 * 3 * 64 * 64 <= tower["q, k, v"]["flops"] <= 1.02 * 2 * 4 * 16 * 3 * 64 * 64
    assert tower["patches"]["flops"] >= 2 * 16 * 1176 * 64


def test_a_chat_names_an_image_that_is_not_there(tmp_path):
    from experiments import vlm_chat

    with pytest.raises(ValueError, match=r"vlm_chat: image must be a file; .* got '.*no\.jpg'"):
        vlm_chat.main(vlm_chat.Config(smoke=True, image=(tmp_path / "no.jpg",)))
