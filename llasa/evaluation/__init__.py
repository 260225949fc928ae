"""How good speech is: words understood, voice, sound, speed, and how sure the numbers are.

    text, waveform ─► words.py · similarity.py · dnsmos.py · speed.py ─► one number an utterance ─► statistics.py

The packages that measure are optional (requirements/eval.txt) and imported where they are first used.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

from llasa.errors import UserError


@contextlib.contextmanager
def optional_packages(purpose: str) -> Iterator[None]:
    """Around the import of packages of requirements/eval.txt, whose deprecations are no concern of a user.

    Raises:
        UserError: one of them, or something that it needs, cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
            yield
    except ImportError as error:
        raise UserError(
            f"{purpose} needs a package that cannot be imported ({error})",
            remedy="pip install -r requirements/eval.txt",
        ) from None
