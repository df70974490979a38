"""The site: the Markdown of this folder, with what the code can say of itself put in. `make docs` builds it."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import generated

project = "undiffuse"
author = "The undiffuse authors"
release = metadata.version("undiffuse")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "undiffuse"
html_theme_options = {"source_repository": generated.REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_math_renderer = "mathml"  # browsers draw it themselves: no script from elsewhere

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub writes it
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # the types of other packages, whose pages are not here

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
default_role = "code"  # `name` in a docstring
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", generated.fill_in)
    app.connect("autodoc-process-docstring", generated.as_restructured_text, priority=100)  # before Napoleon
    app.add_html_math_renderer("mathml", (generated.inline_math, None), (generated.block_math, None))
