"""The blocks of code on the pages: README, docs/, notebooks."""

import json
import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [
    REPOSITORY / "README.md",
    *(page for page in sorted(DOCS.rglob("*.*")) if page.suffix in (".md", ".ipynb") and "_build" not in page.parts),
]
LECTURES = [page for page in PAGES if page.parent == DOCS / "lectures"]


class Block(NamedTuple):
    """Code on a page; the language is ``python`` for cells of notebooks too, and empty where the page names none."""

    language: str
    source: str


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def text_of(page: Path) -> str:
    """A page as Markdown, a notebook's cells one after the other."""
    if page.suffix != ".ipynb":
        return page.read_text()
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(page.read_text())["cells"]]
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells) + "\n"


def blocks_of(page: Path) -> list[Block]:
    """All blocks in their order."""
    found = re.findall(r"^```([^\n]*)\n((?::\w[^\n]*\n)*)(.*?)^```$", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return [Block({"{code-cell}": "python"}.get(language, language), source) for language, _, source in found]


def prose_of(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    """Anchors of all headings."""
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)}
