"""The demo corpus: espeak-ng voices that say digit strings and short sentences over a closed vocabulary.

The library of the ``espeakng-loader`` wheel is called in this process. The same specification gives the
same bytes: no clock, no global random numbers.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError, model_validator

from vall_e.config import ConfigError, Section, read_yaml
from vall_e.text import espeak

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORDGAP = 1, 2, 3, 4, 7
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Voice(Section):
    """One robot speaker.

    ``voice`` is an espeak-ng voice with an optional variant (``en-us+f2``), ``rate`` is in words per
    minute, ``pitch`` and ``range`` run 0-100, ``gap`` is a pause between words in units of 10 ms.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    voice: str
    rate: Annotated[int, Field(ge=80, le=450)] = 150
    pitch: Annotated[int, Field(ge=0, le=100)] = 50
    range: Annotated[int, Field(ge=0, le=100)] = 50
    gap: Annotated[int, Field(ge=0, le=100)] = 0
    test: bool = False


class DemoSpec(Section):
    """``conf/demo-corpus.yaml``. ``words`` are the lists that ``{name}`` in a template draws from."""

    voices: Annotated[tuple[Voice, ...], Field(min_length=1)]
    words: dict[str, tuple[str, ...]] = {}
    templates: tuple[str, ...] = ()
    digit_lengths: Annotated[tuple[int, ...], Field(min_length=1)] = (2, 3, 4, 5)
    digit_strings: Annotated[int, Field(ge=0)] = Field(20, description="per voice")
    sentences: Annotated[int, Field(ge=0)] = Field(20, description="per voice")
    single_words: bool = Field(False, description="each voice that is not for testing also says every word alone")
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> DemoSpec:
        names = [voice.name for voice in self.voices]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"two voices are called {', '.join(double)}: names are speaker ids and must differ")
        if self.sentences and not self.templates:
            raise ValueError("sentences are wanted but there are no templates")
        known = set(self.words) | {"digit"}
        for template in self.templates:
            missing = set(_slots(template)) - known
            if missing:
                raise ValueError(
                    f"template {template!r} names unknown word lists {sorted(missing)}; known: {sorted(known)}"
                )
        return self

    def vocabulary(self) -> list[str]:
        """Every word that the corpus can say, digits first, in the order of the specification."""
        words = list(DIGITS)
        for template in self.templates:
            words += [word for word in template.split() if not word.startswith("{")]
        words += [word for entries in self.words.values() for entry in entries for word in entry.split()]
        return list(dict.fromkeys(words))


@dataclass(frozen=True)
class DemoUtterance:
    """What a voice is to say."""

    id: str
    voice: Voice
    text: str


def _slots(template: str) -> list[str]:
    return [word[1:-1] for word in template.split() if word.startswith("{") and word.endswith("}")]


def read_spec(path: str | Path) -> DemoSpec:
    """The specification in a YAML file. Raises ConfigError naming file, key and reason."""
    raw = read_yaml(path)
    try:
        return DemoSpec.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigError(f"{path} is not a valid demo corpus:\n" + "\n".join(lines)) from None


def utterances(spec: DemoSpec) -> Iterator[DemoUtterance]:
    """The whole corpus, voice by voice; each voice draws its own texts, none of them twice."""
    for voice in spec.voices:
        # A generator of its own per voice: adding a voice changes no other one's texts.
        rng = random.Random(f"{spec.seed}:{voice.name}")
        alone = spec.vocabulary() if spec.single_words and not voice.test else []
        texts = dict.fromkeys(alone)
        for made, word in enumerate(alone):
            yield DemoUtterance(f"{voice.name}_w{made:03d}", voice, word)
        for kind, count in (("d", spec.digit_strings), ("s", spec.sentences)):
            made = 0
            for _ in range(100 * count):
                if made == count:
                    break
                text = _digits(spec, rng) if kind == "d" else _sentence(spec, rng)
                if text not in texts:
                    texts[text] = None
                    yield DemoUtterance(f"{voice.name}_{kind}{made:03d}", voice, text)
                    made += 1


def _digits(spec: DemoSpec, rng: random.Random) -> str:
    return " ".join(rng.choice(DIGITS) for _ in range(rng.choice(spec.digit_lengths)))


def _sentence(spec: DemoSpec, rng: random.Random) -> str:
    lists = {"digit": DIGITS, **spec.words}
    words = rng.choice(spec.templates).split()
    return " ".join(rng.choice(lists[word[1:-1]]) if word.startswith("{") else word for word in words)


def speak(voice: Voice, text: str) -> tuple[np.ndarray, int]:
    """What ``voice`` says: waveform float32 [N] and its rate in Hz.

    Raises:
        ConfigError: espeak-ng does not know the voice or its variant.
    """
    with _loaded_library() as library:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeak.data_path().encode(), _DONT_EXIT)
        if rate <= 0:
            raise RuntimeError(
                f"espeak-ng did not start with the data in {espeak.data_path()}: reinstall espeakng-loader"
            )
        chunks: list[np.ndarray] = []

        def receive(samples: ctypes._Pointer, count: int, _events: int) -> int:
            if count > 0 and samples:
                chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
            return 0

        # The library keeps the pointer only: the callback object must live as long as the library does.
        callback = _CALLBACK(receive)
        library.espeak_SetSynthCallback(callback)
        _say(library, voice, text)
        library.espeak_Terminate()
    wav = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return wav.astype(np.float32) / 32768.0, rate


def _say(library: ctypes.CDLL, voice: Voice, text: str) -> None:
    # espeak-ng ignores an unknown variant without a word.
    variant = voice.voice.partition("+")[2]
    unknown = variant and not (Path(espeak.data_path()) / "voices" / "!v" / variant).is_file()
    if unknown or library.espeak_SetVoiceByName(voice.voice.encode()) != 0:
        raise ConfigError(f"voice {voice.name}: espeak-ng has no voice {voice.voice!r}")
    for parameter, value in (
        (_RATE, voice.rate),
        (_VOLUME, 100),
        (_PITCH, voice.pitch),
        (_RANGE, voice.range),
        (_WORDGAP, voice.gap),
    ):
        library.espeak_SetParameter(parameter, value, 0)
    # The library draws its roughness from C's generator, which it seeds with the time.
    _c_library().srand(1)
    raw = text.encode() + b"\0"
    status = library.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, 0, 0, _UTF8, None, None)
    if status != 0:
        raise RuntimeError(f"espeak-ng could not say {text!r} with {voice.voice} (status {status})")
    library.espeak_Synchronize()


@contextmanager
def _loaded_library() -> Iterator[ctypes.CDLL]:
    """The library in its first state.

    It keeps phases and filters in static variables that no call resets, so that what it says depends on what it said
    before. A copy under another name is loaded anew for each utterance; this costs some milliseconds.
    """
    with tempfile.TemporaryDirectory(prefix="espeak", ignore_cleanup_errors=True) as folder:
        library = ctypes.CDLL(shutil.copy(espeak.library(), folder))
        try:
            yield library
        finally:
            _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    (_ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose)(library._handle)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL("ucrtbase") if os.name == "nt" else ctypes.CDLL(None)
