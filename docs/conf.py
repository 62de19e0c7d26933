"""How Sphinx builds these pages: `make docs`."""

from importlib import metadata

project = "shmwasm"
author = "the shmwasm contributors"
version = release = metadata.version("shmwasm")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"shmwasm {release}"

# What stands between single backquotes in a docstring is a name; it becomes a link where it is documented here.
default_role = "py:obj"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
# In the signature, so that a class that only the library constructs (`autoclass:: Block()`) shows nothing of how.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
myst_heading_anchors = 3
