"""Sphinx: ``make docs`` builds these pages and the API reference into docs/_build."""

import prunekit

project, author = "prunekit", "the prunekit authors"
version = release = prunekit.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"prunekit {version}"
suppress_warnings = ["myst.header"]  # tables that commands write start two levels down
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
