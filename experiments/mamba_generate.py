"""Text from a language model: of the hub, of a folder in any form that `load_pretrained` reads, or of `mamba_text`.

    python -m experiments.mamba_generate --model state-spaces/mamba-130m --allow-pickle --tokenizer tokenizer.json --prompt "..."
    python -m experiments.mamba_generate --model runs/text/mamba --prompt "ROMEO:"

A model of characters has its characters beside it (`mamba_characters.json`, as `mamba_text --save` writes them); any
other needs the `tokenizer.json` of its tokenizer (mamba and mamba2: that of EleutherAI/gpt-neox-20b), which is looked
for in the model's folder. The text appears as it is made.
"""  # noqa: E501

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ssmjax
from experiments.shared import common
from ssmjax.errors import bad_argument
from ssmjax.generation import stream
from ssmjax.paths import LocalPaths


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    model: str = ""
    """A folder, or a name on the Hugging Face hub."""
    prompt: str = "\n"
    tokenizer: Path | None = None
    """A tokenizer.json."""
    max_new_tokens: int = 200
    temperature: float = 0.8
    """0 takes the most likely token."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_id: int | None = None
    seed: int = 0
    dtype: str = "float32"
    allow_pickle: bool = False
    """Whether a .bin file, which can run code, may be read."""


class Characters:
    """A tokenizer of single characters."""

    def __init__(self, characters: str):
        self.characters = characters

    def encode(self, text: str) -> list[int]:
        """The numbers of the characters; those that the model does not know are left out."""
        return [self.characters.index(each) for each in text if each in self.characters]

    def decode(self, ids: list[int]) -> str:
        """The characters; numbers beyond them, which only fill the vocabulary up, are left out."""
        return "".join(self.characters[i] for i in ids if i < len(self.characters))


class Subwords:
    """A tokenizer of the library `tokenizers`."""

    def __init__(self, path: Path):
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return self.tokenizer.decode(ids)


def tokenizer_of(config: Config) -> Characters | Subwords:
    """The tokenizer that was given, or that lies with the model."""
    folder = Path(config.model)
    characters = folder.parent / f"{folder.name}_characters.json"
    if config.tokenizer is None and characters.is_file():
        return Characters(json.loads(characters.read_text()))
    path = config.tokenizer or folder / "tokenizer.json"
    if not path.is_file():
        remedy = "Give the tokenizer.json of the model's tokenizer: --tokenizer FILE."
        raise bad_argument("mamba_generate", "tokenizer", str(path), "a file", remedy)
    return Subwords(path)


def main(config: Config = Config()) -> dict[str, Any]:
    """Writes text; returns it, with the seconds to the first token and the tokens a second after it."""
    tokenizer = tokenizer_of(config)
    model = ssmjax.load_pretrained(config.model, dtype=config.dtype, allow_pickle=config.allow_pickle)
    prompt = np.array([tokenizer.encode(config.prompt)], np.int32)
    filters = {name: getattr(config, name) for name in ("top_k", "top_p", "min_p", "repetition_penalty", "eos_id")}
    draws = dict(temperature=config.temperature, key=jax.random.key(config.seed) if config.temperature else None)
    ids, shown, times = [], "", [time.perf_counter()]
    print(config.prompt, end="")
    for token in stream(model, prompt, max_new_tokens=config.max_new_tokens, **draws, **filters):
        ids.append(int(token[0]))
        times.append(time.perf_counter())
        text = tokenizer.decode(ids)  # of all, as a character may be several tokens
        print(text[len(shown) :], end="", flush=True)
        shown = text
    rate = (len(ids) - 2) / (times[-1] - times[2]) if len(ids) > 2 else float("nan")
    print(f"\n{len(ids)} tokens, {rate:.1f} a second after the first two.", file=sys.stderr)
    return {"text": shown, "first_seconds": times[1] - times[0], "tokens_per_second": rate}


if __name__ == "__main__":
    common.run_cli(main, Config)
