"""Errors that a person can fix.

Everything the user got wrong (a key, a path, a store made with another codec) is raised as
:class:`UserError`. The entry scripts print it as ``error: …`` on one line and exit with status 2;
any other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """A mistake the user can fix. The message names the field, the value and the remedy."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)


class RejectedRow(Exception):
    """One corpus row cannot be used. ``reason`` is a short, countable slug, ``detail`` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a line of ours; its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__
