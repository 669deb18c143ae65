"""Zero-shot text to speech: ``from vall_e import Voice``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vall_e.decoding import SamplingConfig
    from vall_e.generation.speech import Audio, Request, Segment, SpeechError
    from vall_e.generation.synthesize import Voice

_PUBLIC = {
    "Voice": "vall_e.generation.synthesize",
    "Audio": "vall_e.generation.speech",
    "Request": "vall_e.generation.speech",
    "Segment": "vall_e.generation.speech",
    "SpeechError": "vall_e.generation.speech",
    "SamplingConfig": "vall_e.decoding",
}
__all__ = ["Audio", "Request", "SamplingConfig", "Segment", "SpeechError", "Voice"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: ``import vall_e`` alone loads nothing heavy."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
