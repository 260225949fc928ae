"""Long text cut where a reader would breathe: chapters, paragraphs, sentences, and no piece longer than a limit.

    text ─► chapters and paragraphs ─spoken_form─► sentences ─too long─► ; : ─► , ─► spaces ─► letters ─join─► chunks

The spoken form comes first, because it has no ambiguous period left: "Sig. Rossi" is "Signor Rossi", "z. B." is
"zum Beispiel", "3.5" is words, and "ecc. Poi" is "eccetera. Poi", whose period does end a sentence. So abbreviations
are known in one place, ``languages/``, and the limit counts the characters that are said. What is left to decide are
initials ("A. Manzoni") and whether a sentence goes on after its mark ("«Vieni!» disse").

Libraries compared: sentencex (MIT, kept, 4 MB) cuts "A. | Manzoni" and "M. | Dupont", and does not cut after "ecc." and
"usw."; it takes 3.6 s for 119,000 characters and 20 s for 50,000 initials. pysbd (last release 2021) cuts "Sr. | López"
and "Prof. | Nowak", syntok (2022) "Sig. | Rossi" and "3. | Mai". None takes our abbreviations, and to mend what they
cut and what they miss is as much code as the rule below.

Cost: that of the spoken form, some 0.3 s for 100,000 characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from llasa.errors import UserError
from llasa.text import has_speakable_text, spoken_form


class Break(IntEnum):
    """What stands between two chunks; of several the strongest counts."""

    NONE = 0
    """A cut inside a clause, because it was too long."""
    COMMA = 1
    SENTENCE = 2
    PARAGRAPH = 3
    CHAPTER = 4


@dataclass(frozen=True)
class Chunk:
    """A piece of text to speak at once: its spoken form, with at least one letter.

    ``before`` is what parts it from the chunk before it (the first chunk: NONE), ``chapter`` the title, as given, of
    the chapter that begins with it.
    """

    text: str
    before: Break = Break.NONE
    chapter: str | None = None


class _Span(NamedTuple):
    before: Break
    start: int
    end: int


_Place = tuple[re.Match[str], Break]
_Finder = Callable[[str, _Span], Iterable[_Place]]


_CHAPTER = re.compile(r"#{1,6}\s+(.*)")
_CLOSING, _OPENING = r"\"'’”»)\]}」』）】》〉", "\"'‘“„«([{¿¡「『（【《〈- "
_END = re.compile(
    # Chinese and Japanese marks need no space behind them.
    rf"(?:[。！？｡][{_CLOSING}]*|[.!?؟۔।॥]+[{_CLOSING}]*(?=\s))\s*"
)
_INITIAL = re.compile(r"(?:^|[\s.\-\"'(\[])(\w)\.$")


def split_text(text: str, language: str, max_characters: int) -> list[Chunk]:
    """Cut ``text`` into chunks of at most ``max_characters`` characters of its spoken form, in order.

    A paragraph ends at a line without a letter or digit ("", "* * *"), any other line break is a space. A line that
    begins with ``# ``, ``## `` and so on is a chapter's title, and is spoken. Neighbours are joined up to the limit,
    but not beyond their paragraph. No letter is lost or said twice. Pieces without a letter (emoji, "...") are
    dropped, their pause is kept; in a language without rules that holds for digits too, where they stand alone.

    Raises:
        UserError: no letter in the whole text.
    """
    assert max_characters >= 1
    chunks: list[Chunk] = []
    before, chapter = Break.NONE, None
    for break_before, title, paragraph in _paragraphs(text):
        before, chapter = max(before, break_before), title if title is not None else chapter
        spoken = spoken_form(paragraph, language)
        for span in _fit(spoken, max_characters):
            before = max(before, span.before)
            piece = spoken[span.start : span.end]
            if has_speakable_text(piece):
                chunks.append(Chunk(piece, before if chunks else Break.NONE, chapter))
                before, chapter = Break.NONE, None
    if not chunks:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise UserError(f"text={shown!r} has nothing to say", remedy="pass text with letters in it")
    return chunks


def sentences(text: str) -> list[str]:
    """The sentences of a spoken form, in order."""
    whole = _Span(Break.NONE, 0, len(text))
    return [text[span.start : span.end] for span in _cut(text, whole, _sentence_ends)]


def _paragraphs(text: str) -> Iterator[tuple[Break, str | None, str]]:
    """What stands before each paragraph or title, the title if it is one, and its text."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        title = _CHAPTER.match(line)
        if not title and any(character.isalnum() for character in line):
            lines.append(line)
            continue
        if lines:
            yield Break.PARAGRAPH, None, "\n".join(lines)
            lines = []
        if title:
            yield Break.CHAPTER, title[1].strip() or None, title[1]


