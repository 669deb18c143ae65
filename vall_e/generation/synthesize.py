"""Text and a reference recording to speech: ``Voice``, the public interface.

Dimensions: N samples, L levels, T frames, P prompt frames, S phones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from vall_e.audio import load, probe
from vall_e.decoding import SamplingConfig
from vall_e.generation.convert import convert, separate
from vall_e.generation.edit import edit
from vall_e.generation.joining import join
from vall_e.generation.loaded import LoadedVoice
from vall_e.generation.planning import Piece, going_on, pause_after, plan
from vall_e.generation.quality import UNSAID
from vall_e.generation.ranking import RankError
from vall_e.generation.recording import Changed
from vall_e.generation.respond import NoFirstLevelError
from vall_e.generation.segments import Clock, Speaker, Spoken, told
from vall_e.generation.speech import (
    Audio,
    Reference,
    Request,
    Segment,
    SpeechError,
    Timings,
    load_reference,
    load_sound,
    one_channel,
)
from vall_e.generation.streaming import AudioChunk, Pace, stream
from vall_e.generation.tempo import stretched, tempo_for
from vall_e.generation.transcribe import Transcript, transcribe

TOGETHER = 16  # segments in a batch, if there are not more requests
OFF_DURATION = 0.15  # share by which the speech may miss the duration that was asked for without a warning


class Voice(LoadedVoice):
    """A trained model with its tokenizer and codec.

    >>> from vall_e import Voice
    >>> voice = Voice.load("models/voice")
    >>> audio = voice.speak("one two three", "reference.wav", seed=7)
    >>> audio.sample_rate, audio.segments[0].text, audio.warnings
    (16000, 'one two three', [])
    >>> audio.save("speech.wav").name
    'speech.wav'

    Made by ``load``; the arguments are those of ``LoadedVoice``.
    """

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
            prompt: a recording of the voice: a file, or samples (see ``speech.one_channel``) and their rate in Hz;
                None for a voice of the model's own.
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

    def stream(
        self,
        text: str,
        prompt: Reference | None = None,
        *,
        seed: int | None = None,
        language: str | None = None,
        speed: float = 1.0,
        sampling: SamplingConfig | None = None,
        pace: Pace | None = None,
    ) -> Iterator[AudioChunk]:
        """As ``speak``, in pieces while it is drawn, one candidate; see ``vall_e.generation.streaming.stream``.

        Args:
            pace: when pieces come; by default the first one after half a second of speech at most.
        """
        sampling = sampling or self.config.sampling
        prompt = None if prompt is None else load_reference(prompt, self.sample_rate)
        seed = sampling.seed if seed is None else seed
        return stream(self, Request(text, prompt, seed=seed, language=language, speed=speed), sampling, pace)

    def transcribe(self, recording: Reference, *, words: bool = False, language: str | None = None) -> Transcript:
        """What a recording says, by the voice's own ``stt``; see ``vall_e.generation.transcribe.transcribe``."""
        wav = load_sound(recording, self.sample_rate)
        return transcribe(self, [wav], words=words, language=language)[0]

    def edit(
        self,
        recording: Reference,
        start: float,
        end: float,
        text: str,
        *,
        seconds: float | None = None,
        noise: bool = False,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        language: str | None = None,
    ) -> Changed:
        """Other words from ``start`` to ``end`` seconds of a recording, at the recording's own rate; see
        ``vall_e.generation.edit.edit``."""
        wav, rate = recording if isinstance(recording, tuple) else load(recording)
        changed = edit(self, wav, rate, start, end, text, seconds, noise, seed, sampling, language)
        channels = np.size(wav) // len(one_channel(wav)) if isinstance(recording, tuple) else probe(recording).channels
        if channels > 1:
            changed.warnings.append(f"the {channels} channels became one")
        return changed

    def convert(
        self,
        source: Reference,
        reference: Reference,
        text: str | None = None,
        *,
        mask: float = 0.6,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        language: str | None = None,
    ) -> Changed:
        """What ``source`` says in the voice of ``reference``; see ``vall_e.generation.convert.convert``."""
        wavs = (load_sound(r, self.sample_rate) for r in (source, reference))
        return convert(self, *wavs, text, mask, seed, sampling, language)

    def separate(
        self,
        source: Reference,
        task: Literal["ns", "sr", "tse"],
        reference: Reference | None = None,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Changed:
        """Speech without noise (``ns``), the noise (``sr``), or one of two speakers (``tse``) of a recording; see
        ``vall_e.generation.convert.separate``."""
        wav = load_sound(source, self.sample_rate)
        known = None if reference is None else load_sound(reference, self.sample_rate)
        return separate(self, wav, task, known, seed, sampling)

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
            waves, tempo = [s.wav for s in spoken], pieces[0].tempo
            if tempo is None:
                seconds = len(join(waves, pauses, self.sample_rate)[0]) / self.sample_rate - sum(pauses)
                tempo = tempo_for(seconds, request.duration - sum(pauses))
            waves = [stretched(wave, self.sample_rate, tempo) for wave in waves]
            wav, places = join(waves, pauses, self.sample_rate)
        warnings, segments = list(notes), []
        for number, (piece, said, (start, end)) in enumerate(zip(pieces, spoken, places, strict=True), 1):
            warnings += told(pieces, number, said)
            whole = not any(fault.kind in UNSAID for fault in said.faults)
            segments.append(Segment(piece.chunk.text, start / self.sample_rate, end / self.sample_rate, whole))
        wanted, seconds = request.duration, len(wav) / self.sample_rate
        if wanted is not None and abs(seconds - wanted) > OFF_DURATION * wanted:
            warnings.append(f"{seconds:.2f} s, where {wanted:.2f} s were asked for")
        codes = np.concatenate([s.codes for s in spoken], axis=1)
        spent = {name: seconds / requests for name, seconds in clock.spent.items()}
        prefill, decode = spent.get("prefill", 0.0), spent["decode"]
        pace = codes.size / max(prefill + decode, 1e-9)
        timings = Timings(spent["prepare"], prefill, decode, spent["codec"], pace)
        score = float(np.mean([s.score for s in spoken]))
        return Audio(wav, self.sample_rate, codes, score, timings, tuple(segments), warnings)
