"""What was said in a recording, read by the voice itself: task ``stt`` to phones, ``un-phn`` from phones to words.

Dimensions: R rows, N samples, T symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vall_e.audio import normalize_loudness
from vall_e.decoding import SamplingConfig, SamplingParams
from vall_e.generation.ar import decode
from vall_e.generation.beam import beam_search
from vall_e.generation.pauses import stretches
from vall_e.generation.written import log_probabilities
from vall_e.models.packing import Sample
from vall_e.text.tokenizer import PAD, WORD_GAP

if TYPE_CHECKING:
    from vall_e.generation.loaded import LoadedVoice

GREEDY = SamplingConfig(ar=SamplingParams(temperature=0.0), guidance=0.0, candidates=1)
LONGEST = 3.0  # times what a stretch's phones would be on average, and EXTRA
EXTRA = 8
CHARS_PER_PHONE = 4
SHORTEST_SECONDS = 0.1


class TranscribeError(ValueError):
    """The voice cannot read recordings, or not to words, or the language is not its own."""


@dataclass(frozen=True)
class Heard:
    """A stretch of speech.

    Attributes:
        start, end: seconds in the recording.
        phones: with ``" "`` between words.
        log_probability: of the phones and their end, mean over symbols, in nats: how sure the voice is.
        finished: it ended the phones by itself.
        text: words; None where nobody asked for them.
    """

    start: float
    end: float
    phones: tuple[str, ...]
    log_probability: float
    finished: bool
    text: str | None = None


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording of ``seconds``; no segments where nobody speaks."""

    segments: tuple[Heard, ...]
    seconds: float

    @property
    def phones(self) -> list[str]:
        """Of all segments, ``" "`` between them."""
        spoken = [segment.phones for segment in self.segments if segment.phones]
        return [phone for i, phones in enumerate(spoken) for phone in ((WORD_GAP, *phones) if i else phones)]

    @property
    def text(self) -> str | None:
        """Words of all segments; None where nobody asked for them."""
        if any(segment.text is None for segment in self.segments):
            return None
        return " ".join(segment.text for segment in self.segments if segment.text)


def transcribe(
    voice: LoadedVoice,
    recordings: Sequence[np.ndarray],
    *,
    words: bool = False,
    language: str | None = None,
    sampling: SamplingConfig = GREEDY,
    longest: float | None = None,
    batch_size: int = 16,
) -> list[Transcript]:
    """Read recordings with the voice's own ``stt``.

    Args:
        recordings: float32 [N] each, at the voice's sample rate.
        words: go on from phones to words (task ``un-phn``).
        language: espeak-ng language that is spoken; None takes the voice's own.
        sampling: greedy by default; its ``beam`` searches.
        longest: seconds that are read at once; longer speech is cut at pauses. None takes what the voice speaks at
            most.
        batch_size: stretches read together.

    Raises:
        TranscribeError: the voice did not learn the task, or does not know the language.
        ValueError: a recording that is not one channel of finite samples.
    """
    missing = [task for task in ("stt", *(["un-phn"] if words else [])) if task not in voice.config.model.all_tasks]
    if missing:
        raise TranscribeError(
            f"this voice did not learn {' and '.join(missing)} (its tasks: {', '.join(voice.config.model.all_tasks)}): "
            f"train one with model.tasks: [{', '.join((*voice.config.model.tasks, *missing))}]"
        )
    try:
        language_id = voice.config.model.language_id(language or voice.config.language)
    except ValueError as error:
        raise TranscribeError(str(error)) from None
    limit = voice.config.longest_text * voice.config.seconds_per_phone if longest is None else longest
    found: list[list[Heard]] = [[] for _ in recordings]
    rows: list[tuple[int, float, float, Sample]] = []
    for index, wav in enumerate(recordings):
        rows += [(index, *row) for row in _rows(voice, wav, limit, language_id)]
    for at in range(0, len(rows), batch_size):
        batch = rows[at : at + batch_size]
        for (index, start, end, _), (ids, finished, sure) in zip(batch, _read(voice, batch, sampling), strict=True):
            found[index].append(Heard(start, end, _phones(voice, ids), sure, finished, None))
    out = [Transcript(tuple(heard), len(wav) / voice.sample_rate) for heard, wav in zip(found, recordings, strict=True)]
    return [_worded(voice, t, language_id, sampling, batch_size) for t in out] if words else out


