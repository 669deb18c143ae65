"""Codecs beside each other and beside the recordings: what a copy keeps, level by level.

Dimensions: N samples, L levels of a codec, l levels that are decoded, T frames, M mel bands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vall_e.audio import load, resample, save_wav
from vall_e.codecs.base import Codec
from vall_e.evaluation.asr import Recogniser
from vall_e.evaluation.error_rates import corpus_rate, word_errors
from vall_e.evaluation.mos import Dnsmos
from vall_e.evaluation.speaker import SpeakerEncoder
from vall_e.text.normalize import words_for_scoring

MEL_RATE, MEL_WINDOW, MEL_HOP, MEL_BANDS = 16_000, 1024, 256, 80
MEL_RANGE_DB = 60.0


@dataclass(frozen=True)
class Item:
    """A recording to copy: ``text`` is what it says, None where nobody knows."""

    name: str
    path: Path
    text: str | None


@dataclass(frozen=True)
class Row:
    """One line of the comparison; None where a figure has no meaning.

    Attributes:
        codec: its name as given, or ``recording``.
        levels: l.
        bits_per_second: l * frame rate * log2(codes).
        wer: word error rate of the recogniser on the copies.
        similarity: mean cosine of speaker embeddings of copy and recording.
        dnsmos: mean DNSMOS P.835 overall, 1 to 5.
        mel_distance: see ``mel_distance``, dB.
        encode_rtf, decode_rtf: seconds of work for a second of sound, one recording at a time; all levels are encoded.
    """

    codec: str
    levels: int | None
    bits_per_second: float | None
    wer: float | None
    similarity: float | None
    dnsmos: float | None
    mel_distance: float | None
    encode_rtf: float | None
    decode_rtf: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mel_distance(wav: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference in dB of two waves' mel spectra, 0 for equal ones.

    Magnitudes of 80 Slaney bands at 16 kHz, windows of 64 ms every 16 ms, not below 60 dB under the first wave's
    loudest band. Level counts; a phase does not.

    Args:
        wav, other: float [N] at 16 kHz; the longer one is cut.
    """
    import librosa

    size = min(len(wav), len(other))
    spectra = [
        librosa.feature.melspectrogram(
            y=sound[:size], sr=MEL_RATE, n_fft=MEL_WINDOW, hop_length=MEL_HOP, n_mels=MEL_BANDS, power=1.0
        )
        for sound in (wav, other)
    ]
    floor = max(float(spectra[0].max()), 1e-6) * 10 ** (-MEL_RANGE_DB / 20)
    first, second = (20 * np.log10(np.maximum(spectrum, floor)) for spectrum in spectra)
    return float(np.abs(first - second).mean())


