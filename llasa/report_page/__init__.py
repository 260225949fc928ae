"""What the pages of reports share: a head with light and dark colours, facts, and players with a picture to click into.

    template with $head, $players and its own parts ─write_report_page─► one HTML file, nothing to load

A template goes on in the head's <style>, with rules of its own, which come last and so win.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from llasa.provenance import write_atomically

HERE = Path(__file__).parent


def write_report_page(path: Path, template: Path, *, title: str, **parts: str) -> None:
    """Fill a template and write the page, whole or not at all.

    Args:
        title: as text; all other parts are HTML already.
    """
    shown = escape(title)
    head = Template(read(HERE / "head.html")).substitute(title=shown)
    page = Template(read(template)).substitute(parts, head=head, title=shown, players=read(HERE / "players.js"))
    write_atomically(path, page.encode())


def fact_list(facts: Iterable[tuple[object, str]]) -> str:
    """(value, what it is) each."""
    items = "".join(f"<li><b>{escape(str(value))}</b><span>{escape(label)}</span></li>" for value, label in facts)
    return f'<ul class="facts">{items}</ul>'


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
