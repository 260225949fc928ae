"""Times of day: "14:30", "14h30", "9.15" where a word says that it is one, "3 pm".

An hour above 24 or a minute above 59 is no time. With seconds the parts follow each other plainly.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llasa.text.dates import previous_word
from llasa.text.language import Language
from llasa.text.numbers import cardinal


def read_times(language: Language) -> Callable[[str], str]:
    clock = r"(?P<hour>[01]?\d|2[0-4])(?:{marks})(?P<minute>[0-5]\d)"
    after = rf"(?: ?(?:{language.hour_words})(?!\w))" if language.hour_words else ""
    end = r"(?![\w%]|[.,:/-]\d)"
    marked = re.compile(
        rf"(?<![\w.,:/-])(?<![-+]){clock.format(marks=language.hour_marks)}(?::(?P<second>[0-5]\d))?"
        + (rf"(?:{after}|{end})" if after else end),
        re.ASCII,
    )
    dotted = []
    if language.dot_time_after:
        words = "|".join(map(re.escape, language.dot_time_after))
        dotted.append(
            rf"(?:(?<=\s)|^)(?P<before>(?:{words}) ){clock.format(marks='[.]')}" + (f"{after}?" if after else "") + end
        )
    if after:
        dotted.append(rf"(?P<before>(?<![\w.,:/-])){clock.format(marks='[.]')}{after}")
    dotted_patterns = [re.compile(pattern, re.ASCII | re.IGNORECASE) for pattern in dotted]

    def say(match: re.Match[str]) -> str:
        groups = match.groupdict()
        if groups.get("second"):
            return " ".join(cardinal(int(match[part]), language) for part in ("hour", "minute", "second"))
        before = groups.get("before") or ""
        previous = before.strip().lower() or previous_word(match)
        return before + language.time(int(match["hour"]), int(match["minute"]), previous)

    def read(text: str) -> str:
        text = marked.sub(say, text)
        for pattern in dotted_patterns:
            text = pattern.sub(say, text)
        return text

    return read
