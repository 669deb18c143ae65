"""What was heard in a recording → its utterances, or the rejects that say why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from vall_e.corpus.quality import Row, reject
from vall_e.corpus.transcription.cutting import Limits, Span, cut
from vall_e.corpus.transcription.hallucinations import Evidence, invented
from vall_e.corpus.transcription.languages import espeak_language, join, whisper_language
from vall_e.corpus.transcription.listening import spoken
from vall_e.corpus.transcription.mapping import Mapping, map_text
from vall_e.corpus.transcription.pauses import Spoken
from vall_e.corpus.transcription.turns import speakers_of
from vall_e.evaluation.alignment import UNSPACED
from vall_e.evaluation.hearing import compression_ratio
from vall_e.preparation import TranscribeConfig
from vall_e.text.normalize import words_for_scoring

STAGE = "transcribe"
WORDS = "words that somebody says"  # what rejects without any lack


def character_error_rate(reference: str, hypothesis: str, language: str) -> float:
    """CER of what was recognised, 0 and up: of both readings of its digits the nearer one."""
    import jiwer

    wanted = " ".join(words_for_scoring(reference, language))
    rates = []
    for apart in (False, True):
        found = " ".join(words_for_scoring(hypothesis, language, digits_apart=apart))
        rates.append(jiwer.cer(wanted, found) if found else 1.0)
    return min(rates)


class Checker:
    """Makes the utterances of a recording, collecting rows of TRANSCRIPTS, of REJECTS, and error rates.

    Args:
        config: limits and gates.
        taken: ids of all recordings; no utterance gets one that is not its recording's.
        detected: languages were detected, not given.
    """

    def __init__(self, config: TranscribeConfig, taken: Callable[[str], bool], detected: bool) -> None:
        self._config, self._taken, self._detected = config, taken, detected
        self._limits = Limits(
            config.min_seconds, config.max_seconds, config.margin_seconds, config.min_pause, config.max_pause
        )
        self.rows: list[Row] = []
        self.rejects: list[Row] = []
        self.rates: list[float] = []
        self.cut = 0

    def add(self, row: Row, entry: Row | None, turns: Sequence[Sequence[Any]] | None) -> None:
        """A recording.

        Args:
            row: of the table MANIFEST.
            entry: from ``listening.listen``; None where the recogniser was not asked.
            turns: from ``turns.diarise``; None without diarisation.
        """
        if entry is not None and entry["fault"]:
            self._reject(row["id"], *entry["fault"])
            return
        language = self._language(row, entry)
        if language is None:
            self._reject(row["id"], "language", f"{entry and entry['language']}", "a language of espeak-ng")
            return
        words = spoken(entry) if entry else []
        labels = speakers_of(words, turns) if turns is not None else None
        if row["seconds"] > self._config.max_seconds or (labels and len(set(labels)) > 1):
            self._in_pieces(row, entry or {}, language, words, labels)
        else:
            self._whole(row, entry, language, words, labels[0] if labels else "S0" if turns is not None else None)

    def _language(self, row: Row, entry: Row | None) -> str | None:
        if not self._detected or row["language_given"] or entry is None or not entry["pieces"]:
            return row["language"]
        return espeak_language(entry["language"], row["language"])

    def _whole(self, row: Row, entry: Row | None, language: str, words: list[Spoken], label: str | None) -> None:
        name, given = row["id"], row["text"]
        out = self._row(row, name, Span(0, len(words), 0.0, row["seconds"]), language, label)
        if entry is None:
            self.rows.append(out | {"text": given, "origin": "given"})
            return
        pieces = [piece for piece in entry["pieces"] if not piece["silent"]]
        text = " ".join(piece["text"] for piece in pieces)
        out |= self._figures(entry, text, pieces, words)
        if given:
            self._given(out, given, text, entry["language"])
        elif not words_for_scoring(text, language):
            silent = " ".join(piece["text"] for piece in entry["pieces"])
            self._reject(name, "no_speech", text or silent or "nothing recognised", WORDS)
        else:
            self._recognised(out, text, pieces)

    def _in_pieces(
        self, row: Row, entry: Row, language: str, words: list[Spoken], labels: Sequence[str] | None
    ) -> None:
        name = row["id"]
        for piece in entry["pieces"]:
            if piece["silent"]:
                self._reject(f"{name}@{piece['start']:.2f}", "no_speech", piece["text"], WORDS)
        if not words:
            self._reject(name, "no_speech", "nothing recognised", WORDS)
            return
        self.cut += 1
        spaced = entry["language"] not in UNSPACED
        mapping = map_text(row["text"], [word.text for word in words], language, spaced) if row["text"] else None
        turns = [k for k, (a, b) in enumerate(pairwise(labels or ())) if a != b]
        if mapping:
            turns = [k for k in turns if mapping.sure[k]]
        spans = cut(words, row["seconds"], self._limits, mapping.sure if mapping else None, turns)
        for number, span in enumerate(spans, 1):
            self._piece(row, self._name(name, number), span, entry, language, words, labels, mapping)

    def _piece(
        self,
        row: Row,
        name: str,
        span: Span,
        entry: Row,
        language: str,
        words: list[Spoken],
        labels: Sequence[str] | None,
        mapping: Mapping | None,
    ) -> None:
        spaced = entry["language"] not in UNSPACED
        some = words[span.first : span.last]
        heard = join([word.text for word in some], spaced)
        if span.seconds < self._config.min_seconds:
            self._reject(name, "too_short", f"{span.seconds:.2f} s: {heard!r}", self._config.min_seconds)
            return
        if span.seconds > self._config.max_seconds:
            where = "where text and recogniser agree" if mapping else "between words"
            rule = "unsure" if mapping else "no_pause"
            self._reject(name, rule, f"{span.seconds:.1f} s without a pause {where}", self._config.max_seconds)
            return
        here = set(labels[span.first : span.last]) if labels else set()
        if len(here) > 1:
            self._reject(name, "two_speakers", " and ".join(sorted(here)), "1")
            return
        owners = sorted({word[5] for word in entry["words"][span.first : span.last]})
        pieces = [entry["pieces"][k] for k in owners]
        out = self._row(row, name, span, language, min(here) if here else None)
        out |= self._figures(entry, heard, pieces, some)
        if mapping is None:
            self._recognised(out, heard, pieces)
            return
        first = mapping.until[span.first - 1] if span.first else 0
        last = mapping.until[span.last - 1] if span.last < len(words) else len(mapping.given)
        given, share = join(mapping.given[first:last], spaced), mapping.share(first, last)
        edge = (span.first or mapping.ends[0]) and (span.last < len(words) or mapping.ends[1])
        if share < self._config.min_matched or not edge:
            why = f"{share:.2f} of the words" if edge else "the text's first or last word was not recognised"
            self._reject(name, "unsure", f"{why}: heard {heard!r}, given {given!r}", self._config.min_matched)
            return
        self._given(out, given, heard, entry["language"])

    def _given(self, out: Row, given: str, heard: str, code: str) -> None:
        """A text that came with the recording, held against what was heard in the language of Whisper's ``code``."""
        words = words_for_scoring(given, out["language"])
        if not words:
            self._reject(out["id"], "no_words", given, WORDS)
            return
        cer = character_error_rate(given, heard, out["language"])
        self.rates.append(min(cer, 1.0))
        if cer > self._config.max_cer and sum(map(len, words)) >= self._config.max_cer_letters:
            strange = "" if code == whisper_language(out["language"]) else f" in {out['language']} (heard as {code})"
            value = f"{cer:.2f}: heard {heard!r}, given {given!r}{strange}"
            self._reject(out["id"], "cer", value, self._config.max_cer)
        else:
            self.rows.append(out | {"text": given, "origin": "given", "cer": cer})

    def _recognised(self, out: Row, text: str, pieces: Sequence[Row]) -> None:
        """A text of the recogniser's, held against what inventions look like."""
        if not all(piece["finished"] for piece in pieces):
            limit = f"recogniser.max_new_tokens {self._config.recogniser.max_new_tokens}"
            self._reject(out["id"], "unfinished", text, limit)
            return
        evidence = Evidence(out["end"] - out["start"], out["no_speech"], out["avg_logprob"], out["compression_ratio"])
        fault = invented(text, out["language"], evidence, self._config.hallucinations)
        if fault:
            self._reject(out["id"], *fault)
        else:
            self.rows.append(out | {"text": text, "origin": "recognised"})

    def _row(self, row: Row, name: str, span: Span, language: str, label: str | None) -> Row:
        speaker = row["speaker"] if label is None else f"{row['speaker']}-{label}"
        where = {"recording": row["id"], "start": span.start, "end": span.end}
        unknown = (
            "recognised",
            "cer",
            "language_probability",
            "no_speech",
            "avg_logprob",
            "compression_ratio",
            "words",
        )
        return {"id": name, **where, "speaker": speaker, "language": language, **dict.fromkeys(unknown)}

    def _figures(self, entry: Row, text: str, pieces: Sequence[Row], words: Sequence[Spoken]) -> Row:
        """What the recogniser says of an utterance: the worst of the pieces of speech that it is from."""
        timed = [{"word": w.text, "start": w.start, "end": w.end, "score": w.score} for w in words]
        return {
            "recognised": text,
            "language_probability": entry["language_probability"],
            "no_speech": max((piece["no_speech"] for piece in pieces), default=None),
            "avg_logprob": min((piece["log_prob"] for piece in pieces), default=None),
            "compression_ratio": compression_ratio(text) if text else None,
            "words": timed if entry["words"] is not None else None,
        }

    def _name(self, recording: str, number: int) -> str:
        name = f"{recording}-{number:04d}"
        while self._taken(name):
            name += "_"
        return name

    def _reject(self, name: str, rule: str, value: object, threshold: object = None) -> None:
        self.rejects.append(reject(name, STAGE, rule, value, threshold))
