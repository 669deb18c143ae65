"""Text and a reference recording to speech: ``Voice``, the public interface.

Dimensions: N samples, L levels, T frames, P prompt frames, S phones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from vall_e.audio import trim_and_level
from vall_e.codecs.base import Codec, load_codec
from vall_e.decoding import SamplingConfig
from vall_e.generation.joining import join
from vall_e.generation.planning import Piece, going_on, pause_after, plan
from vall_e.generation.quality import UNSAID
from vall_e.generation.ranking import Judge, RankError
from vall_e.generation.respond import NoFirstLevelError
from vall_e.generation.segments import Clock, Speaker, Spoken
from vall_e.generation.speech import Audio, Reference, Request, Segment, SpeechError, Timings, load_reference
from vall_e.models.checkpoint import VoiceConfig, load_model
from vall_e.models.formats import Weights, use_weights
from vall_e.models.vall_e import VallE
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import phonemize
from vall_e.text.tokenizer import Tokenizer

STRESS = "ˈˌ"
TOGETHER = 16  # segments in a batch, if there are not more requests
OFF_DURATION = 0.15  # share by which the speech may miss the duration that was asked for without a warning


class Voice:
    """A trained model with its tokenizer and codec.

    >>> from vall_e import Voice
    >>> voice = Voice.load("models/voice")
    >>> audio = voice.speak("one two three", "reference.wav", seed=7)
    >>> audio.sample_rate, audio.segments[0].text, audio.warnings
    (16000, 'one two three', [])
    >>> audio.save("speech.wav").name
    'speech.wav'

    Args:
        model, config, tokenizer, codec: as ``load`` reads them.
        judge: a recogniser, for ``sampling.rank: recogniser`` (``vall_e.evaluation.judge``).
    """

    def __init__(
        self, model: VallE, config: VoiceConfig, tokenizer: Tokenizer, codec: Codec, judge: Judge | None = None
    ) -> None:
        self.model, self.config, self.tokenizer, self.codec, self.judge = model, config, tokenizer, codec, judge

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        attention: str | None = None,
        *,
        weights: Weights = "float32",
        judge: Judge | None = None,
    ) -> Voice:
        """Read the folder that the train stage wrote.

        Args:
            device: a torch device; ``auto`` is CUDA where there is one.
            attention: as in ``load_model``.
            weights: how they are kept and computed with, see ``use_weights``.
            judge: see the class.

        Raises:
            FileNotFoundError: a file is missing.
            VoiceError: the folder is damaged.
            ValueError: no such format of weights.
        """
        folder = Path(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, config = load_model(folder, device, attention)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        codec = load_codec(config.codec, folder / "codec", device)
        return cls(use_weights(model, weights), config, tokenizer, codec, judge)

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def device(self) -> torch.device:
        return self.model.device

    def speak(
        self,
        text: str,
        prompt: Reference | None = None,
        *,
        prompt_text: str | None = None,
        continue_prompt: bool = False,
        seed: int | None = None,
        language: str | None = None,
        duration: float | None = None,
        speed: float = 1.0,
        sampling: SamplingConfig | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Audio:
        """Say ``text`` in the voice of ``prompt``.

        Args:
            text: of any length; a long one is spoken in segments (``sampling.long_text``).
            prompt: a recording of the voice: a file, or samples float [N] and their rate in Hz; None for a voice of
                the model's own.
            prompt_text, continue_prompt, language, duration, speed: see ``Request``.
            seed: by default that of ``sampling``.
            sampling: by default the voice's own settings.
            progress: called with the share that is done, 0 to 1.

        Raises:
            SpeechError: no words, or a prompt without sound.
            AudioError: the prompt's file cannot be read.
            UnknownPhoneError: the text has sounds that the model never saw.
        """
        sampling = sampling or self.config.sampling
        request = Request(
            text, None if prompt is None else load_reference(prompt, self.sample_rate), prompt_text,
            sampling.seed if seed is None else seed, language, None, continue_prompt, duration, speed,
        )  # fmt: skip
        return self.speak_batch([request], sampling, progress)[0]

    def speak_batch(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[Audio]:
        """Speak all requests in batches; each says the same as it would alone.

        Args:
            sampling: by default the voice's own settings.
            progress: called with the share that is done, 0 to 1.

        Raises:
            SpeechError: a request has no words, or its prompt no sound.
            UnknownPhoneError: a text has sounds that the model never saw.
        """
        if not requests:
            return []
        sampling, clock = sampling or self.config.sampling, Clock()
        with clock.on("prepare"):
            plans = [plan(self, i, request, sampling) for i, request in enumerate(requests)]
        pieces, notes = [p for p, _ in plans], [n for _, n in plans]
        try:
            spoken = self._speak_all(pieces, sampling, clock, progress)
        except (NoFirstLevelError, RankError) as error:
            raise SpeechError(str(error)) from None
        return [
            self._audio(request, mine, heard, note, sampling, clock, len(requests))
            for request, mine, heard, note in zip(requests, pieces, spoken, notes, strict=True)
        ]

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

    def phones(self, texts: Sequence[str], language: str) -> list[list[str]]:
        """Phones of each text, as the model was trained on them."""
        said = [normalize(text, language) for text in texts]
        return phonemize(said, language, self.config.with_stress, self.config.words_apart)

    def ids(self, phones: Sequence[str]) -> np.ndarray:
        """Token ids int64 [S]; a phone never seen with its stress mark is read without it, or with another one."""
        known = set(self.tokenizer.phones)
        plain = {phone.lstrip(STRESS): phone for phone in sorted(known, reverse=True)}
        read = [phone if phone in known else plain.get(phone.lstrip(STRESS), phone) for phone in phones]
        return np.array(self.tokenizer.encode(read), dtype=np.int64)

    def language_id(self, language: str) -> int:
        """Of an espeak-ng language. Raises SpeechError for one that the voice does not know."""
        try:
            return self.config.model.language_id(language)
        except ValueError as error:
            raise SpeechError(str(error)) from None

    def to_wave(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 [L, T] → float32 [N]."""
        if codes.shape[1] == 0:
            return np.zeros(0, dtype=np.float32)
        with torch.inference_mode():
            return self.codec.decode(torch.from_numpy(codes)[None].to(self.device))[0, 0].float().cpu().numpy()

    def _speak_all(
        self,
        requests: Sequence[Sequence[Piece]],
        sampling: SamplingConfig,
        clock: Clock,
        progress: Callable[[float], None] | None,
    ) -> list[list[Spoken]]:
        """The segments of all requests: all at once, or with rolling context the first ones, then the second ones."""
        heard: list[list[Spoken]] = [[] for _ in requests]
        if sampling.long_text.context == "rolling":
            longest = max(len(pieces) for pieces in requests)
            rounds = [[pieces[at] for pieces in requests if at < len(pieces)] for at in range(longest)]
        else:
            rounds = [[piece for pieces in requests for piece in pieces]]
        size = max(TOGETHER, len(requests))
        batches = [part[start : start + size] for part in rounds for start in range(0, len(part), size)]
        for number, batch in enumerate(batches):

            def tell(share: float, number: int = number) -> None:
                if progress is not None:
                    progress((number + share) / len(batches))

            speaker = Speaker(self, sampling, clock, tell)
            if sampling.long_text.context == "rolling":
                batch = [going_on(piece, heard[piece.request]) for piece in batch]
            for piece, spoken in zip(batch, speaker.speak(batch), strict=True):
                heard[piece.request].append(spoken)
            tell(1.0)
        return heard

    def _audio(
        self,
        request: Request,
        pieces: Sequence[Piece],
        spoken: Sequence[Spoken],
        notes: Sequence[str],
        sampling: SamplingConfig,
        clock: Clock,
        requests: int,
    ) -> Audio:
        with clock.on("codec"):
            pauses = [pause_after(piece.chunk.mark, sampling) for piece in pieces[:-1]]
            wav, places = join([s.wav for s in spoken], pauses, self.sample_rate)
        warnings, segments = list(notes), []
        for number, (piece, said, (start, end)) in enumerate(zip(pieces, spoken, places, strict=True), 1):
            where = f"segment {number} ({piece.chunk.text!r}): " if len(pieces) > 1 else ""
            warnings += [where + fault.message for fault in said.faults]
            whole = not any(fault.kind in UNSAID for fault in said.faults)
            segments.append(Segment(piece.chunk.text, start / self.sample_rate, end / self.sample_rate, whole))
        wanted, seconds = sum(p.seconds for p in pieces) + sum(pauses), len(wav) / self.sample_rate
        if pieces[0].timed and abs(seconds - wanted) > OFF_DURATION * wanted:
            warnings.append(f"{seconds:.2f} s, where {wanted:.2f} s were asked for")
        codes = np.concatenate([s.codes for s in spoken], axis=1)
        spent = {name: seconds / requests for name, seconds in clock.spent.items()}
        prefill, decode = spent.get("prefill", 0.0), spent["decode"]
        pace = codes.size / max(prefill + decode, 1e-9)
        timings = Timings(spent["prepare"], prefill, decode, spent["codec"], pace)
        score = float(np.mean([s.score for s in spoken]))
        return Audio(wav, self.sample_rate, codes, score, timings, tuple(segments), warnings)
