"""The vision-language experiments run through in their smoke form."""

import io
import json
import tarfile

import numpy as np
import pytest

import vlmjax
from experiments import (
    efficient_attention,
    projector_study,
    token_merge,
    token_merge_classifier,
    token_merge_method,
    token_merge_speed,
    vlm_easy_vqa,
    vlm_finetune,
    vlm_scenes,
)
from experiments.shared import easy_vqa
from experiments.shared.projectors import published


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
        trained=("shrunk", "adapter", "ours"),
        out_dir=tmp_path,
    )
    report = token_merge.main(config)
    assert set(report["metrics"]) >= {"ours 9/kl", "density 9/accuracy", "tome, no size 9/agreement", "shrunk 9/ms"}
    assert set(report["paired"]["9"]) == {"best", "best_baseline", "adapter"}
    assert (tmp_path / "figures" / "token_merge_dense.png").is_file()


def test_ours_is_compared_with_the_best_baseline_by_pictures():
    def row(right):
        return [{"found": np.stack([right, 0 * right, right], axis=-1), "ms": np.float64(1)}]

    rng = np.random.default_rng(0)
    ours, theirs = (rng.random((400, 6)) < share for share in (0.9, 0.8))
    answers = {"ours 9": row(ours * 1.0), "density 9": row(theirs * 1.0), "random 9": row(theirs * 0.0)}
    found = token_merge.paired(answers, (9,))["9"]
    gain = ours.mean() - theirs.mean()
    assert found["best"] == "density" and found["best_baseline"]["gain"] == pytest.approx(gain)
    assert found["best_baseline"]["low"] < gain < found["best_baseline"]["high"]


@pytest.mark.slow
def test_a_contrastive_tower_and_going_on(tmp_path, monkeypatch):
    monkeypatch.setitem(vlm_scenes.SIZES, "cpu", vlm_scenes.SIZES["smoke"])
    config = vlm_scenes.Config(
        tower="contrastive", size="cpu", contrast_batch=8, seed=1, out_dir=tmp_path, runs_dir=tmp_path
    )
    first = vlm_scenes.main(config)
    assert first["name"] == "vlm_scenes_contrastive_1"
    again = vlm_scenes.main(config)  # everything is there, so that nothing is trained
    assert (
        again["metrics"] == first["metrics"]
        and again["curves"]["tower"]["losses"] == first["curves"]["tower"]["losses"]
    )


@pytest.mark.slow
def test_the_method(tmp_path):
    report = token_merge_method.main(token_merge_method.Config(smoke=True, picture=3, out_dir=tmp_path))
    assert report["metrics"]["mass"]["mean"] == pytest.approx(144)
    assert (tmp_path / "figures" / "token_merge_method.png").is_file()


@pytest.mark.slow
def test_the_speed(tmp_path):
    config = token_merge_speed.Config(smoke=True, tokens=16, budgets=(4,), dtypes=("float32",), out_dir=tmp_path)
    metrics = token_merge_speed.main(config)["metrics"]
    assert set(metrics) >= {"float32/merge/compiled 4", "float32/language/mlp 16", "float32/model 4"}
    assert set(metrics) >= {"float32/inside 4", "float32/decode 16", "float32/language/step 4"}
    assert metrics["float32/cache MB 16"]["mean"] == 2 * 2 * 64 * (16 + 64) * 4 / 1e6


