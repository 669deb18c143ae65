"""Speech recognition by WhisperX's parts (2303.00747): what was said, for transcripts and for error rates.

Two ways lead to the same batched decoder. Recordings (``vad=True``) are cut into speech by WhisperX's voice activity
detection first. Short clips (``vad=False``) are padded with silence and recognised as they are.

Dimensions: N samples, B clips in a batch, S encoder positions (50 a second), D width of the encoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vall_e.audio import resample
from vall_e.evaluation.alignment import attention_words
from vall_e.evaluation.encoder import FRAME, PEAK, RATE, Encoder
from vall_e.evaluation.hearing import Hearing, Hypothesis, Piece
from vall_e.evaluation.vad import SpeechFinder, VadError
from vall_e.evaluation.whisper import RecogniserError, device_for, load_whisper
from vall_e.preparation import RecogniserConfig

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

_SILENT_PEAK = 1e-3
# What is tried in turn until a text passes the thresholds. No step draws random numbers.
_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 5},
    {"beam_size": 5, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
)
_TOKENS_PER_SECOND = 8


@dataclass(frozen=True)
class _Clip:
    """A piece of item ``item``: wav float32 [N] at 16 kHz, peak-normalised, ``start`` seconds into the item."""

    item: int
    wav: np.ndarray
    start: float = 0.0


class Recogniser:
    """A loaded Whisper model.

    Args:
        config: which model, where it runs, and its limits.

    Raises:
        RecogniserError: the model is not there, or does not know the language.
    """

    def __init__(self, config: RecogniserConfig) -> None:
        self.config = config
        self._device = device_for(config.device)
        self._model = load_whisper(config, self._device)
        self._multilingual = self._model.model.is_multilingual
        if not self._multilingual and config.language not in ("en", "auto"):
            raise RecogniserError(
                f"recogniser.model {config.model} knows English only, not {config.language!r}: "
                "name a multilingual Whisper model, or set transcribe.verify_fraction to 0"
            )
        self._tokenizers: dict[str, Tokenizer] = {}
        # Whisper's default, and what an English model knows.
        self._default = "en" if config.language == "auto" else config.language
        self._suppressed = self._suppressed_tokens(self._tokenizer(self._default))
        self._encoder = Encoder(self._model, self._device, int(config.pad_seconds * RATE))

    def transcribe(
        self, clips: Sequence[tuple[np.ndarray, int]], prompt: str | None = None, vad: bool = False
    ) -> list[str]:
        """What is said in each clip; empty for silence and for what cannot be decoded.

        Args:
            clips: pairs of waveform float [N] and rate in Hz.
            prompt: words that the recogniser should expect, given to it as the text before the clip.
            vad: look for speech first. Recordings longer than 30 s are always treated so.

        Returns:
            One text for each clip, as Whisper writes it but with numbers as words. The same clips give the same texts.
        """
        heard = self.hear(clips, prompt, vad)
        for hearing in heard:
            if hearing.error:
                warnings.warn(f"a clip was not recognised: {hearing.error}", stacklevel=2)
        return [hearing.text for hearing in heard]

    def hear(
        self,
        clips: Sequence[tuple[np.ndarray, int]],
        prompt: str | None = None,
        vad: bool = False,
        words: bool = False,
        languages: Sequence[str | None] | None = None,
    ) -> list[Hearing]:
        """As ``transcribe``, with all that the model says of each piece of speech.

        Args:
            clips, prompt, vad: as there.
            words: the times of words as well, by the decoder's attention.
            languages: Whisper's code for each clip; None is the configured one, or detected where that is ``auto``.

        Returns:
            One hearing for each clip, without pieces for silence, with an error where the model failed or does not know
            the language.
        """
        out = [Hearing(code or self._default, error=self._stranger(code)) for code in languages or [None] * len(clips)]
        pieces: list[_Clip] = []
        for item, (wav, rate) in enumerate(clips):
            sound = None if out[item].error else self._prepare(wav, rate)
            if sound is None:
                continue
            try:
                pieces += (
                    self._speech(item, sound) if vad or len(sound) > self._encoder.longest else [_Clip(item, sound)]
                )
            except VadError as error:
                raise RecogniserError(str(error)) from error
            except RuntimeError as error:
                out[item].error = f"voice activity detection failed: {error}"
        if self.config.language == "auto" and self._multilingual:
            self._detect(pieces, out, languages)
        for piece, found in zip(pieces, self._decode_all(pieces, out, prompt, words), strict=True):
            if isinstance(found, str):
                out[piece.item].error = found
            elif found.heard.text:
                out[piece.item].pieces.append(found)
        return out

    def _tokenizer(self, language: str) -> Tokenizer:
        from faster_whisper.tokenizer import Tokenizer

        if language not in self._tokenizers:
            model = self._model
            try:
                made = Tokenizer(model.hf_tokenizer, self._multilingual, task="transcribe", language=language)
            except ValueError as error:
                raise RecogniserError(f"recogniser.language: {error}") from None
            self._tokenizers[language] = made
        return self._tokenizers[language]

    def _stranger(self, language: str | None) -> str | None:
        """Why a clip in ``language`` cannot be recognised, None where it can."""
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        if language is None or language == "en" or (self._multilingual and language in _LANGUAGE_CODES):
            return None
        knows = "no such language" if self._multilingual else "English only"
        remedy = "name a Whisper model that does, or check no given texts (transcribe.verify_fraction 0)"
        return f"recogniser.model {self.config.model} knows {knows}, and this is in {language}: {remedy}"

    def _suppressed_tokens(self, tokenizer: Tokenizer) -> list[int]:
        """Whisper's own list of non-speech tokens, and all with digits: what was said is compared in words."""
        from faster_whisper.transcribe import get_suppressed_tokens

        numerals = (
            token for token in range(tokenizer.eot) if any(c in "0123456789%$£" for c in tokenizer.decode([token]))
        )
        return sorted({*get_suppressed_tokens(tokenizer, [-1]), *numerals})

    def _prepare(self, wav: np.ndarray, rate: int) -> np.ndarray | None:
        """Float32 [N] at 16 kHz with its peak at 0.7; None for silence, no samples or non-finite ones."""
        wav = np.asarray(wav, dtype=np.float32)
        if wav.ndim != 1 or not wav.size or not np.isfinite(wav).all():
            return None
        wav = resample(wav, rate, RATE)
        peak = float(np.abs(wav).max(initial=0.0))
        return wav * np.float32(PEAK / peak) if peak > _SILENT_PEAK else None

    @cached_property
    def _finder(self) -> SpeechFinder:
        return SpeechFinder(self.config.vad, self._device, self._encoder.longest / RATE)

    def _speech(self, item: int, wav: np.ndarray) -> list[_Clip]:
        """The parts of ``wav`` float32 [N] with speech, in order, each short enough for the encoder."""
        out = []
        for start, end in self._finder(wav):
            part = wav[int(start * RATE) : int(end * RATE)][: self._encoder.longest]
            if len(part) >= FRAME:
                out.append(_Clip(item, part, start))
        return out

    def _detect(self, pieces: Sequence[_Clip], out: list[Hearing], given: Sequence[str | None] | None) -> None:
        """Put the language of each clip whose language nobody gave, by its first piece, into ``out``."""
        from faster_whisper.transcribe import get_ctranslate2_storage

        first: dict[int, _Clip] = {}
        for piece in pieces:
            if given is None or given[piece.item] is None:
                first.setdefault(piece.item, piece)
        for item, piece in first.items():
            encoded = self._encoder.encode([piece.wav], self._encoder.window(len(piece.wav)))
            token, probability = self._model.model.detect_language(get_ctranslate2_storage(encoded))[0][0]
            out[item].language, out[item].language_probability = token.strip("<|>"), float(probability)

    def _decode_all(
        self, pieces: Sequence[_Clip], hearings: Sequence[Hearing], prompt: str | None, words: bool
    ) -> list[Piece | str]:
        """Each piece decoded, or why it was not."""
        # Pieces of one window and language share a batch; batches depend on nothing but the clips.
        kinds = [(self._encoder.window(len(piece.wav)), hearings[piece.item].language) for piece in pieces]
        order = sorted(range(len(pieces)), key=lambda i: (kinds[i], i))
        out: list[Piece | str] = [""] * len(pieces)
        size = self.config.batch_size
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for window, language in sorted({kinds[i] for i in part}):
                batch = [i for i in part if kinds[i] == (window, language)]
                found = self._isolated([pieces[i] for i in batch], window, language, prompt, words)
                for index, result in zip(batch, found, strict=True):
                    out[index] = result
        return out

    def _isolated(
        self, pieces: Sequence[_Clip], window: int, language: str, prompt: str | None, words: bool
    ) -> list[Piece | str]:
        """A batch decoded; where it fails, each piece by itself, so that one bad piece costs itself only."""
        try:
            return list(self._decode(pieces, window, language, prompt, words))
        except RuntimeError as error:
            if len(pieces) == 1:
                return [f"{error} ({len(pieces[0].wav) / RATE:.1f} s of speech)"]
            return [found for piece in pieces for found in self._isolated([piece], window, language, prompt, words)]

    def _decode(
        self, pieces: Sequence[_Clip], window: int, language: str, prompt: str | None, words: bool
    ) -> list[Piece]:
        tokenizer = self._tokenizer(language)
        tokens = self._prompt_tokens(tokenizer, prompt)
        encoded = self._encoder.encode([piece.wav for piece in pieces], window)
        seconds = max(len(piece.wav) for piece in pieces) / RATE
        limit = (
            self.config.max_new_tokens
            if seconds <= 10
            else max(self.config.max_new_tokens, int(_TOKENS_PER_SECOND * seconds))
        )
        heard = self._generate(encoded, tokenizer, tokens, limit, _ATTEMPTS[0])
        for attempt in _ATTEMPTS[1:]:
            again = [i for i, result in enumerate(heard) if result.doubtful]
            if not again:
                break
            tried = self._generate(encoded[again], tokenizer, tokens, limit, attempt)
            for index, result in zip(again, tried, strict=True):
                heard[index] = max(heard[index], result, key=lambda hypothesis: hypothesis.rank)
        timed: Sequence[Any] = [None] * len(pieces)
        if words:
            leads = [self._encoder.lead(len(piece.wav), window) / RATE for piece in pieces]
            ends = [piece.start + len(piece.wav) / RATE for piece in pieces]
            spans = [
                (piece.start - lead, piece.start, end) for piece, lead, end in zip(pieces, leads, ends, strict=True)
            ]
            timed = attention_words(self._model, tokenizer, encoded, [list(h.tokens) for h in heard], spans)
        return [
            Piece(piece.start, piece.start + len(piece.wav) / RATE, result, times)
            for piece, result, times in zip(pieces, heard, timed, strict=True)
        ]

    def _generate(
        self, encoded: np.ndarray, tokenizer: Tokenizer, tokens: list[int], limit: int, how: dict[str, Any]
    ) -> list[Hypothesis]:
        """``encoded`` float32 [B, S, D] → what was heard in each clip."""
        from faster_whisper.transcribe import get_ctranslate2_storage

        # CTranslate2 begins to count at the prompt's last token.
        results = self._model.model.generate(
            get_ctranslate2_storage(encoded),
            [tokens] * len(encoded),
            max_length=len(tokens) - 1 + limit,
            suppress_tokens=self._suppressed,
            return_scores=True,
            return_no_speech_prob=True,
            **how,
        )
        out = []
        for result in results:
            ids = result.sequences_ids[0]
            said = tuple(token for token in ids if token < tokenizer.eot)
            text = tokenizer.decode(said).strip()
            out.append(Hypothesis(text, result.scores[0], result.no_speech_prob, len(ids) < limit, said))
        return out

    def _prompt_tokens(self, tokenizer: Tokenizer, prompt: str | None) -> list[int]:
        previous = tokenizer.encode(" " + prompt.strip()) if prompt and prompt.strip() else []
        return self._model.get_prompt(tokenizer, previous, without_timestamps=True)
