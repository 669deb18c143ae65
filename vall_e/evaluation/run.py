"""Speak the test set and let a recogniser listen: error rates of the model, of the codec's copy, of the recordings.

Every test item becomes three waves that are judged alike: what the model says (``model``), the recording through the
codec and back (``resynthesis``, the best this codec could allow), and the ``recording`` itself (the best this
recogniser can do). A figure of the model means something only beside the other two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.schema import RESULTS, write_table
from vall_e.decoding import SamplingConfig
from vall_e.evaluation.error_rates import Errors, char_errors, phone_errors, word_errors
from vall_e.evaluation.intervals import bootstrap_ratio
from vall_e.evaluation.items import Item, load_item
from vall_e.evaluation.testset import Plan, plan_items
from vall_e.text.normalize import normalize, words_for_scoring
from vall_e.text.phonemes import phonemize

KINDS = ("model", "resynthesis", "recording")
RATES = {"wer": "word", "cer": "char", "per": "phone"}
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
) -> dict[str, Any]:
    """Synthesise, resynthesise, recognise, count.

    Args:
        config: all parameters; sections evaluate, sampling, encode, ingest and train.join are read.
        voice: a ``generation.synthesize.Voice``.
        rows: the manifest's rows.
        texts: manifest id → transcript, of the utterances that no stage rejected.
        out_dir: gets ``results.parquet`` (schema RESULTS) and ``{model,resynthesis,recording,prompt}/ID.wav``.
        progress: show bars on stderr.
        recogniser: by default the one that ``evaluate.recogniser`` names.

    Returns:
        ``wer``, ``cer``, ``per`` {kind: {value, low, high}}; ``wer_over_codec`` (model minus resynthesis, paired);
        ``seen_speakers`` and ``unseen_speakers`` with their own ``wer``; ``real_time_factor``; counts.

    Raises:
        TestSetError: the corpus leaves nothing to test on.
    """
    out_dir = Path(out_dir)
    rows = list(rows)
    plans, dropped = plan_items(config, rows, texts)
    results = _make_waves(config, voice, plans, {row["id"]: row["path"] for row in rows}, out_dir, progress)
    if recogniser is None:
        from vall_e.evaluation.asr import Recogniser

        recogniser = Recogniser(config.evaluate.recogniser)
    _recognise(config, results, {plan.id: plan.language for plan in plans}, recogniser, out_dir, progress)
    write_table(results, RESULTS, out_dir / "results.parquet")
    metrics = summarise(results, config.evaluate.bootstrap, config.evaluate.seed)
    return {"kept": len(plans), "rejected": dropped, **metrics}


def _make_waves(
    config: Params, voice: Any, plans: Sequence[Plan], paths: Mapping[str, str], out_dir: Path, progress: bool
) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    rate = voice.sample_rate
    # Items of like length share a batch: the shortest does not wait for the longest.
    order = sorted(plans, key=lambda plan: (len(plan.text), plan.id))
    size = config.evaluate.batch_size
    with tqdm(total=len(order), desc="synthesise", unit="utt", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(order), size):
            items = [load_item(plan, paths, config.encode, rate) for plan in order[start : start + size]]
            speeches = _speak(voice, items, config.sampling)
            for item, speech in zip(items, speeches, strict=True):
                waves = {"model": speech.wav, "resynthesis": _codec_copy(voice, item), "recording": item.recording}
                audio.save_wav(out_dir / "prompt" / f"{item.id}.wav", item.prompt, rate)
                for kind in KINDS:
                    results.append(_row(item, kind, waves[kind], speech, out_dir, rate))
                bar.update()
    return sorted(results, key=lambda row: (row["id"], KINDS.index(row["kind"])))


def _speak(voice: Any, items: Sequence[Item], sampling: SamplingConfig) -> list[Any]:
    """Speeches of ``items``. One that cannot be spoken (a sound that the model never saw) is silence with a warning."""
    from vall_e.generation.speech import Request

    requests = [
        Request(text=i.text, prompt=i.prompt, prompt_text=i.prompt_text, seed=i.seed, language=i.language)
        for i in items
    ]
    try:
        return voice.speak_batch(requests, sampling)
    except ValueError as error:
        if len(items) > 1:
            return [speech for item in items for speech in _speak(voice, [item], sampling)]
        return [SimpleNamespace(wav=np.zeros(0, np.float32), warnings=[str(error)], compute_seconds=0.0)]


def _codec_copy(voice: Any, item: Item) -> np.ndarray:
    import torch

    wav = torch.from_numpy(item.recording)[None, None].to(voice.device)
    with torch.no_grad():
        copy = voice.codec.decode(voice.codec.encode(wav))
    return copy[0, 0, : item.recording.size].float().cpu().numpy()


def _row(item: Item, kind: str, wav: np.ndarray, speech: Any, out_dir: Path, rate: int) -> dict[str, Any]:
    warnings = list(speech.warnings) if kind == "model" else []
    wav = np.asarray(wav, dtype=np.float32).reshape(-1)
    if not np.isfinite(wav).all():
        warnings.append("not finite")
        wav = np.nan_to_num(wav, posinf=0.0, neginf=0.0)
    seconds = wav.size / rate
    if not wav.size:
        warnings.append("empty")
        wav = np.zeros(rate // 20, dtype=np.float32)
    name = f"{kind}/{item.id}.wav"
    audio.save_wav(out_dir / name, wav, rate)
    return {
        "id": item.id,
        "kind": kind,
        "speaker": item.speaker,
        "seen_speaker": item.seen_speaker,
        "text": item.text,
        "prompt_text": item.prompt_text or "",
        "audio": name,
        "prompt": f"prompt/{item.id}.wav",
        "seconds": seconds,
        "compute_seconds": float(speech.compute_seconds) if kind == "model" else 0.0,
        "warning": "; ".join(warnings) or None,
    }


def _recognise(
    config: Params,
    results: list[dict[str, Any]],
    languages: Mapping[str, str],
    recogniser: Listener,
    out_dir: Path,
    progress: bool,
) -> None:
    """Adds hypothesis and error counts to every row."""
    with tqdm(total=len(results), desc="recognise", unit="utt", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(results), _RECOGNISE):
            part = results[start : start + _RECOGNISE]
            clips = [audio.load(out_dir / row["audio"]) for row in part]
            heard = recogniser.transcribe(clips, prompt=config.evaluate.asr_prompt, vad=False)
            for row, text in zip(part, heard, strict=True):
                reference = words_for_scoring(row["text"], languages[row["id"]])
                words = read_hypothesis(text, languages[row["id"]], reference)
                row["hypothesis"] = " ".join(words)
                _count(row, "word", word_errors(reference, words))
                _count(row, "char", char_errors(reference, words))
            bar.update(len(part))
    for language in sorted(set(languages.values())):
        part = [row for row in results if languages[row["id"]] == language]
        references = phonemize([normalize(row["text"], language) for row in part], language, with_stress=False)
        hypotheses = phonemize([row["hypothesis"] for row in part], language, with_stress=False)
        for row, reference, hypothesis in zip(part, references, hypotheses, strict=True):
            _count(row, "phone", phone_errors(reference, hypothesis))


def read_hypothesis(text: str, language: str, reference: Sequence[str]) -> list[str]:
    """The words of what a recogniser wrote.

    It may write "739" for "seven three nine" as well as for "seven hundred thirty-nine": the reading that is
    nearer to the reference counts, for all three kinds alike.
    """
    words = words_for_scoring(text, language)
    if not any(c.isdigit() for c in text):
        return words
    apart = words_for_scoring(text, language, digits_apart=True)
    return min((words, apart), key=lambda reading: word_errors(reference, reading).errors)


def _count(row: dict[str, Any], unit: str, found: Errors) -> None:
    row[f"{unit}_errors"], row[f"{unit}_count"] = found.errors, found.count


def rate_of(rows: Sequence[Mapping[str, Any]], unit: str, resamples: int, seed: int) -> dict[str, float] | None:
    """Corpus-level error rate of ``unit`` (word, char, phone) with its interval; None where nothing was to be said."""
    counts = [row[f"{unit}_count"] for row in rows]
    if not sum(counts):
        return None
    return bootstrap_ratio([row[f"{unit}_errors"] for row in rows], counts, resamples, seed).as_dict()


def summarise(results: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The metrics of RESULTS rows, as ``evaluate`` returns them."""
    by_kind = {kind: sorted((r for r in results if r["kind"] == kind), key=lambda r: r["id"]) for kind in KINDS}
    metrics: dict[str, Any] = {
        name: {kind: rate_of(by_kind[kind], unit, resamples, seed) for kind in KINDS} for name, unit in RATES.items()
    }
    model, copy = by_kind["model"], by_kind["resynthesis"]
    difference = [a["word_errors"] - b["word_errors"] for a, b in zip(model, copy, strict=True)]
    metrics["wer_over_codec"] = bootstrap_ratio(difference, [r["word_count"] for r in model], resamples, seed).as_dict()
    for name, seen in (("seen_speakers", True), ("unseen_speakers", False)):
        part = {kind: [r for r in by_kind[kind] if r["seen_speaker"] is seen] for kind in KINDS}
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
