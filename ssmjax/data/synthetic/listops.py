"""ListOps: nested lists of MIN, MAX, MED and SM over digits (Nangia & Bowman 2018), as Long Range Arena draws them.

A node at depth 1 .. max_depth - 1 is an operator with probability 1/4, with 2 .. max_args arguments, and else a digit;
at max_depth it is a digit. Kept are the trees of which min_length < tokens < max_length, each once (Tay et al. 2021,
"Long Range Arena", task "basic"). Trees are grown level by level, thousands at a time.
"""

import dataclasses
import hashlib

import numpy as np

from ssmjax.data.synthetic.streams import stream
from ssmjax.errors import as_int, bad_argument, bad_shape

__all__ = [
    "LISTOPS_VOCABULARY",
    "ListOps",
    "evaluate_listops",
    "draw_listops",
    "majority_rule",
    "root_operator_rule",
    "tokenize_listops",
]

LISTOPS_VOCABULARY = ("<pad>", "<unk>", "<eos>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "X")
"""The 18 tokens by id; X closes a list."""

_IDS = {token: i for i, token in enumerate(LISTOPS_VOCABULARY)}
_PAD, _UNKNOWN, _END, _ZERO, _CLOSE = (_IDS[token] for token in ("<pad>", "<unk>", "<eos>", "0", "X"))
_MIN, _MAX, _MED, _SM = _OPERATORS = tuple(_IDS[token] for token in ("[MIN", "[MAX", "[MED", "[SM"))
_OPERATOR_SHARE = 0.25
_FOREST = 2048  # trees drawn under one key; a part of the data set's definition
_BARREN = 64  # forests in a row without a new tree, after which there are taken to be no more


@dataclasses.dataclass(frozen=True, eq=False)
class ListOps:
    """A ListOps data set in memory.

    Attributes:
        tokens: (N l) uint8, ids of `LISTOPS_VOCABULARY`; each row ends with <eos> and is filled with <pad>.
        lengths: (N) int32, the tokens of each row, its <eos> among them.
        labels: (N) int32, the values, 0 .. 9.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> "ListOps":
        """The samples that a slice or an array of indices picks."""
        return ListOps(self.tokens[rows], self.lengths[rows], self.labels[rows])


def draw_listops(
    count: int,
    *,
    seed: int,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    pad_to: int | None = None,
) -> ListOps:
    """Draws a ListOps data set; by default as Long Range Arena does, whose splits are of 96,000, 2,000 and 2,000.

    All samples are distinct, and the first n of a larger count are those of count n: split one call's result by slices.
    With other limits this is another task, whose scores do not compare with published ones.

    Args:
        count: N.
        seed: The seed of the data set; together with the four limits it determines the samples.
        min_length: Trees of this many tokens or fewer are left out; <eos> does not count.
        max_length: So are trees of this many or more.
        max_depth: Depth of the deepest digits, the root being at 1.
        max_args: Most arguments of an operator, at least 2.
        pad_to: l, by default max_length, which is what the longest sample takes with its <eos>.

    Returns:
        The samples, in the order in which they were drawn.

    Raises:
        ValueError: If a limit is out of range, or the limits admit fewer than `count` distinct trees.

    >>> data = draw_listops(4, seed=0, min_length=4, max_length=16, max_depth=3, max_args=3)
    >>> data.tokens.shape, [evaluate_listops(row) for row in data.tokens] == data.labels.tolist()
    ((4, 16), True)
    """
    where = "draw_listops"
    count, max_depth = as_int(where, "count", count, least=1), as_int(where, "max_depth", max_depth, least=1)
    max_args, max_length = (
        as_int(where, "max_args", max_args, least=2),
        as_int(where, "max_length", max_length, least=2),
    )
    wanted = f"an int in 0 .. max_length - 2 = {max_length - 2}"
    min_length = as_int(where, "min_length", min_length, wanted, least=0, most=max_length - 2)
    wanted = f"an int, at least max_length = {max_length}, or None"
    pad_to = as_int(where, "pad_to", max_length if pad_to is None else pad_to, wanted, least=max_length)
    data = ListOps(np.zeros((count, pad_to), np.uint8), np.zeros(count, np.int32), np.zeros(count, np.int32))
    seen: set[bytes] = set()
    filled = barren = forests = 0
    while filled < count:
        levels = _grow(stream(where, seed, forests), max_depth, max_args)
        drawn = _serialize(levels, min_length, max_length)
        new = drawn[_first_seen(drawn.tokens, seen)][: count - filled]
        here = slice(filled, filled + len(new))
        data.tokens[here, :max_length], data.lengths[here], data.labels[here] = new.tokens, new.lengths, new.labels
        filled, forests, barren = filled + len(new), forests + 1, 0 if len(new) else barren + 1
        if barren == _BARREN:
            wanted = f"at most {filled}, the distinct trees that these limits seem to admit"
            raise bad_argument(where, "count", count, wanted, "Ask for fewer, or allow more lengths.")
    return data


def tokenize_listops(text: str) -> np.ndarray:
    """Token ids of an expression as the original files write it: parentheses go, "]" is X, <eos> comes last.

    Args:
        text: Tokens between blanks, such as `"( ( ( [MAX 2 ) 9 ) ] )"`; one outside the vocabulary becomes <unk>.

    Returns:
        (l) uint8.

    Raises:
        ValueError: If it is no string.

    >>> [LISTOPS_VOCABULARY[i] for i in tokenize_listops("( ( ( [MAX 2 ) 9 ) ] )")]
    ['[MAX', '2', '9', 'X', '<eos>']
    """
    if not isinstance(text, str):
        raise bad_shape("tokenize_listops", "text", text, "a string", "Decode bytes: text.decode().")
    words = text.replace("]", "X").replace("(", " ").replace(")", " ").split()
    return np.array([*(_IDS.get(word, _UNKNOWN) for word in words), _END], np.uint8)


def evaluate_listops(tokens: np.ndarray) -> int:
    """The value of an expression: MIN, MAX, MED (the median, rounded down) and SM (the sum modulo 10).

    Args:
        tokens: (l) ids, as `tokenize_listops` makes them; what follows <eos> is not read.

    Returns:
        0 .. 9.

    Raises:
        ValueError: If the tokens are no ids in a row, or not one whole expression.

    >>> evaluate_listops(tokenize_listops("[MAX 4 [SM 7 8 ] [MED 1 2 ] ]"))
    5
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        remedy = "Of a text it is tokenize_listops(text); of a data set a row of its tokens."
        raise bad_shape("evaluate_listops", "tokens", tokens, "(l) of integers, ids", remedy)
    apply = {_MIN: min, _MAX: max, _MED: _median, _SM: lambda values: sum(values) % 10}
    open_lists: list[list[int]] = [[]]  # of each: its operator, then its arguments; the outermost has no operator
    for position, token in enumerate(ids.tolist()):
        if token == _END:
            break
        if token in apply:
            open_lists.append([token])
        elif token == _CLOSE and len(open_lists) > 1 and len(open_lists[-1]) > 1:
            operator, *values = open_lists.pop()
            open_lists[-1].append(apply[operator](values))
        elif _ZERO <= token < _ZERO + 10:
            open_lists[-1].append(token - _ZERO)
        else:
            raise bad_argument("evaluate_listops", f"tokens[{position}]", token, "a digit, an operator or its X")
    if len(open_lists) > 1 or len(open_lists[0]) != 1:
        found = f"{len(open_lists[0])} values and {len(open_lists) - 1} open lists"
        raise bad_argument("evaluate_listops", "tokens", found, "one whole expression")
    return open_lists[0][0]


def majority_rule(train: ListOps, test: ListOps) -> float:
    """Accuracy on `test` of always answering the commonest label of `train`: about 17 % at the default limits."""
    return float(np.mean(test.labels == np.bincount(train.labels).argmax()))


def root_operator_rule(train: ListOps, test: ListOps) -> float:
    """Accuracy on `test` of answering by the first token alone, with the label it most often has in `train`.

    About 37 % at the default limits. A model that does not clear it has learned nothing of the nesting.

    >>> data = draw_listops(60, seed=0, min_length=4, max_length=40, max_depth=4, max_args=4)
    >>> root_operator_rule(data, data) >= majority_rule(data, data)
    True
    """
    counts = np.zeros((len(LISTOPS_VOCABULARY), 10), np.int64)
    np.add.at(counts, (train.tokens[:, 0], train.labels), 1)
    return float(np.mean(test.labels == counts.argmax(1)[test.tokens[:, 0]]))


def _median(values: list[int]) -> int:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def _first_seen(rows: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Indices of the rows that are new; `seen` takes up their digests."""
    new = []
    for index, row in enumerate(rows):
        digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            new.append(index)
    return np.array(new, np.int64)


@dataclasses.dataclass
class _Level:
    """All nodes of one depth, in order; the arguments of the inner ones are, in order, the next level.

    Attributes:
        tree: (n) the tree of each node.
        token: (n) its digit or its operator.
        args: (n) its number of arguments, 0 of a digit.
    """

    tree: np.ndarray
    token: np.ndarray
    args: np.ndarray

    @property
    def inner(self) -> np.ndarray:
        return self.args > 0

    @property
    def starts(self) -> np.ndarray:
        """Where the arguments of each inner node begin in the next level."""
        args = self.args[self.inner]
        return np.cumsum(args) - args


def _grow(rng: np.random.Generator, max_depth: int, max_args: int) -> list[_Level]:
    tree, levels = np.arange(_FOREST), []
    for depth in range(1, max_depth + 1):
        inner = rng.random(len(tree)) < (_OPERATOR_SHARE if depth < max_depth else 0.0)
        operators, digits = rng.integers(0, len(_OPERATORS), len(tree)), rng.integers(0, 10, len(tree))
        token = np.where(inner, np.array(_OPERATORS)[operators], _ZERO + digits)
        args = np.where(inner, rng.integers(2, max_args + 1, len(tree)), 0)
        levels.append(_Level(tree, token, args))
        tree = np.repeat(tree, args)
    return levels


def _serialize(levels: list[_Level], min_length: int, max_length: int) -> ListOps:
    """Tokens and values of the trees within the lengths."""
    length = sum(np.bincount(level.tree, 1 + level.inner, _FOREST) for level in levels).astype(np.int32)
    kept = (min_length < length) & (length < max_length)
    levels = [_Level(*(nodes[kept[level.tree]] for nodes in (level.tree, level.token, level.args))) for level in levels]
    row, length = np.cumsum(kept) - 1, length[kept]
    sizes, values = _fold(levels)
    tokens = np.full((len(length), max_length), _PAD, np.uint8)
    at = np.zeros(len(length), np.int64)
    for level, size, argument_size in zip(levels, sizes, [*sizes[1:], sizes[-1][:0]], strict=True):
        inner = level.inner
        tokens[row[level.tree], at] = level.token
        tokens[row[level.tree[inner]], (at + size)[inner] - 1] = _CLOSE
        # An argument stands behind its operator and the arguments before it.
        before = np.cumsum(argument_size) - argument_size
        at = before + np.repeat(at[inner] + 1 - before[level.starts], level.args[inner])
    tokens[np.arange(len(length)), length] = _END
    return ListOps(tokens, length + 1, values.astype(np.int32))


def _fold(levels: list[_Level]) -> tuple[list[np.ndarray], np.ndarray]:
    """From the leaves up: the tokens that each node spans, level by level, and the values of the roots."""
    sizes, values = [], np.empty(0, np.int64)
    for level in reversed(levels):
        inner, starts = level.inner, level.starts
        size, value = np.ones(len(level.tree), np.int64), level.token - _ZERO
        if len(starts):
            size[inner] = 2 + np.add.reduceat(sizes[-1], starts)
            value[inner] = _apply(level.token[inner], values, starts, level.args[inner])
        sizes.append(size)
        values = value
    return sizes[::-1], values


def _apply(operator: np.ndarray, values: np.ndarray, starts: np.ndarray, args: np.ndarray) -> np.ndarray:
    """The value of each operator over its run of `args` values from `starts` on."""
    # Sorted within each run, so that three of the four operators only have to look at the right places.
    ordered = np.sort(10 * np.repeat(np.arange(len(args)), args) + values) % 10
    results = {
        _MIN: ordered[starts],
        _MAX: ordered[starts + args - 1],
        _MED: (ordered[starts + (args - 1) // 2] + ordered[starts + args // 2]) // 2,
        _SM: np.add.reduceat(values, starts) % 10,
    }
    return np.select([operator == token for token in results], list(results.values()))
