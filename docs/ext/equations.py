r"""Typesets the equations of docstrings, which are written as plain text so that they are read in the source as well.

A block of a docstring that is indented and stands before its sections (`Args:` and so on) is an equation, and becomes a
`.. math::` directive; one whose lines all begin with a name and a gap is a table, and is kept as it is. Of the plain
text

    h_t = exp(dt_t A) h_{t-1} + sum_n B_n x_(t-n),    y_t = 2 Re C h_t        for each n

names of several letters are upright or Greek, `_bar` and `~` are accents, `_(...)` and `_{...}` are indices, `*` is a
product element by element, and words beside each other are text. A gap of three spaces begins a new line.
"""

import re

__all__ = ["equations_of", "to_tex"]

GREEK = "alpha beta gamma delta epsilon theta lambda Lambda mu nu pi rho sigma tau omega".split()
FUNCTIONS = {"exp": r"\exp", "log": r"\log", "max": r"\max", "min": r"\min", "tanh": r"\tanh", "sum": r"\sum"}
NAMES = {"dt": r"\mathit{dt}", "Re": r"\operatorname{Re}", "Beta": r"\operatorname{Beta}"}
SIGNS = {"||": r"\,\|\,", "<=": r"\le", ">=": r"\ge", "*": r"\odot", "~": r"\sim", "%": r"\%", "...": r"\dots"}
WORDS = {
    *"a and as asked by discretized each for from has it key keys may of one otherwise over query rule rules".split(),
    *"see that the where with".split(),
}
PIECE = re.compile(
    r"""(?P<quote>"[^"]*"|`[^`]*`)|(?P<assign>\*=)|(?P<angle><[^<>=]+>)|(?P<sign>\|\||<=|>=|\.\.\.)
    |(?P<name>[a-z]{3,}-[a-z]{3,}|[A-Za-z][A-Za-z0-9]*(?:_bar)?(?:~(?=[\s,]))?'?)(?P<low>_(?:\{[^}]*\}|\([^)]*\)|[A-Za-z0-9]+))?
    (?P<star>\*(?![\s*]|$)|\*(?=\s*$)|\*(?=[\s,]\s*(?:discretized|by|[,.])))?(?P<high>\^(?:\([^)]*\)|-?[A-Za-z0-9]+))?
    |(?P<power>\^(?:\([^)]*\)|-?[A-Za-z0-9]+))|(?P<index>_(?:\{[^}]*\}|\([^)]*\)|[A-Za-z0-9]+))
    |(?P<other>.)""",
    re.VERBOSE,
)
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$|^:|^\.\.|^>>>")


def to_tex(block: list[str]) -> str:
    """LaTeX for the lines of an equation."""
    rows = [row for line in block for row in re.split(r"(?<=\S)\s{3,}(?=\S)|(?<=;)\s{2,}", line.strip()) if row]
    return r"\begin{array}{l}" + " \\\\ ".join(_row(row.strip()) for row in rows) + r"\end{array}"


def equations_of(lines: list[str]) -> list[str]:
    """The lines of a docstring with its equations as directives and its tables as literal blocks."""
    out, at, prose = [], 0, True
    while at < len(lines):
        line = lines[at]
        if SECTION.match(line):
            prose = line.startswith(">>>")
        if prose and line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            block = [row.strip() for row in lines[at:end] if row.strip()]
            before = next((row for row in reversed(out) if row.strip()), "")
            if before.endswith("::") or before.startswith(("..", "-", "*")):
                out += lines[at:end]
            elif _is_table(block):
                out += ["::", "", *lines[at:end]]
            else:
                out += [".. math::", "", f"    {to_tex(block)}", ""]
            at = end
            continue
        out.append(line)
        at += 1
    return out


def _is_table(block: list[str]) -> bool:
    return len(block) > 1 and all(
        re.match(r"[\w{}]+\s{2,}\S", row) or re.match(r"[\w{}]+\s+[a-zA-Z]+$", row) for row in block
    )


