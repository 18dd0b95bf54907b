"""Key tables: how the names and layouts of a foreign checkpoint become ours. Rules are data and are read both ways.

A rule pairs a foreign name with ours, and names the change of layout:

    Rule("layers.{i}.mixer.in_proj.weight", "layers.mixer.in_proj.kernel", "linear")

A letter in braces stands for an index. One that only the foreign name has is stacked: arrays 0, 1, 2, ... of it become
the leading axis of ours (here the layers). One that both have is the same number in both.

What else a layout needs, each one more argument of a rule or of the table:

    # Layers of two kinds, of which each kind is a stack of ours: which of the foreign layers belong to this stack.
    Rule("layers.{i}.mixer.A_log", "mamba.A_log", stack=(0, 1, 3))
    Rule("layers.{i}.attn.proj.weight", "attention.proj.kernel", "linear", stack=(2, 4))
    # One stack out of blocks that the original spells in several ways.
    Rule("{i}.norm.weight", "blocks.norm.scale", stack=("in_blocks.0", "mid_block", "out_blocks.0"))
    # A foreign matrix that is several of ours one after the other (a fused qkv, cut along its first axis).
    Rule("attn.qkv.weight", ("q.kernel", "k.kernel", "v.kernel"), "linear")
    # And the reverse: several foreign matrices that are one of ours. Unequal lengths are named.
    Rule(("q_proj.weight", "k_proj.weight", "v_proj.weight"), "qkv.kernel", "linear", sizes=(64, 16, 16))
    # Axes that are taken apart, or put in another order.
    Rule("A_logs", "A_log", Layout("(k e) n", "k e n", {"k": 4}))
    # A tied weight: a copy that a checkpoint may hold beside the original, and need not.
    KeyTable(rules, tied={"lm_head.weight": "model.embed_tokens.weight"})
    # Another spelling of the same names, in files that another version wrote.
    KeyTable(rules, eras=(Era("transformers 4", {"vision_tower.vision_model.": "vision_tower."}),))
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssmjax import errors
from ssmjax.checkpoints.arrays import Spec, aligned_empty, check_arrays, specs
from ssmjax.checkpoints.layouts import LAYOUTS as _LAYOUTS
from ssmjax.checkpoints.layouts import Layout, shape_in_source, to_ours, to_source
from ssmjax.checkpoints.names import Era, letters, pattern
from ssmjax.layers.lti.state_space import INITIAL_LEAST

__all__ = ["LAYOUTS", "Era", "KeyTable", "Layout", "Rule", "check_needed", "check_real_parts"]

LAYOUTS = _LAYOUTS
"""Changes of layout: the name, and the einops patterns of the foreign array and of ours."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a key table.

    Attributes:
        source: The foreign name, with indices in braces; or several, whose arrays one after the other are ours.
        target: Our name; or several, of which the foreign array is made up, one after the other.
        layout: A key of `LAYOUTS`, or a `Layout`; it applies to each of several targets, and to several sources after
            they are joined.
        axis: The axis, in the foreign layout, along which several arrays stand one after the other.
        sizes: The lengths of several sources along that axis; None where they are equal.
        stack: What stands in place of the stacked letter, in the order of our leading axis: numbers, or parts of names;
            None for 0, 1, 2, ...

    >>> Rule("layers.{i}.attn.qkv.weight", ("layers.q.kernel", "layers.k.kernel"), "linear").targets
    ('layers.q.kernel', 'layers.k.kernel')
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    layout: str | Layout = "same"
    axis: int = 0
    sizes: tuple[int, ...] | None = None
    stack: tuple[int | str, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.sources) > 1 and len(self.targets) > 1:
            raise errors.bad_argument("Rule", "target", self.target, "one name where there are several sources")
        if self.sizes is not None and len(self.sizes) != len(self.sources):
            wanted = f"as many lengths as there are sources, {len(self.sources)}"
            raise errors.bad_argument("Rule", "sizes", self.sizes, wanted)

    def __repr__(self) -> str:
        """The line as one writes it, without what is left out."""
        more = {name: getattr(self, name) for name in ("axis", "sizes", "stack")}
        shown = {name: x for name, x in more.items() if x != type(self).__dataclass_fields__[name].default}
        fields = {"source": self.source, "target": self.target, "layout": self.layout} | shown
        return f"Rule({', '.join(f'{name}={x!r}' for name, x in fields.items())})"

    @property
    def sources(self) -> tuple[str, ...]:
        """The foreign names, also if there is one."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        """Our names, also if there is one."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)


