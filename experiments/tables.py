"""Writes README's table of results from the results files: `python -m experiments.tables`."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.common import RESULTS

__all__ = ["classifier_table", "main"]

README = Path("README.md")


def classifier_table(records: list[dict[str, Any]]) -> str:
    """One row for each classifier's results file, in Markdown."""
    lines = [
        "| data | model | parameters | test accuracy, % | seeds | minutes a seed | device | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        accuracy, minutes = record["metrics"]["test_accuracy"], record["seconds"]["mean"] / 60
        spread = f" ± {100 * accuracy['spread']:.2f}" if len(record["seeds"]) > 1 else ""
        cells = [
            record["data"]["name"],
            record["config"]["model"],
            f"{record['parameters'] / 1e6:.2f} M",
            f"{100 * accuracy['mean']:.2f}{spread}",
            str(len(record["seeds"])),
            f"{minutes:.1f}",
            record["device"]["kind"],
            f"`{record['command']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrites README between the markers of each experiment."""
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("vim_cifar*.json"))]
    table = classifier_table([record for record in records if not record["config"]["smoke"]])
    begin, end = "<!-- results:vim_cifar -->", "<!-- /results:vim_cifar -->"
    text = README.read_text(encoding="utf-8")
    README.write_text(re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL), "utf-8")
    print(f"{README}: {len(records)} results")


if __name__ == "__main__":
    main()
