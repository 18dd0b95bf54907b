"""Names with indices in braces, and the spellings that other versions of a program gave them."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

__all__ = ["Era", "letters", "pattern"]


@dataclasses.dataclass(frozen=True)
class Era:
    """Another spelling of a table's foreign names, which files of another version have.

    Attributes:
        name: What to call it, such as `"transformers 4"`.
        renames: How names begin there, and how the table's begin in their place. Letters in braces stand for indices,
            and the longest beginning that fits applies. Names that none fits are spelled as in the table.

    >>> Era("old", {"blocks.{i}.ln_1.": "blocks.{i}.norm."}).to_table("blocks.3.ln_1.bias")
    'blocks.3.norm.bias'
    """

    name: str
    renames: Mapping[str, str]

    def to_table(self, name: str) -> str:
        """The table's spelling of a name of this era."""
        return _renamed(name, self.renames.items())

    def from_table(self, name: str) -> str:
        """This era's spelling of a name of the table."""
        return _renamed(name, ((canonical, own) for own, canonical in self.renames.items()))


def letters(name: str) -> list[str]:
    """The letters in braces, in order.

    >>> letters("stages.{s}.blocks.{i}.bias")
    ['s', 'i']
    """
    return re.findall(r"\{(\w+)\}", name)


def pattern(name: str) -> str:
    """A regular expression for a name with indices in braces.

    >>> re.fullmatch(pattern("blocks.{i}.bias"), "blocks.12.bias").groupdict()
    {'i': '12'}
    """
    parts = re.split(r"\{(\w+)\}", name)
    return "".join(re.escape(part) if i % 2 == 0 else rf"(?P<{part}>\d+)" for i, part in enumerate(parts))


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """A name with the longest beginning that fits replaced."""
    fitting = [(found.end(), found, new) for old, new in renames if (found := re.match(pattern(old), name))]
    if not fitting:
        return name
    end, found, new = max(fitting, key=lambda each: each[0])
    return new.format(**found.groupdict()) + name[end:]
