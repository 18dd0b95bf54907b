"""Pretrained embeddings for a Mamba text classifier that has few labels.

A study proposed them for accuracy in low-resource settings and did not measure. Here a Mamba reads words and tells the
class of a document, with embeddings learnt from scratch; with embeddings that a language model learnt on all documents
without their labels, frozen or tuned; with word2vec or GloVe vectors; and with the language model's own outputs, which
know their context.

Recipe (device, minutes, expected):
    python -m experiments.mamba_pretrained_embeddings --folder aclImdb      one H200, about 15; the order is the claim
    python -m experiments.mamba_pretrained_embeddings --text input.txt      the same on speeches of one text
    python -m experiments.mamba_pretrained_embeddings --smoke --text input.txt

`--folder` holds IMDB's reviews as they are published (`train/pos`, `train/neg`, `test/pos`, `test/neg`). `--text` is a
play such as Tiny Shakespeare, a name, a colon and a speech each: a document is 40 words of a speaker, of the ten who
speak most; its class is who speaks. `--vectors` is a GloVe text file, or an `.npz` with `words` and `vectors`.
"""

import collections
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import common, language, parts
from ssmjax.data import ArrayBatches
from ssmjax.errors import bad_argument
from ssmjax.training.fit import FitConfig, fit
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw

NAME, WORDS, UNKNOWN, PADDING = "mamba_pretrained_embeddings", 5000, 1, 0


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    folder: Path | None = None
    text: Path | None = None
    vectors: Path | None = None
    labels: tuple[int, ...] = (100, 400, 1600)
    """How many labelled documents there are."""
    pretraining_steps: int = 3000
    steps: int = 600
    batch_size: int = 32
    d_model: int = 128
    weight_decay: float = 0.05


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents (n l) of word numbers, padded on the right, and their classes (n)."""

    words: list[str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def read(config: Config) -> Documents:
    """The documents of a folder of reviews, or of a play."""
    if config.folder is not None:
        parts = {}
        for part in ("train", "test"):
            parts[part] = []
            for label, kind in enumerate(("neg", "pos")):
                for path in sorted((config.folder / part / kind).glob("*.txt")):
                    parts[part].append((_words(path.read_text(encoding="utf-8")), label))
        if not parts["train"]:
            raise bad_argument(NAME, "folder", str(config.folder), "a folder with train/pos, train/neg, test/pos, ...")
        return _numbered(parts["train"], parts["test"], 256)
    if config.text is None or not config.text.is_file():
        raise bad_argument(NAME, "text", str(config.text), "a file (or --folder aclImdb)")
    said = collections.defaultdict(list)
    for speaker, speech in re.findall(r"(?m)^([A-Z][\w ]+):\n((?:.+\n?)+)", config.text.read_text(encoding="utf-8")):
        said[speaker] += _words(speech)
    most = sorted(said, key=lambda speaker: -len(said[speaker]))[:10]
    documents = [(said[s][i : i + 40], c) for c, s in enumerate(most) for i in range(0, len(said[s]) - 39, 40)]
    order = np.random.default_rng(0).permutation(len(documents))
    documents = [documents[i] for i in order]
    cut = len(documents) * 7 // 10
    return _numbered(documents[:cut], documents[cut:], 40)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _numbered(train, test, length: int) -> Documents:
    """Numbers for the most frequent words of the training part."""
    counts = collections.Counter(word for words, _ in train for word in words)
    known = ["", "?", *(word for word, _ in counts.most_common(WORDS - 2))]
    place = {word: i for i, word in enumerate(known)}

    def arrays(documents):
        rows = np.zeros((len(documents), length), np.int32)
        for row, (words, _) in zip(rows, documents, strict=True):
            ids = [place.get(word, UNKNOWN) for word in words[:length]]
            row[: len(ids)] = ids
        return rows, np.array([label for _, label in documents], np.int32)

    return Documents(known, arrays(train), arrays(test))


def vectors_of(path: Path, words: list[str], width: int) -> np.ndarray:
    """Vectors of a file for the words, zero where it has none, on the axes on which they differ most."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            table = dict(zip(file["words"].tolist(), file["vectors"], strict=True))
    else:
        lines = (line.rstrip().split(" ") for line in path.open(encoding="utf-8"))
        wanted = set(words)
        table = {line[0]: np.array(line[1:], np.float32) for line in lines if line[0] in wanted}
    size = len(next(iter(table.values())))
    rows = np.stack([table.get(word, np.zeros(size, np.float32)) for word in words])
    axes = np.linalg.svd(rows, full_matrices=False)[2][:width]
    rows = rows @ axes.T
    return np.pad(rows / max(rows.std(), 1e-6), ((0, 0), (0, width - rows.shape[1]))).astype(np.float32)


