"""Finds reference dumps, lets their family compute the same things with our code, and compares.

A dump is `NAME.npz` with `NAME.json` beside it (whose `family` key says what it is; file names carry no meaning), or a
folder with `meta.json` and `io.npz`. An `.npz` without `.json` is a bundle of op cases,
`<case>/{in,out,grad,meta}/<name>`, recognised by the names of its inputs. A dump passes if every array under `out/`,
`grad/` and `grad_in/` was compared and is near enough (`comparison.py`).

The arrays of a folder have plain names, inputs and outputs together: the family says which are its inputs, they come as
`in/<name>`, and all others are outputs, `out/<name>`. Those of a further file `io_ERA.npz` are `out/ERA/<name>`.
"""

import dataclasses
import fnmatch
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.parity.comparison import TOLERANCES, compare, relative_error

__all__ = ["Dump", "Result", "bundle", "check", "compare", "discover", "family", "relative_error", "select"]

SECTIONS = (*TOLERANCES, "param/", "param0/", "in/", "meta/")

SHOWN = 5
"""How many of a dump's problems its line names."""

# Eigenvectors are fixed up to order and scale only, so the matrices of this step mode are read without being compared.
EXEMPT = {"s4": "_diagonal"}


@dataclasses.dataclass(frozen=True)
class Dump:
    """What one run of an original implementation left behind, or one case of a bundle.

    Attributes:
        family: Which of its implementations it was.
        config: The original's own constructor arguments.
        arrays: `param/...`, `in/...`, `out/...`, `grad/...` and `grad_in/...`.
        folder: Where a dump lies that is a folder, with the weights in `hf/`; None for the others.
    """

    family: str
    config: Mapping[str, object]
    arrays: Mapping[str, np.ndarray]
    folder: Path | None = None

    def section(self, start: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin so, without that beginning."""
        return {name.removeprefix(start): x for name, x in self.arrays.items() if name.startswith(start)}

    def inputs(self, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The arrays under `in/`, after a check that none is missing and that none would be left unread."""
        inputs = self.section("in/")
        if not set(required) <= inputs.keys() <= {*required, *optional}:
            raise ValueError(f"inputs are {sorted(inputs)}, this family reads {[*required, *optional]}")
        return inputs


@dataclasses.dataclass(frozen=True)
class Result:
    """How one dump fared: the relative error of each compared array, and everything that was wrong."""

    name: str
    errors: Mapping[str, float]
    problems: Sequence[str]

    @property
    def passed(self) -> bool:
        return not self.problems

    def worst(self, starts: Sequence[str]) -> float:
        """The largest error among the arrays that begin so (NaN counts as the largest), 0 if there is none."""
        chosen = [error for name, error in self.errors.items() if name.split("#")[-1].startswith(tuple(starts))]
        return math.nan if any(map(math.isnan, chosen)) else max(chosen, default=0.0)

    def line(self) -> str:
        """The report's line: name, largest relative errors, pass or fail."""
        outputs, gradients = self.worst(["out/"]), self.worst(["grad"])
        more = len(self.problems) - SHOWN
        problems = "; ".join(self.problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        verdict = "pass" if self.passed else f"FAIL: {problems}"
        errors = f"outputs {outputs:.1e}  gradients {gradients:.1e}  {len(self.errors):4d} arrays"
        return f"{self.name:<28}  {errors}  {verdict}"


Run = Callable[[Dump], Mapping[str, np.ndarray]]
"""What a family does: compute, with our code, the arrays of a dump under their names (more than those do no harm)."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A family of op cases: the inputs and flags its cases have, and what computes one of them."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    run: Run

    def fits(self, inputs: set[str]) -> bool:
        return self.required <= inputs <= self.required | self.optional


families: dict[str, Run] = {}
folder_inputs: dict[str, tuple[str, ...]] = {}
bundles: dict[str, Bundle] = {}


def family(*names: str, inputs: Sequence[str] = ()) -> Callable[[Run], Run]:
    """Registers what computes the dumps of these families.

    Args:
        *names: The families.
        inputs: Of folders: which of their arrays are inputs, as patterns such as `"*.input_ids"`. All others are
            outputs, and each of them must be compared.
    """

    def register(run: Run) -> Run:
        families.update(dict.fromkeys(names, run))
        folder_inputs.update(dict.fromkeys(names, tuple(inputs)))
        return run

    return register


def bundle(name: str, required: Sequence[str], optional: Sequence[str] = ()) -> Callable[[Run], Run]:
    """Registers what computes one case of an op's bundles; the names are those of inputs and flags (`meta/silu`)."""

    def register(run: Run) -> Run:
        bundles[name] = Bundle(name, frozenset(required), frozenset(optional), run)
        return run

    return register


def discover(folder: Path) -> list[Path]:
    """The dumps in a folder and below: `.npz` files, `.json` files whose `.npz` is lost, folders with `meta.json`."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += [path] if (path / "meta.json").is_file() else discover(path)
        elif path.suffix == ".npz" or (path.suffix == ".json" and _lacks_arrays(path)):
            found.append(path)
    return found


def select(paths: Sequence[Path], folder: Path, only: Sequence[str]) -> list[Path]:
    """The dumps with these names (all of them if there are no names).

    Raises:
        ValueError: There is nothing to check, or a name is not there.
    """
    if not paths:
        raise ValueError(f"{folder}: no reference dump in this folder")
    names = {path: {Path(dump_name(path, folder)).name, dump_name(path, folder)} for path in paths}
    unknown = [name for name in only if not any(name in known for known in names.values())]
    if unknown:
        raise ValueError(f"{folder}: no dump named {', '.join(map(repr, unknown))}")
    return [path for path in paths if not only or names[path] & set(only)]


def dump_name(path: Path, folder: Path) -> str:
    """A dump's name in the report: where it lies below the folder, without its suffix."""
    return (path if path.is_dir() else path.with_suffix("")).relative_to(folder).as_posix()


def check(path: Path, name: str) -> Result:
    """Checks one dump. Whatever goes wrong with it is its failure, so that the others are still checked."""
    errors: dict[str, float] = {}
    problems: list[str] = []
    try:
        for prefix, run, dump in _load(path):
            theirs = {key: x for key, x in dump.arrays.items() if key.startswith(tuple(TOLERANCES))}
            found, wrong = compare(theirs, run(dump), EXEMPT.get(dump.family))
            errors |= {prefix + key: error for key, error in found.items()}
            problems += [prefix + text for text in wrong]
    except Exception as error:  # reported in the dump's line, and the exit status is that of a failure
        problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Result(name, errors, problems)


def _load(path: Path) -> Iterator[tuple[str, Run, Dump]]:
    """Each dump in a file (bundles hold many), with what computes it and a prefix for its names in the report."""
    if path.is_dir():
        meta = json.loads((path / "meta.json").read_text())
        run, patterns = _family_of(meta), folder_inputs.get(meta["family"], ())
        yield "", run, Dump(meta["family"], _configuration(meta), _folder_arrays(path, patterns), path)
        return
    description = path.with_suffix(".json")
    meta = json.loads(description.read_text()) if description.is_file() else None
    run = None if meta is None else _family_of(meta)
    arrays = _read(path.with_suffix(".npz"))
    if run is not None:
        _check_sections(arrays)
        yield "", run, Dump(meta["family"], _configuration(meta), arrays)
        return
    for case, content in _cases(arrays).items():
        op = _bundle_of(content)
        yield f"{case}#", op.run, Dump(op.name, {}, content)


def _read(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _configuration(meta: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in meta.items() if name not in ("family", "values")}


def _folder_arrays(folder: Path, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of a folder under `in/` and `out/`, by the patterns of what are inputs."""
    arrays = {}
    for path in [folder / "io.npz", *sorted(folder.glob("io_*.npz"))]:
        era = path.stem.removeprefix("io").removeprefix("_")
        for name, x in _read(path).items():
            given = any(fnmatch.fnmatchcase(name, pattern) for pattern in inputs)
            arrays[f"{'in' if given else 'out'}/{era + '/' if era else ''}{name}"] = x
    return arrays


def _family_of(meta: object) -> Run:
    name = meta.get("family") if isinstance(meta, dict) else None
    if not isinstance(name, str):
        raise ValueError("its JSON names no family")
    if name not in families:
        raise ValueError(f"no module for family {name!r} (there are: {', '.join(sorted(families))})")
    return families[name]


def _cases(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The cases of a bundle; the label `<case>/name` is left out."""
    cases: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for name, x in arrays.items():
        case, _, rest = name.partition("/")
        if rest != "name":
            cases[case][rest] = x
    if not cases:
        raise ValueError("holds no arrays")
    for content in cases.values():
        _check_sections(content)
    return cases


def _bundle_of(case: Mapping[str, np.ndarray]) -> Bundle:
    inputs = {name.removeprefix("in/") for name in case if name.startswith(("in/", "meta/"))}
    fitting = [op for op in bundles.values() if op.fits(inputs)]
    if len(fitting) != 1:
        raise ValueError(
            f"no JSON beside it, and no op takes the inputs {sorted(inputs)} (ops: {', '.join(sorted(bundles))})"
        )
    return fitting[0]


def _check_sections(arrays: Mapping[str, np.ndarray]) -> None:
    foreign = sorted(name for name in arrays if not name.startswith(SECTIONS))
    if foreign:
        raise ValueError(f"arrays of no known kind: {', '.join(foreign)} (kinds: {', '.join(SECTIONS)})")


def _lacks_arrays(path: Path) -> bool:
    """Whether a JSON file describes a dump whose arrays are not there."""
    if path.with_suffix(".npz").exists():
        return False
    try:
        described = json.loads(path.read_text())
        return isinstance(described, dict) and "family" in described
    except (OSError, ValueError):
        return True
