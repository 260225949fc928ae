"""Errors between what was to be said and what a recogniser heard.

    text, heard ─plain_words─► words or characters ─alignment (jiwer)─► substitutions, deletions, insertions

Rates over a corpus are sums of errors by sums of lengths, not means of rates. About 0.1 ms an utterance, the normal
form of the text aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llasa.corpus.recognition import plain_words
from llasa.evaluation import optional_packages

HEARD_SHARE = 0.5
"""Of its letters; a word with fewer in the alignment was not said."""


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn a reference of ``length`` tokens into what was heard."""

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """The fewest edits (Levenshtein) of tokens: words for a word error rate, characters for a character error rate.

    Their number is certain; which of them are substitutions can depend on the alignment chosen among equals
    ("a b" heard as "b c": two substitutions, or one deletion and one insertion).
    """
    aligned = _align(reference, hypothesis)
    return ErrorCounts(aligned.substitutions, aligned.deletions, aligned.insertions, len(reference))


def word_errors(text: str, heard: str, language: str) -> ErrorCounts:
    """Of the plain words of both sides: numbers written out, no case, no punctuation."""
    return count_errors(plain_words(text, language).split(), plain_words(heard, language).split())


def character_errors(text: str, heard: str, language: str) -> ErrorCounts:
    """As :func:`word_errors`, of characters; a space between words is one of them."""
    return count_errors(plain_words(text, language), plain_words(heard, language))


def repeated_words(text: str, heard: str, language: str) -> int:
    """Words of ``heard`` that say again what was just said though the text does not.

    A word or word sequence that follows on itself counts if, left out, what remains has that many errors fewer. So
    "the the cat" for "the cat" is one, "buona notte buona notte" for "buona notte" two, "very very good" is none where
    the text has it, nor is "the the dog" for "the big dog": that is a wrong word.
    """
    reference, hypothesis = plain_words(text, language).split(), plain_words(heard, language).split()
    errors, words = count_errors(reference, hypothesis).errors, hypothesis
    for length in range(1, len(hypothesis) // 2 + 1):
        start = 0
        while start + 2 * length <= len(words):
            if words[start : start + length] == words[start + length : start + 2 * length]:
                shorter = words[:start] + words[start + length :]
                if count_errors(reference, shorter).errors == errors - length:
                    words, errors = shorter, errors - length
                    continue  # a third time may follow
            start += 1
    return len(hypothesis) - len(words)


def skipped_words(text: str, heard: str, language: str) -> int:
    """Words of the text that were not said: deletions whose letters were not heard either.

    A word that a recogniser has written together with its neighbour ("di più" heard as "dipiù") is a deletion for
    the word error rate, but nothing was skipped.
    """
    reference, hypothesis = plain_words(text, language).split(), plain_words(heard, language).split()
    skipped = 0
    for words, others in _differences(reference, hypothesis):
        lacking = len(words) - len(others)
        if lacking > 0:
            unheard = sum(share < HEARD_SHARE for share in _heard_shares(words, "".join(others)))
            skipped += min(lacking, unheard)
    return skipped


def _differences(reference: list[str], hypothesis: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The words of both sides between two places, or ends, where they agree."""
    start = (0, 0)
    equal = [chunk for chunk in _align(reference, hypothesis).alignments[0] if chunk.type == "equal"]
    for chunk in equal:
        yield reference[start[0] : chunk.ref_start_idx], hypothesis[start[1] : chunk.hyp_start_idx]
        start = (chunk.ref_end_idx, chunk.hyp_end_idx)
    yield reference[start[0] :], hypothesis[start[1] :]


def _heard_shares(words: list[str], letters: str) -> list[float]:
    """For each word the share of its letters that ``letters`` has at their place."""
    owners = [index for index, word in enumerate(words) for _ in word]
    heard = [0] * len(words)
    for chunk in _align("".join(words), letters).alignments[0]:
        if chunk.type == "equal":
            for owner in owners[chunk.ref_start_idx : chunk.ref_end_idx]:
                heard[owner] += 1
    return [count / len(word) for count, word in zip(heard, words, strict=True)]


def _align(reference: Sequence[str], hypothesis: Sequence[str]) -> Any:
    """jiwer's WordOutput of tokens as they are: its own transforms would split and strip them."""
    with optional_packages("counting errors"):
        import jiwer

    return jiwer.process_words(
        list(reference),
        list(hypothesis),
        reference_transform=lambda tokens: [tokens],  # type: ignore[arg-type]  # jiwer takes any callable
        hypothesis_transform=lambda tokens: [tokens],  # type: ignore[arg-type]  # the same
    )
