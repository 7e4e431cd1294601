"""Sphinx configuration. The pages are built without a network, and read without one."""

import layerwise


project = "layerwise"
author = "layerwise developers"
copyright = "layerwise developers"
version = release = layerwise.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # serves MathJax from _static, not from the network
]
exclude_patterns = ["_build", "jupyter_execute"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Notebooks are MyST Markdown, run by the build; an exception in a cell fails it.
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autodoc_typehints = "none"  # the signature and the Args section say it already
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "layerwise"
html_show_copyright = False

# README.md links to the files of the repository; in the documentation they are pages.
_PAGES = {"(BUILD.md)": "(build.md)", "(CHANGELOG.md)": "(changelog.md)"}


def _link_pages(app, relative_path, parent, content):
    """Points the README's links at the documentation's pages."""
    for file, page in _PAGES.items():
        content[0] = content[0].replace(file, page)


def setup(app):
    """Registers what Sphinx calls while it reads."""
    app.connect("include-read", _link_pages)
