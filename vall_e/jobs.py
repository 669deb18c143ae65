"""Speaking many texts: read jobs, check them, speak them in batches, one result each, whatever happens to the others.

A job is a line of a JSON Lines file: ``{"id", "text", "ref_audio", "ref_text"?, "seed"?, "continue_ref"?,
"language"?, "duration"?, "speed"?}``. A text may be of any length.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vall_e.decoding import SamplingConfig
    from vall_e.generation.speech import Request
    from vall_e.generation.synthesize import Voice

REQUIRED = {"id": str, "text": str, "ref_audio": str}
OPTIONAL = {"ref_text": str, "seed": int, "continue_ref": bool, "language": str, "duration": float, "speed": float}
KINDS = {str: "text", int: "a whole number", bool: "true or false", float: "a number"}


class JobError(ValueError):
    """A job cannot be done; the message says why and what would help."""


@dataclass(frozen=True)
class Job:
    """One text to speak.

    Attributes:
        ref_audio: a recording of the voice, any format and rate.
        ref_text: what the recording says.
        output: wave file to write.
        continue_ref: go on from the recording (needs ``ref_text``) instead of only imitating its voice.
        language: espeak-ng's name of the text's language; None for the voice's own.
        duration: seconds that the speech is to last; None lets the voice decide.
        speed: how fast to speak, 1 for the voice's own pace.
    """

    id: str
    text: str
    ref_audio: Path
    output: Path
    ref_text: str | None = None
    seed: int | None = None
    continue_ref: bool = False
    language: str | None = None
    duration: float | None = None
    speed: float = 1.0


@dataclass(frozen=True)
class Result:
    """What became of a job: a file and what ``Audio.as_dict`` tells of it, or an error."""

    id: str
    path: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return {"id": self.id, "error": self.error}
        return {"id": self.id, "path": self.path, **self.facts}


def read_jobs(path: Path, out_dir: Path) -> list[Job | Result]:
    """The jobs of a file in order; a line that is no job becomes its failed result.

    Args:
        path: JSON Lines; empty lines are passed over.
        out_dir: a job writes ``out_dir/{id}.wav``.

    Raises:
        OSError: the file cannot be read.
    """
    jobs: list[Job | Result] = []
    taken: set[Path] = set()
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()  # of bytes: U+2028 ends none
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"line {number}"
        try:
            raw = json.loads(line.decode("utf-8"))
            if isinstance(raw, dict) and isinstance(raw.get("id"), str) and raw["id"]:
                name = raw["id"]
            job = _job(raw, path.parent, out_dir)
            if job.output in taken:
                raise JobError(f"id {job.id!r} was used before: its file would be overwritten")
            taken.add(job.output)
            jobs.append(job)
        except UnicodeDecodeError as error:
            jobs.append(Result(name, error=f"{path} line {number} is not UTF-8 (byte {error.start}): convert the file"))
        except json.JSONDecodeError as error:
            jobs.append(Result(name, error=f"{path} line {number} is not JSON: {error}"))
        except (JobError, RecursionError) as error:
            jobs.append(Result(name, error=f"{path} line {number}: {error}"))
    return jobs


def _job(raw: Any, folder: Path, out_dir: Path) -> Job:
    if not isinstance(raw, dict):
        raise JobError(f"expected an object with {', '.join(REQUIRED)}, found {type(raw).__name__}")
    known = REQUIRED | OPTIONAL
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise JobError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    for key, kind in known.items():
        value = raw.get(key)
        if value is None and key in OPTIONAL:
            continue
        if value is None:
            raise JobError(f"{key!r} is missing")
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise JobError(f"{key!r} must be {KINDS[kind]}, found {value!r}")
    if not raw["text"].strip():
        raise JobError("'text' is empty")
    if raw.get("seed") is not None and not 0 <= raw["seed"] < 2**63:
        raise JobError(f"'seed' must be between 0 and 2^63 - 1, found {raw['seed']}")
    output = output_of(raw["id"], out_dir)
    return Job(
        raw["id"],
        raw["text"],
        _find(raw["ref_audio"], folder),
        output,
        raw.get("ref_text"),
        raw.get("seed"),
        bool(raw.get("continue_ref")),
        raw.get("language"),
        raw.get("duration"),
        1.0 if raw.get("speed") is None else raw["speed"],
    )


def output_of(name: str, out_dir: Path) -> Path:
    """``out_dir/{name}.wav``. Raises JobError for a name that is no file name inside ``out_dir``."""
    parts = name.replace("\\", "/").split("/")
    if any(part in {"", ".", ".."} for part in parts) or not name.isprintable() or ":" in parts[0]:
        raise JobError(f"id {name!r} is not a file name inside the output folder")
    path = out_dir / f"{name}.wav"
    if not path.resolve().is_relative_to(out_dir.resolve()):
        raise JobError(f"id {name!r} leads out of the output folder")
    return path


def _find(reference: str, folder: Path) -> Path:
    """A relative path is one beside the jobs file or, failing that, in the working directory."""
    path = Path(reference).expanduser()
    beside = folder / path
    return path if path.is_absolute() or not beside.exists() else beside


def speak(
    voice: Voice, jobs: Sequence[Job | Result], sampling: SamplingConfig, batch_size: int = 16
) -> Iterator[Result]:
    """Speak the jobs in batches and yield their results in order; failed results pass through.

    Args:
        sampling: how codes are drawn; its seed is that of jobs without one.
        batch_size: jobs spoken at once.
    """
    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        requests: list[tuple[Job, Request]] = []
        results: dict[int, Result] = {}
        for job in group:
            if isinstance(job, Result):
                results[id(job)] = job
                continue
            try:
                requests.append((job, _request(voice, job, sampling)))
            except (ValueError, OSError) as error:
                results[id(job)] = Result(job.id, error=str(error))
        for job, result in _speak_together(voice, requests, sampling):
            results[id(job)] = result
        yield from (results[id(job)] for job in group)


def _request(voice: Voice, job: Job, sampling: SamplingConfig) -> Request:
    from vall_e.generation.speech import Request, load_reference

    seed = sampling.seed if job.seed is None else job.seed
    prompt = load_reference(job.ref_audio, voice.sample_rate)
    return Request(
        text=job.text, prompt=prompt, prompt_text=job.ref_text or None, seed=seed, language=job.language,
        continue_prompt=job.continue_ref, duration=job.duration, speed=job.speed,
    )  # fmt: skip


def _speak_together(
    voice: Voice, requests: list[tuple[Job, Request]], sampling: SamplingConfig
) -> Iterator[tuple[Job, Result]]:
    """One batch; when it fails, each of its jobs alone, so that one bad job does not stop the others."""
    if not requests:
        return
    try:
        speeches = voice.speak_batch([request for _, request in requests], sampling)
    except Exception as error:  # whatever it is, it must not stop the other jobs
        if len(requests) == 1:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            yield requests[0][0], Result(requests[0][0].id, error=reason)
        else:
            for one in requests:
                yield from _speak_together(voice, [one], sampling)
        return
    for (job, _), speech in zip(requests, speeches, strict=True):
        try:
            yield job, Result(job.id, str(speech.save(job.output)), speech.as_dict())
        except (OSError, ValueError) as error:
            yield job, Result(job.id, error=str(error))


def is_model(folder: Path) -> bool:
    """The folder holds a whole voice: network, configuration and tokenizer."""
    return all((folder / name).is_file() for name in ("model.safetensors", "config.json", "tokenizer.json"))


def newest_model(models: Path) -> Path | None:
    """The voice below ``models`` whose network was written last; None where there is none."""
    found = [folder for folder in models.glob("*") if is_model(folder)] if models.is_dir() else []
    return max(found, key=lambda folder: ((folder / "model.safetensors").stat().st_mtime, folder.name), default=None)
