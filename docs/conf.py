"""Sphinx configuration: ``make docs`` builds the site, and any warning fails the build."""

import os
import re
from pathlib import Path

import tomllib

import sb3_reinforce

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
REPOSITORY_URL = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

project = "sb3_reinforce"
author = "The sb3_reinforce authors"
copyright = f"2026, {author}"
version = release = sb3_reinforce.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

# Markdown: equations, links to headings as on GitHub
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4
# SB3 imports some types for checkers alone
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference"]

# Notebooks are executed; an error in a cell fails the build
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_merge_streams = True
# Progress and warnings on stderr say nothing to a reader
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
typehints_defaults = "comma"
always_use_bars_union = True

# A reference to what has a page must lead there. Base classes and types of other modules and packages have none
documented = [name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"automodule:: (\S+)", page.read_text())]
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", rf"(?!({'|'.join(map(re.escape, documented))})(\.\w+)?$).*"),
    ("py:.*", r".*\._\w+"),
]
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
        "gymnasium": ("https://gymnasium.farama.org/", None),
        "stable_baselines3": ("https://stable-baselines3.readthedocs.io/en/master/", None),
        "sb3_contrib": ("https://sb3-contrib.readthedocs.io/en/master/", None),
    }

copybutton_prompt_text = r">>> |\.\.\. |\$ |alpha\$ |beta\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"sb3_reinforce {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": REPOSITORY_URL, "source_branch": "main", "source_directory": "docs/"}

LINK_OUT = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>(#[^)\s]*)?)\)")


def link_to_repository(app, docname, source):
    """
    Let links of a page to files outside of docs/ lead to the repository, since they are no pages of the site.

    ``DOCS_STEPS`` also shortens the trainings of the pages that are executed.
    """
    folder = (DOCS / docname).parent

    def absolute(match):
        target = (folder / match["path"]).resolve()
        if match["image"] or target.is_relative_to(DOCS) or not target.exists():
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"[{match['text']}]({REPOSITORY_URL}/{kind}/main/{target.relative_to(REPOSITORY)}{match['anchor']})"

    text = LINK_OUT.sub(absolute, source[0])
    if steps := os.environ.get("DOCS_STEPS"):
        text = re.sub(r"\bSTEPS = [\d_]+", f"STEPS = {steps}", text)
    source[0] = text


def setup(app):
    """Connect what changes the pages before they are read."""
    app.connect("source-read", link_to_repository)
