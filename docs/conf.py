"""Settings of the documentation site (`make docs`)."""

project = "scaling-harness"
copyright = "the scaling-harness authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Links to files outside docs/ are looked after by docs/check_links.py; a type named in a docstring may be several attributes.
suppress_warnings = ["myst.xref_missing", "ref.python"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "scaling-harness"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes, units and types are in the text
napoleon_google_docstring = False
