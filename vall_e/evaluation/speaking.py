"""The test set as waves: prompt, what the model says, the codec's copy of the recording, the recording.

Waves are made in batches, into a folder of unfinished work: a batch is noted there when its waves are whole, so a run
that was killed goes on behind the last one noted. An item draws from its own seed: its waves are what they would have
been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

from vall_e import audio
from vall_e.config import Params
from vall_e.corpus.work import WorkFolder, write_text
from vall_e.decoding import SamplingConfig
from vall_e.evaluation.items import Item, load_item
from vall_e.evaluation.testset import Plan
from vall_e.memory import peak_mb

KINDS = ("model", "resynthesis", "recording")


def make_waves(
    config: Params,
    voice: Any,
    plans: Sequence[Plan],
    rows: Mapping[str, Mapping[str, Any]],
    work: WorkFolder,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], float]:
    """Write ``{model,resynthesis,recording,prompt}/ID.wav`` into ``work``.

    Args:
        config: sections evaluate, sampling and encode are read.
        voice: a ``generation.synthesize.Voice``.
        plans: the test items.
        rows: what the plans name: id → path, start, end.

    Returns:
        A row per wave, the columns of RESULTS without those of the recogniser, by id and kind; and the most memory
        that the process held behind a batch, MB (of the GPU where the voice is on one).
    """
    results: list[dict[str, Any]] = []
    peak = 0.0
    # Items of like length share a batch: the shortest does not wait for the longest.
    order = sorted(plans, key=lambda plan: (len(plan.text), plan.id))
    size = config.evaluate.batch_size
    with tqdm(total=len(order), desc="synthesise", unit="utt", mininterval=1.0, disable=not progress) as bar:
        for start in range(0, len(order), size):
            part, name = order[start : start + size], f"batch-{start // size:05d}.json"
            if not work.done(name):
                items = [load_item(plan, rows, config.encode, voice.sample_rate) for plan in part]
                made = [row for found in _speak_batch(voice, items, config.sampling, work.path) for row in found]
                note = json.dumps({"rows": made, "peak_mb": peak_mb(voice.device)})
                write_text(work.path / name, note)
            note = json.loads((work.path / name).read_text(encoding="utf-8"))
            results += note["rows"]
            peak = max(peak, note["peak_mb"])
            bar.update(len(part))
    return sorted(results, key=lambda row: (row["id"], KINDS.index(row["kind"]))), peak


def _speak_batch(
    voice: Any, items: Sequence[Item], sampling: SamplingConfig, folder: Path
) -> list[list[dict[str, Any]]]:
    rows = []
    for item, speech in zip(items, _speak(voice, items, sampling), strict=True):
        waves = {"model": speech.wav}
        if item.recording is not None:
            waves |= {"resynthesis": _codec_copy(voice, item.recording), "recording": item.recording}
        audio.save_wav(folder / "prompt" / f"{item.id}.wav", item.prompt, voice.sample_rate)
        rows.append([_row(item, kind, wav, speech, folder, voice.sample_rate) for kind, wav in waves.items()])
    return rows


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


def _codec_copy(voice: Any, recording: np.ndarray) -> np.ndarray:
    import torch

    wav = torch.from_numpy(recording)[None, None].to(voice.device)
    with torch.no_grad():
        copy = voice.codec.decode(voice.codec.encode(wav))
    return copy[0, 0, : recording.size].float().cpu().numpy()


def _row(item: Item, kind: str, wav: np.ndarray, speech: Any, folder: Path, rate: int) -> dict[str, Any]:
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
    audio.save_wav(folder / name, wav, rate)
    return {
        "id": item.id,
        "kind": kind,
        "speaker": item.speaker,
        "seen_speaker": item.seen_speaker,
        "seen_text": item.seen_text,
        "text": item.text,
        "written": item.written,
        "prompt_text": item.prompt_text or "",
        "audio": name,
        "prompt": f"prompt/{item.id}.wav",
        "seconds": seconds,
        "compute_seconds": float(speech.compute_seconds) if kind == "model" else 0.0,
        "warning": "; ".join(warnings) or None,
    }
