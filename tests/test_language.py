"""The words of the pages and of the public docstrings: the field's, and not this project's own."""

import importlib
import inspect
import re

import pytest
from doc_blocks import DOCS, PAGES, name_of, prose_of

#: What is not written, and what is written instead.
WORDS = {
    r"weigh(s|ed|ing)?": "compute advantages, count",
    r"contenders?": "algorithm, variant",
    r"worlds?": "environment",
    r"rooms?": "module",
    r"likeliest": "deterministic",
    r"customary": "mean over steps; undiscounted-state-distribution",
    r"thinned": "subsampled",
    r"laid out": "padded",
    r"(with|without|have|has|need) memory": "recurrent policy, hidden state",
    r"joint training": "distributed training",
    r"for ever|anew|of one's own": "plain English",
    r"whoever|who cannot": "name the noun",
    r"the copter": "PixelCopter",
}


def unwanted(text):
    """The words that are not written, with those that are."""
    text = re.sub(r"`[^`]*`", "", text)
    return [
        f"{match[0]} (write: {instead})"
        for pattern, instead in WORDS.items()
        for match in re.finditer(rf"\b({pattern})\b", text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages(page):
    assert unwanted(prose_of(page)) == []


@pytest.mark.parametrize("path", sorted((DOCS.parent / "hyperparams").glob("*.yml")), ids=lambda path: path.stem)
def test_comments_of_hyperparameters(path):
    assert unwanted("\n".join(line for line in path.read_text().splitlines() if line.lstrip().startswith("#"))) == []


def documented_modules():
    """The modules that the pages of the API show."""
    for page in sorted((DOCS / "api").glob("*.md")):
        yield from re.findall(r"automodule:: (sb3_reinforce\S*)", page.read_text())


@pytest.mark.parametrize("name", ["sb3_reinforce.reinforce", *documented_modules()])
def test_public_docstrings(name):
    module = importlib.import_module(name)
    public = [module, *(thing for key, thing in vars(module).items() if not key.startswith("_") and is_of(thing, name))]
    for thing in public:
        members = [m for key, m in vars(thing).items() if not key.startswith("_")] if inspect.isclass(thing) else []
        for documented in [thing, *members]:
            assert unwanted(inspect.getdoc(documented) or "") == [], documented


def is_of(thing, name):
    return getattr(thing, "__module__", None) == name and (inspect.isclass(thing) or inspect.isfunction(thing))


def test_what_is_unwanted_is_found():
    assert unwanted("The contender is `whoever` weighs.") == [
        "weighs (write: compute advantages, count)",
        *unwanted("contender"),
    ]
