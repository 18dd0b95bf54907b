"""ListOps of Long Range Arena: the value of a nested list of up to 2,000 tokens, such as [MAX 2 9 [MIN 4 7] 0].

The claim: S5 clears by ten points and more the rule that looks at the first token only. That rule, the most frequent
value for each operator at the root, is right in 37.1 % of the cases, which is also where the Transformers of that paper
end (36 to 37 %). Published: 62.15 % (S5, arXiv 2208.04933, after 40 epochs).

Recipe (device, minutes a seed, expected test accuracy of the last epoch):
    python -m experiments.listops               one H100, under 10, 47 % or more
    python -m experiments.listops --data short  two CPU cores, under 20, lists of up to 100 tokens

The data are drawn at the first call, by the published rules and in the published numbers (96,000 + 2,000 + 2,000, of
which the middle part is left aside), and kept in `--runs-dir`. What is reported is the last epoch, never the best one.
`--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
from typing import Any

from experiments.shared import common, sequence
from ssmjax.data import SequenceData, sequence_data
from ssmjax.data.synthetic import LISTOPS_VOCABULARY, ListOps, draw_listops, root_operator_rule

NAME = "listops"

RECIPES = {
    "listops": {"epochs": 10, "batch_size": 50, "learning_rate": 3e-3, "d_model": 128, "depth": 8, "d_state": 16},
    "short": {"epochs": 8, "batch_size": 50, "learning_rate": 3e-3, "d_model": 64, "depth": 4, "d_state": 16},
}
SETS = {
    "listops": {"counts": (96_000, 2_000, 2_000), "min_length": 500, "max_length": 2000, "pad_to": 2048},
    "short": {"counts": (20_000, 1_000, 1_000), "min_length": 10, "max_length": 100, "pad_to": 100},
}
AS_PUBLISHED = {"gate": "half_glu2", "layer_options": {"blocks": 8, "c_init": "lecun_normal"}}
"""The paper's own choices for this task, as are width, depth and state size; its `--s5-mode` is BfastandCdecay."""
PUBLISHED = {"accuracy": 62.15, "label": "S5, published (40 epochs)", "source": "arXiv 2208.04933"}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "listops"
    """listops, at the limits of Long Range Arena, or short, which suits a CPU."""
    norm: str = "batch"
    bidirectional: bool = True
    dropout: float = 0.0
    weight_decay: float = 0.04
    data_seed: int = 0
    """The seed of the data set, the same for all seeds of the training."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Draws the data, trains, evaluates, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="short", smoke=True))` works in a notebook.

    Returns:
        What the results file holds, and the folder of the first seed's `weights`.
    """
    return sequence.run(NAME, config, _task, RECIPES, published=_published)


def _task(config: Config) -> sequence.Task:
    train, test = load(config)
    rule = 100 * root_operator_rule(train, test)
    print(f"The rule that reads the first token only: {rule:.1f} % of the test set.")
    return sequence.Task(
        _sequences(config, train, test),
        sequence.tokens,
        {"vocab_size": len(LISTOPS_VOCABULARY), **(AS_PUBLISHED if config.layer == "s5" else {})},
        baseline={"accuracy": rule, "label": "first token only"},
    )


def _published(config: Config) -> dict[str, Any] | None:
    return PUBLISHED if config.data == "listops" else None


def load(config: Config) -> tuple[ListOps, ListOps]:
    """The training and the test set, drawn anew or from the file of an earlier call."""
    chosen = dict(SETS["short" if config.smoke else config.data])
    counts = chosen.pop("counts")
    counts = (256, 32, 64) if config.smoke else counts
    words = [str(v) for v in (config.data_seed, sum(counts), *chosen.values())]
    path = config.runs_dir / "data" / f"listops-{'-'.join(words)}.npz"
    stored = common.kept(path, lambda: vars(draw_listops(sum(counts), seed=config.data_seed, **chosen)))
    data = ListOps(**stored)
    return data[: counts[0]], data[counts[0] + counts[1] :]


def _sequences(config: Config, train: ListOps, test: ListOps) -> SequenceData:
    splits = [{"inputs": d.tokens, "label": d.labels, "lengths": d.lengths} for d in (train, test)]
    names = tuple("0123456789")
    return sequence_data(config.data, *splits, names, source=f"draw_listops, seed {config.data_seed}")


if __name__ == "__main__":
    common.run_cli(main, Config)
