"""The vision-language experiments run through in their smoke form."""

import pytest

from experiments import token_merge, token_merge_classifier, vlm_scenes


@pytest.mark.slow
def test_scenes_and_merges(tmp_path):
    report = vlm_scenes.main(vlm_scenes.Config(smoke=True, out_dir=tmp_path, runs_dir=tmp_path / "runs"))
    assert (tmp_path / "figures" / "vlm_scenes_dense.png").is_file()
    assert set(report["metrics"]) >= {"frozen/digit", "unfrozen/mean", "ceiling/nearest", "blank/left"}
    config = token_merge.Config(
        teacher=tmp_path / "runs" / "vlm_scenes_dense" / "unfrozen",
        smoke=True,
        seeds=(0,),
        budgets=(9,),
        trained=("ours",),
        out_dir=tmp_path,
    )
    report = token_merge.main(config)
    assert set(report["metrics"]) >= {"ours 9/kl", "density 9/accuracy", "tome, no size 9/agreement"}


@pytest.mark.slow
def test_the_classifier(tmp_path):
    report = token_merge_classifier.main(token_merge_classifier.Config(smoke=True, out_dir=tmp_path, seeds=(0,)))
    assert report["costs"]["ours 6"]["share"] < 0.4
    assert report["costs"]["channels 6"]["flops"] <= report["costs"]["ours 6"]["flops"]


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown tower 'dens'.*'dense'"):
        vlm_scenes.main(vlm_scenes.Config(tower="dens"))
    with pytest.raises(ValueError, match="Unknown trained method 'our'"):
        token_merge.main(token_merge.Config(trained=("our",)))
    with pytest.raises(ValueError, match="Unknown task"):
        token_merge_classifier.main(token_merge_classifier.Config(task="eleven"))