class Comparison:
    """Measures codecs on the same recordings.

    Args:
        items: recordings; where one's text is unknown, the recogniser's own reading of the recording stands for it.
        recogniser, speakers, mos: what listens.
        language: of the texts, as for ``words_for_scoring``.
        out: folder for the copies as ``NAME-levels/ITEM.wav``; None keeps none.

    Raises:
        ValueError: no recordings.
        AudioError: a recording cannot be read.
    """

    def __init__(
        self,
        items: Sequence[Item],
        recogniser: Recogniser,
        speakers: SpeakerEncoder,
        mos: Dnsmos,
        language: str = "en-us",
        out: Path | None = None,
    ) -> None:
        if not items:
            raise ValueError("no recordings to compare codecs on")
        self.items, self.out, self.language = list(items), out, language
        self._listeners = recogniser, speakers, mos
        self._sounds = [load(item.path) for item in items]
        heard = self._words(recogniser.transcribe(self._sounds))
        known = [None if item.text is None else words_for_scoring(item.text, language) for item in items]
        self._references = [words or own for words, own in zip(known, heard, strict=True)]
        self._voices = speakers.embed(self._sounds)
        self._mels = [resample(wav, rate, MEL_RATE) for wav, rate in self._sounds]
        self._heard = heard

    @property
    def seconds(self) -> float:
        return sum(len(wav) / rate for wav, rate in self._sounds)

    def recordings(self) -> Row:
        """The recordings themselves: the bound of every copy."""
        return self._row("recording", self._sounds, heard=self._heard)

    def copies(
        self, name: str, codec: Codec, levels: Sequence[int] | None = None, done: Callable[[int], None] = lambda n: None
    ) -> list[Row]:
        """A row for each number of levels.

        Args:
            levels: numbers of levels, 1 to L; None: 1, 2, 4 ... and L.
            done: is told after each recording how many copies it gave.
        """
        levels = sorted(set(levels or level_counts(codec.levels)))
        copies: dict[int, list[tuple[np.ndarray, int]]] = {count: [] for count in levels}
        encoding, decoding = 0.0, dict.fromkeys(levels, 0.0)
        for item, (wav, rate) in zip(self.items, self._sounds, strict=True):
            sound = torch.from_numpy(resample(wav, rate, codec.sample_rate))[None, None]
            started = time.perf_counter()
            codes = codec.encode(sound)
            encoding += time.perf_counter() - started
            for count in levels:
                started = time.perf_counter()
                decoded = codec.decode(codes[:, :count])
                decoding[count] += time.perf_counter() - started
                copy = decoded[0, 0, : sound.shape[-1]].cpu().numpy()
                copies[count].append((copy, codec.sample_rate))
                if self.out is not None:
                    save_wav(self.out / f"{name}-{count}" / f"{item.name}.wav", copy, codec.sample_rate)
            done(len(levels))
        bits = codec.frame_rate * float(np.log2(codec.codes))
        return [
            self._row(name, copies[count], count, count * bits, encoding / self.seconds, decoding[count] / self.seconds)
            for count in levels
        ]

    def _row(
        self,
        name: str,
        sounds: Sequence[tuple[np.ndarray, int]],
        levels: int | None = None,
        bits: float | None = None,
        encode: float | None = None,
        decode: float | None = None,
        heard: list[list[str]] | None = None,
    ) -> Row:
        recogniser, speakers, mos = self._listeners
        heard = self._words(recogniser.transcribe(sounds)) if heard is None else heard
        errors = [word_errors(*pair) for pair in zip(self._references, heard, strict=True)]
        cosines = (speakers.embed(sounds) * self._voices).sum(1)
        scores = [score for score in mos.score_all(sounds) if score is not None]
        mels = [
            mel_distance(own, resample(wav, rate, MEL_RATE))
            for own, (wav, rate) in zip(self._mels, sounds, strict=True)
        ]
        return Row(
            name, levels, bits, corpus_rate(errors) if any(e.count for e in errors) else None, float(cosines.mean()),
            float(np.mean(scores)) if scores else None, float(np.mean(mels)), encode, decode,
        )  # fmt: skip

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return [words_for_scoring(text, self.language) for text in texts]


def level_counts(levels: int) -> list[int]:
    """1, 2, 4 ... below ``levels``, and ``levels``."""
    return [*(2**i for i in range(levels.bit_length()) if 2**i < levels), levels]


_COLUMNS = (
    ("codec", "{}"), ("levels", "{}"), ("bits_per_second", "{:.0f}"), ("wer", "{:.3f}"), ("similarity", "{:.3f}"),
    ("dnsmos", "{:.2f}"), ("mel_distance", "{:.2f}"), ("encode_rtf", "{:.4f}"), ("decode_rtf", "{:.4f}"),
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text; ``-`` where a figure has no meaning."""
    cells = [[name for name, _ in _COLUMNS]]
    for row in rows:
        values = [(getattr(row, name), form) for name, form in _COLUMNS]
        cells.append(["-" if value is None else form.format(value) for value, form in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Six figures over the bit rate, a line a codec, the recordings' value dashed, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    names = list(dict.fromkeys(row.codec for row in rows if row.levels is not None))
    bound = next((row for row in rows if row.levels is None), None)
    titles = {
        "wer": "Word error rate", "similarity": "Speaker similarity", "dnsmos": "DNSMOS",
        "mel_distance": "Mel distance, dB", "encode_rtf": "Encoding, seconds a second",
        "decode_rtf": "Decoding, seconds a second",
    }  # fmt: skip
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, titles.items(), strict=True):
        for name in names:
            own = [row for row in rows if row.codec == name and getattr(row, key) is not None]
            axes.plot([r.bits_per_second / 1000 for r in own], [getattr(r, key) for r in own], "o-", label=name)
        if bound is not None and getattr(bound, key) is not None:
            axes.axhline(getattr(bound, key), color="grey", linestyle="--", label="recording")
        axes.set(title=title, xlabel="kbit/s")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path
