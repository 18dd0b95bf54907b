"""A language model of characters: Mamba, Mamba-2, Mamba-3 and a transformer on one text.

The claim: at the same width and nearly the same size the state space models predict text at least as well as attention.

Recipe (device, minutes a seed, expected bits a character on the held-out tenth):
    python -m experiments.mamba_text --text input.txt            one H200, about 8, 2.2 or less on Tiny Shakespeare
    python -m experiments.mamba_text --smoke --text input.txt

`--text` is any file in UTF-8; Tiny Shakespeare (1.1 million characters) is usual. `--save FOLDER` keeps the first
seed's models, from which `python -m experiments.mamba_generate --model FOLDER/mamba --prompt ...` writes.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import ssmjax
from experiments.shared import common, language, parts
from ssmjax.data import TokenBatches, eval_token_batches
from ssmjax.errors import bad_argument

NAME = "mamba_text"


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    text: Path | None = None
    """The text to learn."""
    length: int = 256
    d_model: int = 256
    depth: int = 6
    steps: int = 1000
    """Fifteen times through Tiny Shakespeare; without dropout the held-out tenth gets worse soon after."""
    weight_decay: float = 0.1
    save: Path | None = None
    """Where to keep the models of the first seed."""


def read_text(path: Path | None) -> tuple[np.ndarray, str]:
    """The text as numbers, and the characters that they stand for."""
    if path is None or not path.is_file():
        raise bad_argument(NAME, "text", str(path), "a file", "Tiny Shakespeare's input.txt, say: --text input.txt")
    text = path.read_text(encoding="utf-8")
    characters = "".join(sorted(set(text)))
    place = {each: i for i, each in enumerate(characters)}
    return np.array([place[each] for each in text], np.int32), characters


def bits(model: Any, tokens: np.ndarray, config: Config) -> float:
    """The mean bits a character."""
    definition, state = nnx.split(model)

    @jax.jit
    def loss(state, batch):
        real = (batch["labels"] >= 0).sum()
        return language.next_token_loss(nnx.merge(definition, state), batch, None)[0] * real, real

    found = [jax.device_get(loss(state, batch)) for batch in eval_token_batches(tokens, 32, config.length)]
    total, count = np.sum(found, axis=0)
    return float(total / count / np.log(2))


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    tokens, characters = read_text(config.text)
    tokens = tokens[:20000] if config.smoke else tokens
    cut = len(tokens) * 9 // 10
    small = dataclasses.replace(config, d_model=32, depth=2) if config.smoke else config

    def work(kind: str, seed: int, part: parts.Part) -> dict[str, Any]:
        model = language.make_model(kind, small, len(characters), seed)
        batches = TokenBatches(tokens[:cut], 4 if config.smoke else config.batch_size, config.length, seed=seed)
        model, run = language.fit_part(model, language.next_token_loss, batches.at, config, seed, part, b2=0.95)
        new = ssmjax.generate(
            model, tokens[None, cut : cut + 64], max_new_tokens=200, temperature=0.8, key=jax.random.key(seed)
        )
        written = np.minimum(np.asarray(new[0]), len(characters) - 1)  # the rows of padding are never trained
        if config.save is not None and seed == 0:
            ssmjax.save_pretrained(model, config.save / kind)
            (config.save / f"{kind}_characters.json").write_text(json.dumps(characters))
        metrics = {f"{kind}_bits": bits(model, tokens[cut:], config), f"{kind}_seconds": run["seconds"]}
        return run | {"metrics": metrics, "sample": "".join(characters[i] for i in written)}

    runs, rest = parts.run_parts(NAME, config, config.models, work)
    plot = {
        "series": {kind: {config.d_model: f"{kind}_bits"} for kind in config.models},
        "x": "width",
        "y": "bits a character, held out",
        "title": f"characters of {config.text.name}",
    }
    data = {"name": config.text.name, "characters": len(tokens), "sample": tokens}
    return language.finish(NAME, config, runs, data, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
