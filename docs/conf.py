"""Sphinx: reference from the docstrings, pictures and tables made at every build."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import figures  # noqa: E402
import tables  # noqa: E402

import cudeform  # noqa: E402

project = "cudeform"
author = copyright = "cudeform contributors"
release = version = cudeform.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!cudeform).*")]  # types in prose are no targets

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
doctest_test_doctest_blocks = ""  # pytest runs the examples of docstrings
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give shapes, which say more
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"cudeform {release}"
html_static_path = ["_static"]
html_show_sphinx = False

GENERATED = HERE / "_build" / "generated"


def setup(app):
    figures.draw(GENERATED)
    tables.write(GENERATED)
    tables.write_reference(HERE / "api" / "generated")