class Classifier(nnx.Module):
    """A Mamba over embeddings, the mean of its outputs, and a linear head."""

    def __init__(self, config: Config, classes: int, seed: int, table: np.ndarray | None, encoder: Any):
        self.body = language.make_model("mamba", config, WORDS, seed, tie_embeddings=True)
        if table is not None:
            self.body.embedding[...] = jnp.asarray(table)
        self.encoder = encoder
        self.head = nnx.Linear(config.d_model, classes, rngs=nnx.Rngs(seed))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the classes (b c)."""
        mask = tokens != PADDING
        embedded = self.body.embed(tokens) if self.encoder is None else self.encoder.features(tokens, mask=mask)
        x = self.body.encode(embedded, mask=mask)
        return self.head((x * mask[..., None]).sum(1) / jnp.maximum(1, mask.sum(1))[:, None])


def classify(
    config: Config, documents: Documents, labels: int, seed: int, table: np.ndarray | None, encoder: Any, frozen: bool
) -> float:
    """The accuracy (%) on the test part after training on so many labelled documents."""
    classes = int(documents.train[1].max()) + 1
    order = np.random.default_rng(seed).permutation(len(documents.train[1]))[:labels]
    batches = ArrayBatches(
        {"tokens": documents.train[0][order], "label": documents.train[1][order]},
        min(config.batch_size, len(order)),
        seed=seed,
    )

    def loss(model, batch, key):
        del key
        return softmax_cross_entropy(model(batch["tokens"]), batch["label"]).mean(), {}

    model = Classifier(config, classes, seed, table, encoder)
    # What is not trained has no weight decay either.
    still = nnx.PathContains("embedding" if encoder is None else "encoder")
    steps = 2 if config.smoke else config.steps
    optimizer = adamw(
        config.learning_rate, steps=steps, warmup_steps=steps // 20, weight_decay=config.weight_decay, model=model
    )
    settings = FitConfig(seed=seed, log_every=max(1, steps), progress=False)
    trainable = nnx.Not(still) if frozen else None
    run = dict(steps=steps, optimizer=optimizer, config=settings, trainable=trainable)
    model = fit(model, loss, batches.at, **run).model
    definition, state = nnx.split(model)
    predict = jax.jit(lambda state, tokens: nnx.merge(definition, state)(tokens).argmax(-1))
    tokens, wanted = documents.test
    size = 64 if config.smoke else 256
    tokens, wanted = (tokens[:size], wanted[:size]) if config.smoke else (tokens, wanted)
    padded = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)))
    found = np.concatenate([predict(state, padded[i : i + size]) for i in range(0, len(padded), size)])
    return 100 * float((found[: len(wanted)] == wanted).mean())


def pretrain(config: Config, documents: Documents, seed: int, part: parts.Part) -> tuple[Any, dict[str, Any]]:
    """A language model of the words of all training documents; their labels are not read."""
    rows = documents.train[0]
    labels = np.where(rows[:, 1:] > PADDING, rows[:, 1:], -100)
    batches = ArrayBatches({"tokens": rows[:, :-1], "labels": labels}, min(64, len(rows)), seed=seed)
    own = dataclasses.replace(config, steps=config.pretraining_steps, weight_decay=0.1)
    model = language.make_model("mamba", config, WORDS, seed)
    return language.fit_part(model, language.next_token_loss, batches.at, own, seed, part)


def starts(config: Config, documents: Documents, encoder: Any) -> dict[str, dict[str, Any]]:
    """What the classifiers start from: embeddings or a whole encoder, and whether these stay as they are."""
    table = np.asarray(encoder.embedding[...])
    table = table / table.std()
    ways = {
        "scratch": dict(table=None, encoder=None, frozen=False),
        "frozen": dict(table=table, encoder=None, frozen=True),
        "tuned": dict(table=table, encoder=None, frozen=False),
        "contextual": dict(table=None, encoder=encoder, frozen=True),
    }
    if config.vectors is not None:
        found = vectors_of(config.vectors, documents.words, config.d_model)
        found = np.pad(found, ((0, len(table) - len(found)), (0, 0)))
        ways["vectors"] = dict(table=found, encoder=None, frozen=False)
    return ways


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    documents = read(config)
    counts = (16,) if config.smoke else tuple(n for n in config.labels if n <= len(documents.train[1]))
    names = ("scratch", "frozen", "tuned", "contextual", *(("vectors",) if config.vectors is not None else ()))

    def work(count: str, seed: int, part: parts.Part) -> dict[str, Any]:
        encoder, run = pretrain(config, documents, seed, part)
        ways = starts(config, documents, encoder)
        found = {f"{way}_{count}": classify(config, documents, int(count), seed, **ways[way]) for way in names}
        return {"metrics": found, "losses": run["losses"]}

    # The language model is trained anew for each number of labels, which takes less than to keep it would need words.
    runs, rest = parts.run_parts(NAME, config, [str(n) for n in counts], work)
    task = "IMDB reviews" if config.folder else f"speakers of {config.text.name}"
    plot = {
        "series": {way: {n: f"{way}_{n}" for n in counts} for way in names},
        "x": "labelled documents",
        "y": "test accuracy, %",
        "title": task,
        "log": True,
    }
    data = {"name": task, "documents": len(documents.train[1]), "sample": documents.train[0]}
    return language.finish(NAME, config, runs, data, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
