"""Draws the tables of benchmarks/README.md from the results files: `python -m benchmarks.tables`."""

import json
import pathlib
import re

__all__ = [
    "ahead_gpu_table",
    "ahead_tpu_table",
    "error_table",
    "main",
    "memory_table",
    "model_table",
    "op_tables",
    "test_line",
]

FOLDER = pathlib.Path(__file__).parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def op_tables(records: list[dict]) -> str:
    """Markdown: for each op, shape and dtype the forms with the times of both passes and the memory of training."""
    groups: dict[tuple, dict[str, dict[str, dict]]] = {}
    for r in (r for r in records if "op" in r):
        key = r["op"], r["shape"], r["dtype"]
        groups.setdefault(key, {}).setdefault(r["variant"], {})[r["pass"]] = r
    tables = [_table(*key, variants) for key, variants in groups.items()]
    models = [r for r in records if "model" in r]
    return "\n\n".join([*tables, model_table(models)] if models else tables)


def _table(op: str, shape: str, dtype: str, variants: dict[str, dict[str, dict]]) -> str:
    first = next(iter(next(iter(variants.values())).values()))
    lines = [
        f"`{op}`, {shape}, {dtype}, on {first['device']} (jax {first['versions']['jax']}, commit {first['commit']})",
        "",
        "| form | forward, ms | forward+backward, ms | temporary memory of forward+backward, MB |",
        "|---|---|---|---|",
    ]
    for name, passes in variants.items():
        both = passes.get("forward+backward", {})
        memory = both or passes.get("forward+backward, memory only", {})
        lines.append(f"| {name} | {_time(passes.get('forward', {}))} | {_time(both)} | {memory.get('temp_mb') or ''} |")
    return "\n".join(lines)


def _time(record: dict) -> str:
    if not record:
        return ""
    time = f"{record['ms']:.4g}" + (f" (least {record['ms_least']:.4g})" if "ms_least" in record else "")
    return time + (f", theirs {record['peer_ms']:.4g}, ratio {record['ratio']:.2f}" if "peer_ms" in record else "")


def model_table(records: list[dict]) -> str:
    """Markdown: a row for each model, size, batch and task; `theirs` is the time of the original in the same run."""
    heads = ["model", "task", "size", "batch", "dtype", "ms", "theirs, ms", "a second", "peak GB", "device", "commit"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in records:
        peak = "" if r["peak_gb"] is None else f"{r['peak_gb']:.1f}"
        theirs = f"{r['peer_ms']:.4g} ({r['peer_ms'] / r['ms']:.1f}x)" if r.get("peer_ms") else ""
        times = f"{r['ms']:.4g}", theirs, f"{r['per_second']:,.{int(r['per_second'] < 100)}f}", peak
        cells = r["size"], r["batch"], r["dtype"], *times, r["device"], r["commit"]
        name = " ".join(
            filter(None, [r["model"], r.get("changes"), r.get("implementation", "auto").removeprefix("auto")])
        )
        lines.append(f"| {name} | {r['task']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def test_line(record: dict) -> str:
    """Markdown: how the tests that need a GPU ended."""
    ended = f"{record['passed']} passed, {len(record['failed'])} failed"
    return f"`{record['command']}` on {record['device']} (commit {record['commit']}): {ended}."


def error_table(records: list[dict]) -> str:
    """Markdown: for each kernel, state size and length the errors of the kernel and of its gradients."""
    names = list(dict.fromkeys(name for r in records for name in r["gradients"]))
    lines = [
        f"| kernel, float32 | N | L | error | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]
    for r in sorted(records, key=lambda r: r["kernel"]):
        gradients = (f"{r['gradients'][name]:.1e}" if name in r["gradients"] else "" for name in names)
        lines.append(f"| {r['kernel']} | {r['n']} | {r['l']:,} | {r['error']:.1e} | {' | '.join(gradients)} |")
    return "\n".join(lines)


def memory_table(records: list[dict]) -> str:
    """Markdown: temporary megabytes of S4D's forward and backward pass, a row for each form and state size."""
    lengths = sorted({r["l"] for r in records})
    lines = ["| form, N | " + " | ".join(f"L = {l:,}" for l in lengths) + " |", "|---" * (1 + len(lengths)) + "|"]
    rows: dict[str, dict[int, float]] = {}
    for r in records:
        rows.setdefault(f"{r['form']}, {r['n']}", {})[r["l"]] = r["temp_mb"]
    lines += [f"| {name} | " + " | ".join(f"{row[l]:,.0f}" for l in lengths) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def memory_line(record: dict) -> str:
    """What is said of a program that was compiled for a TPU."""
    return record["error"] or f"{record['peak_mb']:,.1f} MB"


def ahead_tpu_table(records: list[dict]) -> str:
    """Markdown: what each program that was compiled for a TPU holds at once, or why it did not compile."""
    targets = list(dict.fromkeys(r["target"] for r in records))
    found = {(r["program"], r["target"]): memory_line(r) for r in records}
    lines = [f"| program | {' | '.join(targets)} |", "|---" * (1 + len(targets)) + "|"]
    for program in dict.fromkeys(r["program"] for r in records):
        lines.append(f"| {program} | {' | '.join(found.get((program, target), '') for target in targets)} |")
    return "\n".join(lines)


def ahead_gpu_table(records: list[dict]) -> str:
    """Markdown: registers of a thread and spilled bytes of each kernel of a scan with its gradients."""
    lines = ["| scan with its gradients | registers of its kernels | bytes spilled |", "|---|---|---|"]
    for r in records:
        registers = ", ".join(str(k["registers"]) for k in r["kernels"])
        lines.append(f"| {r['program']} | {registers} | {sum(k['spilled_bytes'] for k in r['kernels'])} |")
    return "\n".join(lines)


OTHERS = {
    "ahead_gpu": ahead_gpu_table,
    "ahead_tpu": ahead_tpu_table,
    "kernel_error": error_table,
    "lti_memory": memory_table,
}
"""Results files that are not those of a device, and what draws them."""

KINDS = {"_tests": test_line}
"""Endings of the names of others."""


def _drawn_by(stem: str):
    endings = (draw for ending, draw in KINDS.items() if stem.endswith(ending))
    return next(endings, OTHERS.get(stem, op_tables))


def main() -> None:
    """Rewrites the README between its two markers."""
    readme = FOLDER / "README.md"
    results = sorted((FOLDER / "results").glob("*.json"))
    tables = "\n\n".join(f"### {path.stem}\n\n{_drawn_by(path.stem)(json.loads(path.read_text()))}" for path in results)
    text = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{tables}\n\n{END}", readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)
    print(f"Wrote the tables of {len(results)} files to {readme}")


if __name__ == "__main__":
    main()