def _rows(voice: LoadedVoice, wav: np.ndarray, limit: float, language: int) -> list[tuple[float, float, Sample]]:
    """Start and end in seconds of each stretch of speech, and what the model reads of it."""
    wav, rate = np.asarray(wav, dtype=np.float32), voice.sample_rate
    if wav.ndim != 1 or not np.isfinite(wav).all():
        raise ValueError(f"a recording is one channel of finite samples [N], not of shape {wav.shape}")
    rows = []
    nothing = np.zeros((voice.config.levels, 0), dtype=np.int64)
    for start, end in stretches(wav, rate, limit):
        if end - start < SHORTEST_SECONDS * rate:
            continue
        part, lufs = wav[start:end], voice.config.encode.loudness_lufs
        part = part if lufs is None else normalize_loudness(part, rate, lufs)
        with torch.inference_mode():
            codes = voice.codec.encode(torch.from_numpy(part)[None, None].to(voice.device))[0].cpu().numpy()
        text = np.zeros(0, dtype=np.int64)
        source = codes[: voice.config.levels].astype(np.int64)
        sample = Sample(text, nothing, nothing, task="stt", more={"source": source}, language=language)
        rows.append((start / rate, end / rate, sample))
    return rows


def _read(
    voice: LoadedVoice, rows: Sequence[tuple[int, float, float, Sample]], sampling: SamplingConfig
) -> list[tuple[np.ndarray, bool, float]]:
    """Phone ids int64 [T] of each row, whether they ended, and their mean log-probability."""
    samples = [sample for *_, sample in rows]
    longest = [round(LONGEST * (end - start) / voice.config.seconds_per_phone) + EXTRA for _, start, end, _ in rows]
    if sampling.beam is not None:
        candidates = beam_search(voice.model, samples, sampling, longest)
    else:
        candidates = decode(voice.model, samples, sampling, [sampling.seed] * len(rows), longest)
    found = [c[0] for c in candidates]
    read = [replace(s, symbols=c.codes[0]) for s, c in zip(samples, found, strict=True)]
    sure = log_probabilities(voice.model, read)
    return [(c.codes[0], c.finished, p) for c, p in zip(found, sure, strict=True)]


def _phones(voice: LoadedVoice, ids: np.ndarray) -> tuple[str, ...]:
    """Phones of ids; the null id is a gap between words where the corpus had single words only."""
    return tuple(phone for i in ids for phone in ([WORD_GAP] if i == PAD else voice.tokenizer.decode([i])))


def _worded(
    voice: LoadedVoice, transcript: Transcript, language: int, sampling: SamplingConfig, batch_size: int
) -> Transcript:
    """The transcript with a text for each segment."""
    nothing = np.zeros((voice.config.levels, 0), dtype=np.int64)
    segments = list(transcript.segments)
    spoken = [index for index, segment in enumerate(segments) if segment.phones]
    for at in range(0, len(spoken), batch_size):
        batch = spoken[at : at + batch_size]
        texts = [np.array(voice.tokenizer.encode(segments[index].phones), dtype=np.int64) for index in batch]
        samples = [Sample(text, nothing, nothing, task="un-phn", language=language) for text in texts]
        longest = [CHARS_PER_PHONE * len(text) + EXTRA for text in texts]
        found = decode(voice.model, samples, sampling, [sampling.seed] * len(batch), longest)
        for index, (candidate,) in zip(batch, found, strict=True):
            text = bytes(candidate.codes[0].astype(np.uint8)).decode("utf-8", errors="replace")
            segments[index] = replace(segments[index], text=text)
    segments = [segment if segment.text is not None else replace(segment, text="") for segment in segments]
    return replace(transcript, segments=tuple(segments))
