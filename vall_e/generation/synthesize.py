"""Text and a reference recording to speech.

Dimensions: N samples, L levels, T frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from vall_e.audio import trim_and_level
from vall_e.codecs.base import Codec, load_codec
from vall_e.decoding import SamplingConfig
from vall_e.generation.ar import Candidate
from vall_e.generation.respond import NoFirstLevelError, respond
from vall_e.models.checkpoint import VoiceConfig, load_model
from vall_e.models.packing import Sample
from vall_e.models.vall_e import VallE
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer

LONGEST = 3.0  # a response may last this many times what its phones take on average, and a second
UNFINISHED = 5.0  # nats a frame: any candidate that stopped by itself is better than one that did not
STRESS = "ˈˌ"
TOO_SHORT = 0.35  # of what its phones take on average


class SpeechError(ValueError):
    """A request that cannot be spoken: nothing to say, or a reference that holds no voice."""


@dataclass(frozen=True)
class Request:
    """Something to say.

    Attributes:
        text: in the voice's language; ignored where ``phones`` are given.
        prompt: float32 [N] at the voice's sample rate, the speaker to imitate; None for a voice of the model's own.
        prompt_text: what the prompt says. With it and ``continue_prompt`` the model goes on from the prompt
            (VALL-E's continual mode, 2301.02111, section 4.3) instead of only imitating its voice.
        seed: of everything drawn for this request; the same in any batch.
        language: espeak-ng language; None takes the voice's own.
        phones: instead of text.
        continue_prompt: see ``prompt_text``.
    """

    text: str = ""
    prompt: np.ndarray | None = None
    prompt_text: str | None = None
    seed: int = 0
    language: str | None = None
    phones: Sequence[str] | None = None
    continue_prompt: bool = False


@dataclass(frozen=True)
class Speech:
    """What was said.

    Attributes:
        wav: float32 [N].
        codes: int64 [L, T].
        seconds: duration.
        compute_seconds: this request's share of the time its batch took.
        score: of the candidate that was kept; see ``Candidate``.
        warnings: what a listener should know, empty if all went well.
    """

    wav: np.ndarray
    sample_rate: int
    codes: np.ndarray
    seconds: float
    compute_seconds: float
    score: float
    warnings: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return self.codes.shape[1]


class Voice:
    """A trained model with its tokenizer and codec.

    Args:
        model, config, tokenizer, codec: as ``load`` reads them.
    """

    def __init__(self, model: VallE, config: VoiceConfig, tokenizer: Tokenizer, codec: Codec) -> None:
        self.model, self.config, self.tokenizer, self.codec = model, config, tokenizer, codec

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", attention: str | None = None) -> Voice:
        """Read the folder that the train stage wrote; ``attention`` as in ``load_model``.

        Raises:
            FileNotFoundError: a file is missing.
            VoiceError: the folder is damaged.
        """
        folder = Path(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, config = load_model(folder, device, attention)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        return cls(model, config, tokenizer, load_codec(config.codec, folder / "codec", device))

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def device(self) -> torch.device:
        return self.model.device

    def speak(self, request: Request, sampling: SamplingConfig | None = None) -> Speech:
        """One request; see ``speak_batch``."""
        return self.speak_batch([request], sampling)[0]

    def speak_batch(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Speech]:
        """Speak all requests in one batch.

        Args:
            sampling: by default the voice's own settings.
            progress: called with (frames so far, rows still speaking).

        Raises:
            SpeechError: a request has no words, or its prompt no sound.
            UnknownPhoneError: a text has sounds that the model never saw.
        """
        if not requests:
            return []
        started = time.perf_counter()
        sampling = sampling or self.config.sampling
        samples, limits, notes = self._samples(requests, sampling)
        seeds = [request.seed for request in requests]
        try:
            found = respond(self.model, samples, sampling, seeds, limits, self._best, progress)
        except NoFirstLevelError as error:
            raise SpeechError(str(error)) from None
        chosen, codes = [candidate for candidate, _ in found], [codes for _, codes in found]
        waves = [self._decode(c) for c in codes]
        share = (time.perf_counter() - started) / len(requests)
        return [self._speech(*row, share) for row in zip(chosen, codes, waves, samples, limits, notes, strict=True)]

    def prompt_codes(self, wav: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Codes int64 [L, P] of a reference float32 [N] at the voice's rate, and warnings.

        It is trimmed and brought to the loudness of the training data, and cut to the longest prompt of training.
        """
        wav = np.asarray(wav, dtype=np.float32).reshape(-1)
        if wav.size == 0 or not np.isfinite(wav).all() or float(np.abs(wav).max()) < 1e-4:
            raise SpeechError("the reference recording holds no sound: give one to three seconds of speech")
        warnings: list[str] = []
        wav = trim_and_level(wav, self.sample_rate, self.config.encode)
        if wav.size < 0.2 * self.sample_rate:
            warnings.append(
                f"the reference has only {wav.size / self.sample_rate:.2f} s of sound: one to three are better"
            )
        with torch.inference_mode():
            codes = self.codec.encode(torch.from_numpy(wav)[None, None].to(self.device))[0].cpu().numpy()
        longest = max(1, round(self.config.prompt_seconds * self.codec.frame_rate))
        if codes.shape[1] > longest:
            codes = codes[:, :longest]
        return codes.astype(np.int64), warnings

    def _samples(
        self, requests: Sequence[Request], sampling: SamplingConfig
    ) -> tuple[list[Sample], list[int], list[list[str]]]:
        """What to decode from, the frames each may take, and warnings."""
        spoken = self._phones(requests)
        samples, limits, notes = [], [], []
        empty = np.zeros((self.config.levels, 0), dtype=np.int64)
        for request, phones in zip(requests, spoken, strict=True):
            prompt, warnings = (empty, []) if request.prompt is None else self.prompt_codes(request.prompt)
            text, prefix = self._ids(phones), empty
            if request.continue_prompt:
                if not request.prompt_text or request.prompt is None:
                    raise SpeechError("continuing the reference needs its recording and its text (--ref-text)")
                before = self._phones([replace(request, text=request.prompt_text, phones=None)])[0]
                text = self._ids([*before, " ", *phones])
                prefix = prompt
            expected = len(phones) * self.config.seconds_per_phone
            limit = min(sampling.max_seconds, 1.0 + LONGEST * expected)
            samples.append(Sample(text, prompt, prefix, language=self._language_id(request)))
            limits.append(max(1, round(limit * self.codec.frame_rate)))
            notes.append(warnings)
        return samples, limits, notes

    def _language_id(self, request: Request) -> int:
        try:
            return self.config.model.language_id(request.language or self.config.language)
        except ValueError as error:
            raise SpeechError(str(error)) from None

    def _ids(self, phones: Sequence[str]) -> np.ndarray:
        """Token ids int64 [S]; a phone never seen with its stress mark is read without it, or with another one."""
        known = set(self.tokenizer.phones)
        plain = {phone.lstrip(STRESS): phone for phone in sorted(known, reverse=True)}
        read = [phone if phone in known else plain.get(phone.lstrip(STRESS), phone) for phone in phones]
        return np.array(self.tokenizer.encode(read), dtype=np.int64)

    def _phones(self, requests: Sequence[Request]) -> list[list[str]]:
        out: list[list[str]] = []
        for request in requests:
            if request.phones is not None:
                phones = list(request.phones)
            else:
                language = request.language or self.config.language
                text = normalize(request.text, language)
                phones = (
                    phonemize([text], language, self.config.with_stress, self.config.words_apart)[0] if text else []
                )
            if not any(phone.strip() for phone in phones):
                raise SpeechError(f"nothing to say in {request.text!r}: give some words")
            out.append(phones)
        return out

    def _expected_frames(self, sample: Sample) -> float:
        return len(sample.text) * self.config.seconds_per_phone * self.codec.frame_rate - sample.response.shape[1]

    def _best(self, candidates: Sequence[Candidate], sample: Sample) -> Candidate:
        def rank(candidate: Candidate) -> float:
            short = candidate.codes.shape[1] < TOO_SHORT * self._expected_frames(sample)
            return candidate.alignment + candidate.score - UNFINISHED * (not candidate.finished) - UNFINISHED * short

        return max(candidates, key=rank)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        if codes.shape[1] == 0:
            return np.zeros(0, dtype=np.float32)
        with torch.inference_mode():
            return self.codec.decode(torch.from_numpy(codes)[None].to(self.device))[0, 0].float().cpu().numpy()

    def _speech(
        self,
        best: Candidate,
        codes: np.ndarray,
        wav: np.ndarray,
        sample: Sample,
        limit: int,
        notes: Sequence[str],
        share: float,
    ) -> Speech:
        warnings = list(notes)
        if not best.finished:
            warnings.append(f"cut off after {limit / self.codec.frame_rate:.1f} s: the model did not stop by itself")
        if codes.shape[1] == 0:
            warnings.append("the model stopped at once: no audio")
        elif codes.shape[1] < TOO_SHORT * self._expected_frames(sample):
            warnings.append("much shorter than the text: words may be missing")
        seconds = codes.shape[1] / self.codec.frame_rate
        return Speech(wav, self.sample_rate, codes, seconds, share, best.score, warnings)
