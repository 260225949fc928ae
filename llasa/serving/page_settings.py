"""What the page is told of this server: the service and its config, as :class:`llasa.serving.page.PageSettings`."""

from __future__ import annotations

from pathlib import Path

from llasa.config import ServeConfig
from llasa.errors import UserError
from llasa.generation.voices import longest_voice
from llasa.serving.encoding import available_formats
from llasa.serving.page import Language, PageSettings
from llasa.serving.service import SpeechService
from llasa.serving.tempo import available_speeds

LANGUAGE_NAMES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "zh": "Chinese",
}
MAX_EXAMPLES = 8


def page_settings(service: SpeechService, config: ServeConfig, model: str) -> PageSettings:
    """Raises:
    UserError: the file of examples cannot be read.
    """
    sampling = config.sampling
    return {
        "model": model,
        "languages": [Language(code=code, name=LANGUAGE_NAMES.get(code, code)) for code in service.languages],
        "default_language": service.default_language,
        "speakers": service.speakers,
        "sample_rate": service.sample_rate,
        "max_characters": config.limits.characters,
        "formats": available_formats(),
        "speed": available_speeds(),
        "uploads": config.voice_uploads,
        "needs_key": config.api_keys is not None,
        "sampling": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        },
        "examples": read_examples(config.examples, config.limits.characters) if config.examples is not None else [],
        "transcribes": config.asr is not None,
        "voice_seconds": longest_voice(service.card),
        "upload_bytes": config.limits.upload_bytes,
    }


def read_examples(file: str, characters: int) -> list[str]:
    """The first sentences of a file, one a line.

    Args:
        characters: of a sentence, at most.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(
            f"cannot read examples={file}: {reason}", remedy="pass a text file, a sentence a line"
        ) from None
    return [line.strip() for line in lines if 0 < len(line.strip()) <= characters][:MAX_EXAMPLES]
