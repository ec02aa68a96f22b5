"""Write a report as one self-contained HTML file and as Markdown."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from sb3_reinforce.checkpoints import write_file


class Table(NamedTuple):
    """Column names and cells. In a cell such as ``**4.5** [3.0, 6.0]`` the number is bold."""

    header: list[str]
    rows: list[list[str]]


class Picture(NamedTuple):
    """A figure: SVGs for wide and narrow screens (not in the HTML if empty), and the path of its PNG for the Markdown."""

    description: str
    wide: bytes = b""
    narrow: bytes = b""
    file: str = ""


class Section(NamedTuple):
    """A section of a report. A folded section is closed until the reader opens it."""

    title: str
    text: list[str]
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    is_folded: bool = False


class Document(NamedTuple):
    """
    A report: a table, a figure, a few findings with one claim each, their limitations, and everything else below.

    ``reproduce`` holds names and values that say how to reproduce the report; ``files`` describes the files beside it.
    """

    title: str
    subtitle: str
    table: Table | None
    table_note: str
    pictures: Sequence[Picture]
    findings: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]
    reproduce: Sequence[tuple[str, str]]
    files: str
    hyperparameters: Mapping[str, str] = {}


def write_document(path: Path, document: Document) -> None:
    """Write a report to a path without suffix."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sb3_reinforce.lab"),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    for suffix in ("html", "md"):
        text = environment.get_template(f"document.{suffix}.jinja").render(document._asdict())
        write_file(path.with_name(f"{path.name}.{suffix}"), text)
