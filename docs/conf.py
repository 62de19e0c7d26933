"""How Sphinx builds these pages: `make docs`."""

from importlib import metadata

project = "shmwasm"
author = "the shmwasm contributors"
version = release = metadata.version("shmwasm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"shmwasm {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
myst_heading_anchors = 3
