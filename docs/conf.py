"""Sphinx configuration: `make docs`."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "ext")]

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docstrings import prepare_docstring

import ssmjax

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("SSMJAX_SMOKE", "1")  # notebooks run on embedded data and a few steps
os.environ["PYTHONPATH"] = str(DOCS.parent)  # for the notebooks' kernels: `experiments` lives in the clone

project = "ssmjax"
author = copyright = "the ssmjax authors"
version = release = ssmjax.__version__

extensions = [
    "coverage_check",
    "equations",
    "myst_nb",
    "signatures",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "notebooks/*.py"]  # the twins hold the same cells

autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # as the source writes them, see ext/signatures.py
python_maximum_signature_line_length = 88
add_module_names = False
default_role = "literal"  # docstrings write code in single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True

myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

html_theme = "sphinx_book_theme"
html_title = f"ssmjax {release}"
html_theme_options = {"show_toc_level": 2}
html_static_path = ["static"]
html_css_files = ["narrow.css"]


def escape_stars(app, what, name, obj, options, lines):
    """`(b l *f)` in a docstring is a shape, not the start of emphasis."""
    lines[:] = [line if r"\begin{array}" in line else re.sub(r"(?<![*\\])\*(?![*\s])", r"\\*", line) for line in lines]


def describe_constants(app, what, name, obj, options, lines):
    """A constant that a package takes from one of its modules has its text there; a dict's own is no description."""
    if what != "data" or lines != prepare_docstring(type(obj).__doc__ or ""):
        return
    package, _, attribute = name.rpartition(".")
    lines.clear()
    for module in sorted(m for m in sys.modules if m.startswith(package) and hasattr(sys.modules[m], attribute)):
        texts = ModuleAnalyzer.for_module(module).find_attr_docs()
        if ("", attribute) in texts and getattr(sys.modules[module], attribute) is obj:
            lines[:] = texts["", attribute]


def setup(app):
    app.connect("autodoc-process-docstring", describe_constants, priority=300)
    app.connect("autodoc-process-docstring", escape_stars, priority=900)  # after napoleon
