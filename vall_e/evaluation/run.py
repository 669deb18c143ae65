"""Speak the test set and let a recogniser listen: error rates of the model, of the codec's copy, of the recordings.

Every test item becomes three waves that are judged alike: what the model says (``model``), the recording through the
codec and back (``resynthesis``, the best this codec could allow), and the ``recording`` itself (the best this
recogniser can do). A figure of the model means something only beside the other two. Where a list brings texts without
recordings there is the model alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.schema import RESULTS, write_table
from vall_e.corpus.work import WorkFolder, write_text
from vall_e.evaluation.error_rates import Errors, align, char_errors, phone_errors, word_errors
from vall_e.evaluation.intervals import bootstrap_ratio
from vall_e.evaluation.lists import plan_list
from vall_e.evaluation.normalisers import Normaliser, read_hypothesis
from vall_e.evaluation.speaking import KINDS, make_waves
from vall_e.evaluation.testset import plan_items
from vall_e.text.normalize import normalize, words_for_scoring
from vall_e.text.phonemes import phonemize

RATES = {"wer": "word", "cer": "char", "per": "phone"}
UNCAPPED = {"wer_uncapped": "word", "cer_uncapped": "char"}  # insertions count without end, as in the literature
# What a model may have met in training, apart: name → column and its value.
GROUPS = {
    "seen_speakers": ("seen_speaker", True),
    "unseen_speakers": ("seen_speaker", False),
    "seen_texts": ("seen_text", True),
    "unseen_texts": ("seen_text", False),
}
# What unfinished work is made by, below the package.
CODE = (
    "audio.py",
    "backbones",
    "codecs",
    "corpus/schema.py",
    "corpus/splits.py",
    "decoders.py",
    "evaluation",
    "generation",
    "memory.py",
    "models",
    "nn",
    "sampling",
    "tasks.py",
    "text",
)
_RECOGNISE = 32  # waves held in memory at a time


class Listener(Protocol):
    """What of ``asr.Recogniser`` is used here."""

    def transcribe(
        self, clips: Sequence[tuple[np.ndarray, int]], prompt: str | None = None, vad: bool = False
    ) -> list[str]: ...


def evaluate(
    config: Params,
    voice: Any,
    rows: Iterable[Mapping[str, Any]],
    texts: Mapping[str, str],
    out_dir: str | Path,
    *,
    progress: bool = False,
    recogniser: Listener | None = None,
    work: WorkFolder | None = None,
) -> dict[str, Any]:
    """Synthesise, resynthesise, recognise, count.

    Args:
        config: all parameters; sections evaluate, sampling, encode, split, phonemize and train.join are read.
        voice: a ``generation.synthesize.Voice``.
        rows: the manifest's rows.
        texts: manifest id → transcript, of the utterances that no stage rejected.
        out_dir: gets ``results.parquet`` (schema RESULTS) and ``{model,resynthesis,recording,prompt}/ID.wav``.
        progress: show bars on stderr.
        recogniser: by default the one that ``evaluate.recogniser`` names.
        work: keeps finished batches of waves and of what was heard, for the next run should this one be killed.

    Returns:
        ``wer``, ``cer``, ``per``, ``wer_uncapped``, ``cer_uncapped`` {kind: {value, low, high}}; ``wer_over_codec``
        (model minus resynthesis, paired); for each of ``GROUPS`` that there is its own ``wer``; ``real_time_factor``;
        ``peak_mb``; ``normaliser``; counts.

    Raises:
        TestSetError: the corpus leaves nothing to test on, or ``evaluate.testset`` is broken.
        NormaliserError: ``evaluate.spellings`` cannot be read.
    """
    rows = list(rows)
    settings = config.evaluate
    normaliser = Normaliser(settings.normaliser, settings.spellings)
    by_id = {row["id"]: row for row in rows}
    if settings.testset is not None:
        plans, dropped, by_id = plan_list(config, rows, texts)
    else:
        plans, dropped = plan_items(config, rows, texts)
    languages = {plan.id: plan.language for plan in plans}
    with ExitStack() as stack:
        if work is None:
            work = WorkFolder("evaluate", "0" * 16, stack.enter_context(TemporaryDirectory()))
        results, peak = make_waves(config, voice, plans, by_id, work, progress)
        heard = _listen(config, results, recogniser, work, progress)
        _count_all(results, heard, languages, normaliser)
        write_table(results, RESULTS, work.path / "results.parquet")
        waves = {name for row in results for name in (row["audio"], row["prompt"])}
        work.publish(out_dir, ["results.parquet", *sorted(waves)])
    metrics = summarise(results, settings.bootstrap, settings.seed)
    return {
        "kept": len(plans),
        "rejected": dropped,
        **metrics,
        "peak_mb": round(peak, 1),
        "normaliser": settings.normaliser,
        "testset": settings.testset or "corpus",
    }


def _listen(
    config: Params, results: Sequence[dict[str, Any]], recogniser: Listener | None, work: WorkFolder, progress: bool
) -> list[str]:
    """What the recogniser writes of each wave, in the order of ``results``."""
    heard: list[str] = []
    with tqdm(total=len(results), desc="recognise", unit="utt", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(results), _RECOGNISE):
            part, name = results[start : start + _RECOGNISE], f"heard-{start // _RECOGNISE:05d}.json"
            if not work.done(name):
                if recogniser is None:
                    from vall_e.evaluation.asr import Recogniser

                    recogniser = Recogniser(config.evaluate.recogniser)
                clips = [audio.load(work.path / row["audio"]) for row in part]
                found = recogniser.transcribe(clips, prompt=config.evaluate.asr_prompt, vad=False)
                write_text(work.path / name, json.dumps(list(found)))
            heard += json.loads((work.path / name).read_text(encoding="utf-8"))
            bar.update(len(part))
    return heard


def _count_all(
    results: Sequence[dict[str, Any]], heard: Sequence[str], languages: Mapping[str, str], normaliser: Normaliser
) -> None:
    """Adds hypothesis and error counts to every row, ``UNIT_edits`` without a cap. Phones are compared as the house
    says the words, whatever the normaliser: a phone of a digit that Whisper's wrote would be another one."""
    said: list[str] = []
    for row, text in zip(results, heard, strict=True):
        language = languages[row["id"]]
        given = row["text"] if normaliser.name == "spoken" else row["written"]
        reference, words = normaliser.words(given, text, language)
        row |= {"heard": text, "reference": " ".join(reference), "hypothesis": " ".join(words)}
        _count(row, "word", word_errors(reference, words))
        letters = ["".join(side) if normaliser.splits(language) else " ".join(side) for side in (reference, words)]
        _count(row, "char", char_errors(*([side] for side in letters)))
        row |= {"word_edits": _edits(reference, words), "char_edits": _edits(*letters)}
        said.append(" ".join(read_hypothesis(text, language, words_for_scoring(row["text"], language))))
    for language in sorted(set(languages.values())):
        part = [i for i, row in enumerate(results) if languages[row["id"]] == language]
        references = phonemize([normalize(results[i]["text"], language) for i in part], language, with_stress=False)
        hypotheses = phonemize([said[i] for i in part], language, with_stress=False)
        for i, reference, hypothesis in zip(part, references, hypotheses, strict=True):
            _count(results[i], "phone", phone_errors(reference, hypothesis))