def _fit(text: str, limit: int) -> list[_Span]:
    """Spans of at most ``limit`` characters that hold all of ``text`` but the spaces between them."""
    return _shorten(text, _Span(Break.NONE, 0, len(text)), limit, [_sentence_ends, *_PLACES])


def _shorten(text: str, span: _Span, limit: int, levels: Sequence[_Finder]) -> list[_Span]:
    """Cut a span that is too long at the first level of places, what is still too long at the next, last anywhere."""
    if span.end - span.start <= limit:
        return [span]
    if not levels:
        return _hard_cuts(text, span, limit)
    parts = _cut(text, span, levels[0])
    return _join([shorter for part in parts for shorter in _shorten(text, part, limit, levels[1:])], limit)


def _cut(text: str, span: _Span, find: _Finder) -> list[_Span]:
    """Cut behind each place; its marks stay with what they end, its spaces with nothing."""
    parts, start, before = [], span.start, span.before
    for match, kind in find(text, span):
        if start < match.end() < span.end:
            parts.append(_Span(before, start, match.start() + len(match[0].rstrip())))
            start, before = match.end(), kind
    return [*parts, _Span(before, start, span.end)]


def _join(spans: list[_Span], limit: int) -> list[_Span]:
    """As few spans as the limit allows, and those alike in length: no last word stands alone."""
    fewest = sum(1 for _ in _joined(spans, limit))
    low, high = max(span.end - span.start for span in spans), limit
    while low < high:
        middle = (low + high) // 2
        if sum(1 for _ in _joined(spans, middle)) > fewest:
            low = middle + 1
        else:
            high = middle
    return [_Span(first.before, first.start, end) for first, end in _joined(spans, low)]


def _joined(spans: list[_Span], limit: int) -> Iterator[tuple[_Span, int]]:
    first = spans[0]
    end = first.end
    for span in spans:
        if span.end - first.start > limit:
            yield first, end
            first = span
        end = span.end
    yield first, end


def _hard_cuts(text: str, span: _Span, limit: int) -> list[_Span]:
    parts, start, before = [], span.start, span.before
    while start < span.end:
        end = min(start + limit, span.end)
        # An accent stays with its letter, where the limit has room for both.
        while start + 1 < end < span.end and unicodedata.combining(text[end]):
            end -= 1
        parts.append(_Span(before, start, end))
        start, before = end, Break.NONE
    return parts


def _marks(text: str, span: _Span) -> Iterator[_Place]:
    """Every mark that may end a sentence but the periods of initials ("J. R. R. Tolkien"), which end none."""
    for match in _END.finditer(text, span.start, span.end):
        initial = _INITIAL.search(text[max(0, match.start() - 2) : match.start() + 1])
        if initial is None or not initial[1].isupper():
            yield match, Break.SENTENCE


def _sentence_ends(text: str, span: _Span) -> Iterator[_Place]:
    """Those that no small letter follows: with one, the sentence goes on."""
    for match, kind in _marks(text, span):
        if not text[match.end() : match.end() + 8].lstrip(_OPENING)[:1].islower():
            yield match, kind


def _find(pattern: str, kind: Break) -> _Finder:
    compiled = re.compile(pattern)
    return lambda text, span: ((match, kind) for match in compiled.finditer(text, span.start, span.end))


_PLACES: tuple[_Finder, ...] = (
    _marks,  # also before a small letter: the best place in a sentence that is too long
    _find(rf"[;:؛][{_CLOSING}]*\s+|[；：]\s*|\s(?=- )", Break.COMMA),
    _find(rf"[,،][{_CLOSING}]*\s+|[，、]\s*", Break.COMMA),
    _find(r"\s+", Break.NONE),
)
