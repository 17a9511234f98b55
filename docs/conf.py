"""Sphinx configuration."""

from importlib.metadata import version as installed

project = "ferattn"
author = "The ferattn developers"
release = version = installed("ferattn")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ferattn {release}"
html_static_path = ["_static"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shape", "returns_style"), "Source"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
suppress_warnings = ["config.cache"]