def _count(row: dict[str, Any], unit: str, found: Errors) -> None:
    row[f"{unit}_errors"], row[f"{unit}_count"] = found.errors, found.count


def _edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    return sum(step.kind != "equal" for step in align(reference, hypothesis))


def rate_of(
    rows: Sequence[Mapping[str, Any]], unit: str, resamples: int, seed: int, of: str = "errors"
) -> dict[str, float | None] | None:
    """Corpus-level error rate of ``unit`` (word, char, phone) with its interval; None where nothing was to be said.

    Args:
        of: ``errors``, or ``edits`` for the rate without a cap.
    """
    counts = [row[f"{unit}_count"] for row in rows]
    if not sum(counts):
        return None
    return bootstrap_ratio([row[f"{unit}_{of}"] for row in rows], counts, resamples, seed).as_dict()


def summarise(results: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The metrics of RESULTS rows with ``word_edits`` and ``char_edits``, as ``evaluate`` returns them."""
    by_kind = {kind: sorted((r for r in results if r["kind"] == kind), key=lambda r: r["id"]) for kind in KINDS}
    metrics: dict[str, Any] = {
        name: {kind: rate_of(by_kind[kind], unit, resamples, seed) for kind in KINDS} for name, unit in RATES.items()
    }
    metrics |= {
        name: {kind: rate_of(by_kind[kind], unit, resamples, seed, "edits") for kind in KINDS}
        for name, unit in UNCAPPED.items()
    }
    model, copies = by_kind["model"], {r["id"]: r for r in by_kind["resynthesis"]}
    pairs = [(r["word_errors"] - copies[r["id"]]["word_errors"], r["word_count"]) for r in model if r["id"] in copies]
    paired = bootstrap_ratio(*zip(*pairs, strict=True), resamples, seed) if any(n for _, n in pairs) else None
    metrics["wer_over_codec"] = paired.as_dict() if paired else None
    for name, (column, value) in GROUPS.items():
        part = {kind: [r for r in by_kind[kind] if r[column] is value] for kind in KINDS}
        if part["model"]:
            metrics[name] = {
                "speakers": len({r["speaker"] for r in part["model"]}),
                "utterances": len(part["model"]),
                "wer": {kind: rate_of(part[kind], "word", resamples, seed) for kind in KINDS},
            }
    seconds = sum(r["seconds"] for r in model)
    compute = sum(r["compute_seconds"] for r in model)
    metrics["synthesis_seconds"] = compute
    metrics["audio_seconds"] = seconds
    metrics["real_time_factor"] = compute / seconds if seconds else None
    metrics["warnings"] = sum(r["warning"] is not None for r in model)
    return metrics