def _archive(tmp_path):
    from PIL import Image

    with tarfile.open(tmp_path / "easy.tar.gz", "w:gz") as tar:

        def add(name, data):
            info = tarfile.TarInfo(f"easy-vqa/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        add("answers.txt", b"circle\nred\nyes\nno")
        for part, count in (("train", 3), ("test", 2)):
            asked = [["what is it?", "circle", i] for i in range(count)] + [["is it red?", "yes", 0]]
            add(f"{part}/questions.json", json.dumps(asked).encode())
            for i in range(count):
                buffer = io.BytesIO()
                Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(buffer, "PNG")
                add(f"{part}/images/{i}.png", buffer.getvalue())
    return tmp_path / "easy.tar.gz"


def test_easy_vqa_is_read(tmp_path):
    data = easy_vqa.load(_archive(tmp_path))
    assert data.words == ("", "circle", "red", "yes", "no", "?", "is", "it", "what")
    assert data.train.counts.tolist() == [2, 1, 1] and data.test.images[1, 0, 0].tolist() == [40, 40, 40]
    assert data.train.questions[0].tolist() == [[8, 6, 7, 5], [6, 7, 2, 5]] and data.train.answers[0].tolist() == [1, 3]
    (tmp_path / "other.tar.gz").write_bytes(b"")
    with pytest.raises(Exception, match="file"):
        easy_vqa.load(tmp_path / "nowhere.tar.gz")


@pytest.mark.slow
def test_easy_vqa_runs(tmp_path):
    config = vlm_easy_vqa.Config(data=_archive(tmp_path), smoke=True, seeds=(0,), out_dir=tmp_path)
    assert set(vlm_easy_vqa.main(config)["metrics"]) >= {"test/all", "blank/all", "test/shape"}
    assert (tmp_path / "figures" / "vlm_easy_vqa.png").is_file()


def _conversations(tmp_path, entries):
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(("[UNK]", "what", "is", "it", "?", "a", "cat", "dog"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for i in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "data.json").write_text(json.dumps(entries))
    model = vlmjax.create_model("llava_nano", vision={"depth": 1}, text={"depth": 1}, layers=(-1,))
    vlmjax.save_pretrained(model, tmp_path / "model")
    return vlm_finetune.Config(
        data=tmp_path / "data.json",
        images=tmp_path,
        model=str(tmp_path / "model"),
        tokenizer=tmp_path / "tokenizer.json",
        train=("projector", "language", "merger"),
        budgets=(4,),
        steps=20,
        merger_steps=2,
        batch=2,
        learning_rate=3e-3,
        save=tmp_path / "tuned",
        out_dir=tmp_path,
    )


def _talk(image, answer, question="<image>\nwhat is it ?"):
    return {"image": image, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


@pytest.mark.slow
def test_finetuning_on_conversations(tmp_path):
    config = _conversations(tmp_path, [_talk(f"{i}.png", "a cat") for i in range(4)])
    report = vlm_finetune.main(config)
    metrics = {name: row["mean"] for name, row in report["metrics"].items()}
    assert metrics["after/loss"] < metrics["before/loss"] and metrics["after/right"] == 1.0
    assert "4 tokens/loss" in metrics
    merger = vlmjax.load_merger(tmp_path / "tuned" / "merger")
    assert merger.grid == (8, 8)
    tuned, before = (vlmjax.load_pretrained(folder) for folder in (tmp_path / "tuned" / "model", tmp_path / "model"))
    assert np.array_equal(tuned.vision.patch_kernel[...], before.vision.patch_kernel[...])  # was not to be trained


def test_what_is_wrong_with_conversations(tmp_path):
    config = _conversations(tmp_path, [_talk("9.png", "a cat")])
    with pytest.raises(ValueError, match="entry 0.*not there.*--images"):
        vlm_finetune.main(config)
    for entries, message in (
        ([_talk("0.png", "a cat", "what is it ?")], "one <image>.*got 0"),
        ([{"image": "0.png", "conversations": [{"from": "gpt", "value": "a"}] * 2}], "turn 0 must be from 'human'"),
        ({}, "must be a JSON list"),
    ):
        config.data.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=message):
            vlm_finetune.main(config)


@pytest.mark.slow
def test_the_classifier(tmp_path):
    report = token_merge_classifier.main(token_merge_classifier.Config(smoke=True, out_dir=tmp_path, seeds=(0,)))
    assert report["costs"]["ours 6"]["share"] < 0.4
    assert report["costs"]["channels 6"]["flops"] <= report["costs"]["ours 6"]["flops"]


@pytest.mark.slow
def test_the_projectors(tmp_path):
    report = projector_study.main(projector_study.Config(smoke=True, out_dir=tmp_path, seeds=(0,)))
    assert (tmp_path / "figures" / "projector_study.png").is_file()
    assert set(report["metrics"]) >= {"linear/unexplained", "lora/answer_accuracy", "linear/identity"}


@pytest.mark.slow
def test_fused_attention(tmp_path):
    report = efficient_attention.main(efficient_attention.Config(smoke=True, out_dir=tmp_path, seeds=(0, 1)))
    assert (tmp_path / "figures" / "efficient_attention.png").is_file()
    assert all(max(row.values()) < 1e-5 for row in report["same_function"].values())


def test_the_published_table_of_projectors():
    """Our modules have all its digits but LoRA's operations, which are of another rank than its parameters."""
    for name, row in published().items():
        printed, ours = row["printed"], row["ours"]
        assert f"{ours['parameters'] / 1e6:.2f}" == f"{printed['parameters']:.2f}"
        macs = ours["macs_at_rank_256"] if name == "lora" else ours["macs"]
        assert f"{macs / 1e6:.2f}" == f"{printed['macs']:.2f}"
    assert f"{published()['lora']['ours']['macs'] / 1e6:.2f}" == "1.06"


def test_unknown_names():
    with pytest.raises(ValueError, match="Unknown tower 'dens'.*'dense'"):
        vlm_scenes.main(vlm_scenes.Config(tower="dens"))
    with pytest.raises(ValueError, match="Unknown trained method 'our'"):
        token_merge.main(token_merge.Config(trained=("our",)))
    with pytest.raises(ValueError, match="Unknown task"):
        token_merge_classifier.main(token_merge_classifier.Config(task="eleven"))