def _row(text: str) -> str:
    parts, words = [], []

    def flush():
        if words:
            parts.append(rf"\text{{ {' '.join(words)} }}")
            words.clear()

    pieces = [m for m in PIECE.finditer(text)]
    for i, m in enumerate(pieces):
        name = m["name"]
        if m["other"] == " ":
            continue
        plain = name and not (m["low"] or m["high"] or m["star"])
        if plain and _is_word(name, pieces, i):
            words.append(name)
            continue
        flush()
        parts.append(_piece(m))
    flush()
    return " ".join(parts)


def _is_word(name: str, pieces, i: int) -> bool:
    """Whether a name is prose: a word of the list, or one of several lower-case words beside each other."""
    if re.fullmatch(r"[A-Z]+\d+[A-Z]*|[a-z]+-[a-z]+", name):
        return True
    if not name.isalpha() or name in FUNCTIONS or name in NAMES or name in GREEK or (len(name) == 1 and name != "a"):
        return False
    after = "".join(m[0] for m in pieces[i + 1 : i + 4])
    if after.startswith("("):
        return False
    if name == "a":  # the article, before a word
        following = re.match(r" ([a-z]{3,})", after)
        return bool(following) and following[1] not in FUNCTIONS and i > 1
    beside = [pieces[j]["name"] or "" for j in (i - 2, i + 2) if 0 <= j < len(pieces)]
    return name in WORDS or any(
        (len(other) > 2 and other.isalpha() and other not in FUNCTIONS) or re.fullmatch(r"[A-Z]+\d+[A-Z]*|a", other)
        for other in beside
    )


def _piece(m: re.Match) -> str:
    if m["quote"]:
        return rf"\texttt{{{m['quote'].strip('`').replace('_', chr(92) + '_')}}}"
    if m["assign"]:
        return r"\mathrel{\odot{=}}"
    if m["angle"]:
        return rf"\langle {_row(m['angle'][1:-1])} \rangle"
    if m["power"] or m["index"]:
        return _script(m["power"] or m["index"])
    if m["name"]:
        name, low = m["name"], m["low"] or ""
        if re.fullmatch("_[a-z]{3,}", low) and (low == "_proj" or len(name) > 1):  # the name of a parameter or a layer
            return rf"\mathrm{{{name}\{low}}}" + _script(m["high"] or "")
        if low and re.fullmatch(r"[A-Z]\d", name):  # one of several
            return f"{name[0]}^{{({name[1]})}}{_script(low)}"
        star = "^{*}" if m["star"] and not m["high"] else ""
        return _name(name) + _script(low) + star + _script(m["high"] or "")
    text = m["sign"] or m["other"]
    return SIGNS.get(text, {"{": r"\{", "}": r"\}"}.get(text, text))


def _script(text: str) -> str:
    if not text:
        return ""
    inner = text[1:]
    if re.fullmatch("[a-z]{2}", inner):
        return f"{text[0]}{{{inner[0]} {inner[1]}}}"
    if inner.startswith(("(", "{")):
        inner = inner[1:-1]
    return f"{text[0]}{{{_row(inner)}}}"


def _name(name: str) -> str:
    prime = "'" if name.endswith("'") else ""
    name = name.rstrip("'")
    if name.endswith("~"):
        return rf"\tilde{{{name[:-1]}}}{prime}"
    if name.endswith("_bar"):
        return rf"\bar{{{_name(name[:-4])}}}{prime}"
    if name in FUNCTIONS or name in NAMES:
        return FUNCTIONS.get(name) or NAMES[name]
    if name in GREEK:
        return rf"\{name}{prime}"
    if len(name) == 1:
        return name + prime
    if re.fullmatch(r"[A-Za-z]\d+", name):
        return f"{name[0]}_{{{name[1:]}}}{prime}"
    return rf"\mathrm{{{name}}}{prime}"


def _typeset(app, what, name, obj, options, lines):
    lines[:] = equations_of(lines)


def setup(app):
    """Before napoleon, which reads the sections."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _typeset, priority=400)
    return {"parallel_read_safe": True}
