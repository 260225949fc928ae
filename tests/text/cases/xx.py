"""A language without rules: the cleaning alone."""

CASES = [
    ("  a \n\t b\u2028c ", "a b c"),
    ("room 101, 50%", "room 101, 50%"),
    ("cafe\u0301", "café"),
    ("\ufeffso\u00adft\u200b \x00hy\x7fphen", "soft hyphen"),
    ("perch\ufffd \ud800no\udfff", "perch no"),
    ("e\u200b\u0301", "é"),  # only once the zero-width space is gone do the two compose
    ("ciao😀mondo 👩‍👩‍👧 ☀️!", "ciao mondo!"),
    ("👍🏽 🇮🇹 1️⃣ ↔️ ok", "1 ok"),
    ("20 °C", "20 °C"),
    ("‘a’ ‚b‘ ‹c› d′ ”e“ 〝", "'a' 'b' 'c' d' \"e\" 〝"),
    ("a‐b‑c–d−e", "a-b-c-d-e"),
    ("a—b ― c--d", "a - b - c - d"),
    ("a…… b.....", "a... b..."),
    ("what ?! no .", "what?! no."),
    ("", ""),
]