@dataclasses.dataclass(frozen=True)
class _Match:
    """A rule applied to some of our arrays."""

    rule: Rule
    targets: tuple[str, ...]
    sources: dict[tuple[int, ...], tuple[str, ...]]
    """The foreign names at each place of the stack; at the one place `()` where nothing is stacked."""

    def shapes(self, ours: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """The shapes, in the foreign layout, of the parts that become our arrays."""
        stacked = len(next(iter(self.sources), ()))
        return [shape_in_source(tuple(ours[name].shape)[stacked:], self.rule.layout) for name in self.targets]

    def lengths(self, ours: Mapping[str, Any]) -> list[int]:
        """The lengths, along the rule's axis, of the arrays that stand one after the other."""
        axis, shapes = self.rule.axis, self.shapes(ours)
        if len(self.targets) > 1:
            return [shape[axis] for shape in shapes]
        whole, number = shapes[0][axis], len(self.rule.sources)
        sizes = self.rule.sizes or (whole // number,) * number
        if sum(sizes) != whole:
            wanted = f"lengths that sum to {whole}, the length of {self.targets[0]} there"
            raise errors.bad_argument("Rule", "sizes", self.rule.sizes, wanted)
        return list(sizes)

    def source_shapes(self, ours: Mapping[str, Any]) -> list[tuple[int, ...]]:
        """The shapes of the foreign arrays at one place of the stack."""
        shapes = self.shapes(ours)
        if len(self.targets) == len(self.rule.sources) == 1:
            return shapes
        lengths, axis = self.lengths(ours), self.rule.axis
        lengths = lengths if len(self.rule.sources) > 1 else [sum(lengths)]
        return [(*shapes[0][:axis], length, *shapes[0][axis:][1:]) for length in lengths]


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """The whole correspondence between a family's foreign checkpoints and ours.

    Attributes:
        rules: The lines. Those whose target the model lacks are not used.
        ignored: Foreign names that hold no parameter (tables that a model computes), accepted and not read. Letters in
            braces stand for indices.
        required: Foreign names that hold no parameter and must be there (lengths), which the caller reads.
        tied: Foreign names of copies, and the names that they are copies of. A checkpoint holds one of the two, or both
            with the same values; `to_source` writes the original alone.
        eras: Other spellings of the foreign names. A checkpoint is read in the spelling that fits it best, as a whole.

    >>> import jax, numpy as np
    >>> table = KeyTable((Rule("blocks.{i}.fc.weight", "blocks.fc.kernel", "linear"),))
    >>> ours = table.to_ours({"blocks.0.fc.weight": np.ones((3, 2)), "blocks.1.fc.weight": np.zeros((3, 2))},
    ...                      {"blocks.fc.kernel": jax.ShapeDtypeStruct((2, 2, 3), "float64")})
    >>> ours["blocks.fc.kernel"].shape
    (2, 2, 3)
    >>> sorted(table.to_source(ours))
    ['blocks.0.fc.weight', 'blocks.1.fc.weight']
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    required: Sequence[str] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    eras: Sequence[Era] = ()

    def source_specs(self, ours: Mapping[str, Any]) -> dict[str, Spec]:
        """The foreign names, shapes and dtypes that a model with these arrays (or specs) of ours corresponds to."""
        wanted = {}
        for match in self._matches(ours):
            dtype = _common({np.dtype(ours[name].dtype) for name in match.targets})
            for position, shape in enumerate(match.source_shapes(ours)):
                wanted |= {names[position]: Spec(shape, dtype) for names in match.sources.values()}
        return wanted

    def canonical(self, source: Mapping[str, Any], ours: Mapping[str, Any], where: str = "canonical") -> dict[str, Any]:
        """A foreign checkpoint in the table's own spelling, without what it may hold and need not.

        Args:
            source: Foreign arrays by name, in any of the spellings.
            ours: The model's arrays, or their specs, by name.
            where: The checkpoint's name, for the message.

        Raises:
            ValueError: A tied weight differs from what it is a copy of.
        """
        wanted = {*self.source_specs(ours), *self.required}
        spelled = self._spelled(source, wanted)
        for copy, original in self.tied.items():
            if copy in spelled and original in spelled and not _same(spelled[copy], spelled[original]):
                raise ValueError(
                    f"{where}: {copy} and {original} differ, and the configuration says that they are tied. Load it "
                    "with a configuration that does not tie them."
                )
            if copy in spelled:
                spelled.setdefault(original, spelled[copy])
                del spelled[copy]
        return spelled

    def stored_specs(
        self, source: Mapping[str, Any], ours: Mapping[str, Any], where: str = "stored_specs"
    ) -> dict[str, Spec]:
        """Our specs, with the float types of the foreign arrays that they are made of: what is in bfloat16 stays so."""
        theirs = self.canonical(source, ours, where)
        result = specs(ours)
        for match in self._matches(ours):
            names = [name for each in match.sources.values() for name in each if name in theirs]
            floats = {theirs[name].dtype for name in names if jnp.issubdtype(theirs[name].dtype, jnp.floating)}
            for name in match.targets:
                if floats and jnp.issubdtype(result[name].dtype, jnp.floating):
                    result[name] = Spec(result[name].shape, _common(floats))
        return result

    def to_ours(
        self, source: Mapping[str, np.ndarray], ours: Mapping[str, Any], where: str = "to_ours", *, cast: bool = False
    ) -> dict[str, np.ndarray]:
        """Converts a foreign checkpoint.

        Args:
            source: Foreign arrays by name.
            ours: The model's arrays, or their specs, by name: what must result.
            where: The checkpoint's name, for the message.
            cast: Whether floats may be rounded to a dtype that does not hold them exactly.

        Returns:
            Arrays with the names, shapes and dtypes of `ours`.

        Raises:
            ValueError: A foreign name is unknown or missing, or has another shape, or a dtype that ours cannot hold
                exactly; one message lists them all. Or a tied weight differs from its original.
        """
        return dict(self.iter_ours(source, ours, where, cast=cast))

    def iter_ours(
        self,
        source: Mapping[str, np.ndarray],
        ours: Mapping[str, Any],
        where: str = "iter_ours",
        *,
        cast: bool = False,
        release: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """As `to_ours`, one array of ours at a time, each in a buffer of its own. All is checked before the first.

        The foreign arrays may be views of files: each is read when its values are copied, after which `release` is
        called.
        """
        wanted = self.source_specs(ours)
        theirs = self.canonical(source, ours, where)
        lengths = {name: Spec((), np.int64) for name in self.required if name not in theirs}  # listed as missing
        theirs = {name: x for name, x in theirs.items() if name not in self.required}
        held = {name: _as_held(x, wanted.get(name), cast) for name, x in theirs.items()}
        check_arrays(where, held, wanted | lengths)
        return self._converted(theirs, ours, release)

    def _converted(self, theirs, ours, release):
        for match in self._matches(ours):
            made = {name: aligned_empty(ours[name].shape, ours[name].dtype) for name in match.targets}
            for place, names in match.sources.items():
                arrays = [theirs[name] for name in names]
                whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=match.rule.axis)
                parts = [whole]
                if len(match.targets) > 1:
                    parts = np.split(whole, np.cumsum(match.lengths(ours))[:-1], axis=match.rule.axis)
                for name, part in zip(match.targets, parts, strict=True):
                    made[name][place] = to_ours(part, match.rule.layout)
                release()
            yield from made.items()

    def to_source(self, ours: Mapping[str, Any], *, era: str | None = None) -> dict[str, np.ndarray]:
        """Converts back: arrays of ours (parameters, or their gradients) to foreign names and layouts.

        Args:
            ours: Arrays by our names.
            era: The name of an era whose spelling is wanted; None for the table's own.

        Raises:
            ValueError: No rule has the name of one of the arrays, or the era is unknown.
        """
        return dict(self.iter_source(ours, era=era))

    def iter_source(self, ours: Mapping[str, Any], *, era: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """As `to_source`, one foreign array at a time."""
        known = {each.name: each for each in self.eras}
        if era is not None and era not in known:
            raise errors.unknown_name("era", era, list(known))
        for match in self._matches(ours):
            arrays = [np.asarray(ours[name]) for name in match.targets]
            for place, names in match.sources.items():
                parts = [to_source(np.asarray(x[place]), match.rule.layout) for x in arrays]  # a scalar, too
                whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=match.rule.axis)
                cut = [whole]
                if len(names) > 1:
                    cut = np.split(whole, np.cumsum(match.lengths(ours))[:-1], axis=match.rule.axis)
                for name, part in zip(names, cut, strict=True):
                    yield (known[era].from_table(name) if era else name), np.asarray(part, order="C")

    def _spelled(self, source: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
        """The arrays under the table's names, in the era that leaves the fewest names unknown and missing."""
        ignored = [re.compile(pattern(name)) for name in self.ignored]
        candidates = []
        for rename in (str, *(era.to_table for era in self.eras)):
            names = {name: rename(name) for name in source}
            kept = {
                own: spelled
                for own, spelled in names.items()
                if not any(each.fullmatch(own) or each.fullmatch(spelled) for each in ignored)
            }
            if len(set(kept.values())) < len(kept):  # two names would become one: this is not the file's era
                continue
            found = {self.tied.get(name, name) for name in kept.values()}
            candidates.append((len(found ^ wanted), kept))
        _, best = min(candidates, key=lambda candidate: candidate[0])
        return {spelled: source[own] for own, spelled in best.items()}

    def _matches(self, ours: Mapping[str, Any]) -> Iterator[_Match]:
        """Each of our arrays once, alone or with those that share a foreign array with it."""
        done: set[str] = set()
        for name in ours:
            if name not in done:
                match = self._match(name, ours)
                done.update(match.targets)
                yield match

    def _match(self, name: str, ours: Mapping[str, Any]) -> _Match:
        for rule, target in ((each, target) for each in self.rules for target in each.targets):
            if (found := re.fullmatch(pattern(target), name)) is None:
                continue
            indices = found.groupdict()
            targets = tuple(each.format(**indices) for each in rule.targets)
            if lacking := [each for each in targets if each not in ours]:
                raise ValueError(f"A rule of the key table cuts one array into {targets}; {lacking} are not there.")
            stacked = [letter for letter in letters(rule.sources[0]) if letter not in indices]
            sizes = tuple(ours[name].shape)[: len(stacked)]
            if rule.stack is not None and (len(stacked) != 1 or len(rule.stack) != sizes[0]):
                raise errors.bad_argument("Rule", "stack", rule.stack, f"as long as the stack {name!r}, {sizes}")
            sources = {}
            for place in np.ndindex(*sizes):
                values = [rule.stack[i] if rule.stack is not None else i for i in place]
                numbers = dict(zip(stacked, values, strict=True))
                sources[place] = tuple(each.format(**indices, **numbers) for each in rule.sources)
            return _Match(rule, targets, sources)
        raise ValueError(f"No rule of the key table has {name!r} as its target.")


def check_needed(
    where: str, found: Mapping[str, Any], needed: Iterable[str], names: Iterable[str], ignored: Iterable[str] = ()
) -> None:
    """Checks that the arrays are there off which a layer's arguments are read.

    Args:
        where: What is being read, the beginning of the message.
        found: The foreign arrays by name.
        needed: The names that are going to be read.
        names: Every name that such a checkpoint has, for the message.
        ignored: Those that it may have.

    Raises:
        ValueError: One of `needed` is missing; the one message lists every name that is unknown or missing.

    >>> check_needed("example", {"B": np.ones(2)}, ["B"], ["B", "C"])
    """
    if any(name not in found for name in needed):
        there, missing = specs(found), Spec((), np.float32)  # shapes are not known yet, and not compared
        wanted = {name: there.get(name, missing) for name in names}
        check_arrays(where, there, wanted | {name: there[name] for name in ignored if name in there})


def check_real_parts(where: str, A_real: np.ndarray | None, transform: str) -> None:
    """Raises `ValueError` if real parts are stored as they are, and one is not below what "clip" holds them to.

    >>> check_real_parts("example", np.array([0.5]), "clip")
    """
    if transform == "clip" and A_real is not None and np.min(A_real, initial=np.inf) < INITIAL_LEAST:
        wanted = f"-{INITIAL_LEAST} at most, which our layers hold it to"
        remedy = "A mode with a larger real part does not decay, and cannot be converted."
        raise errors.bad_argument(where, "the real part of A", -float(np.min(A_real)), wanted, remedy)


def _common(dtypes: set[np.dtype]) -> np.dtype:
    """The dtype of arrays that become one."""
    return functools.reduce(jnp.promote_types, dtypes)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are the same bit for bit, a NaN included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (one, other))
    return np.array_equal(one, other)


def _as_held(x: np.ndarray, wanted: Spec | None, cast: bool) -> Spec:
    """The spec of a foreign array, with our dtype where ours holds every value of it (float16 in float32)."""
    floats = wanted is not None and jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(wanted.dtype, jnp.floating)
    exact = floats and (cast or np.can_cast(x.dtype, wanted.dtype, casting="safe"))
    return Spec(x.shape, wanted.dtype if exact else x.dtype)
