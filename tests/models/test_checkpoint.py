"""Voices on disk: older versions are read, and what cannot be read is told with its file, key or tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import CODES, LEVELS, PHONES, build, model_config
from vall_e.decoding import SamplingConfig
from vall_e.models.checkpoint import MIGRATIONS, VERSION, VoiceConfig, VoiceError, load_config, load_model, save_model
from vall_e.preparation import CodecConfig, EncodeConfig

VERSION_1 = {  # as the first voices were written
    "version": 1,
    "model": {
        "kind": "ar-depth", "backbone": "llama", "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff_dim": 48,
        "dropout": 0.0, "rope_base": 777.0, "positions": "segment", "codebook_init": True, "depth_dim": 32,
        "depth_layers": 1, "alignment": True, "level_weights": None,
    },
    "levels": LEVELS, "codes": CODES, "phones": PHONES,
    "codec": {"name": "mel"}, "encode": {}, "sampling": {"candidates": 2, "temperature": 0.6, "top_k": 9},
    "language": "en-us", "with_stress": True, "words_apart": False, "seconds_per_phone": 0.1, "prompt_seconds": 2.0,
    "lineage": {"profile": "demo"},
}  # fmt: skip


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    config = VoiceConfig(
        model=model_config(), levels=LEVELS, codes=CODES, phones=PHONES, codec=CodecConfig(), encode=EncodeConfig(),
        sampling=SamplingConfig(), language="en-us", with_stress=True, seconds_per_phone=0.1, prompt_seconds=2.0,
    )  # fmt: skip
    save_model(tmp_path, build(), config)
    return tmp_path


def rewrite(folder: Path, raw: object) -> None:
    (folder / "config.json").write_text(json.dumps(raw))


def test_a_voice_of_version_1_is_read_as_it_was_meant(voice: Path) -> None:
    rewrite(voice, VERSION_1)
    model, config = load_model(voice)
    assert (config.version, config.model.rope.base, config.model.dim) == (VERSION, 777.0, 32)
    assert config.sampling == SamplingConfig(ar={"temperature": 0.6, "top_k": 9}, candidates=2)
    assert config.lineage == {"profile": "demo"}
    assert model.backbone.config.rope.base == 777.0
    assert set(MIGRATIONS) == set(range(1, VERSION))


def test_a_voice_of_version_2_had_a_language_token_without_a_name(voice: Path) -> None:
    raw = json.loads((voice / "config.json").read_text())
    rewrite(voice, raw | {"version": 2, "model": raw["model"] | {"languages": 1}})
    model, config = load_model(voice)
    assert config.model.languages == () and model.embeddings.header[1].num_embeddings == 2
    rewrite(voice, raw | {"version": 2, "model": raw["model"] | {"languages": 2}})
    assert len(load_config(voice).model.languages) == 2


def test_a_voice_of_version_3_had_the_settings_of_all_passes_beside_each_other(voice: Path) -> None:
    raw = json.loads((voice / "config.json").read_text())
    flat = {"temperature": 0.6, "top_k": 9, "top_p": 0.5, "repetition_penalty": 1.2, "repetition_window": 7}
    rewrite(voice, raw | {"version": 3, "sampling": flat | {"nar_temperature": 0.3, "guidance": 0.0}})
    assert load_config(voice).sampling == SamplingConfig(ar=flat, nar={"temperature": 0.3}, guidance=0.0)
    rewrite(voice, raw | {"version": 3, "sampling": {}})
    assert load_config(voice).sampling == SamplingConfig()


def test_a_voice_of_version_4_told_how_many_processes_encode(voice: Path) -> None:
    raw = json.loads((voice / "config.json").read_text())
    rewrite(voice, raw | {"version": 4, "encode": raw["encode"] | {"workers": 3}})
    assert load_config(voice).model_dump(mode="json") == raw


def test_a_voice_of_version_5_did_not_read_phones_off_its_frames(voice: Path) -> None:
    raw, path = json.loads((voice / "config.json").read_text()), voice / "model.safetensors"
    rewrite(voice, raw | {"version": 5})
    weights = load_file(path)
    del weights["alignment.phone.weight"]
    save_file(weights, path)
    model, _ = load_model(voice)
    assert model.alignment.phone.weight.shape == (PHONES, raw["model"]["dim"])
    assert model.alignment.phone.weight.abs().max() == 0


def test_what_is_written_is_of_this_version(voice: Path) -> None:
    raw = json.loads((voice / "config.json").read_text())
    assert raw["version"] == VERSION and load_config(voice).model_dump(mode="json") == raw


@pytest.mark.parametrize("change, reason", [
    ({"version": VERSION + 1}, rf"is of version {VERSION + 1}, and this program reads up to {VERSION}: "),
    ({"version": None}, 'no voice: it has no "version"'),
    ({"colour": "red"}, "colour: unknown key: remove it, or use the version"),
    ({"model": {"dim": 32, "rope_base": 1.0}}, r"model\.rope_base: unknown key"),
    ({"levels": 0}, "levels: Input should be greater than 0"),
    ({"model": {"dim": 30, "heads": 4}}, r"model: model\.dim 30 is not a multiple"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_read_names_file_and_key(voice: Path, change: dict, reason: str) -> None:
    rewrite(voice, json.loads((voice / "config.json").read_text()) | change)
    with pytest.raises(VoiceError, match=rf"config\.json .*{reason}"):
        load_config(voice)


def test_files_that_are_no_configuration_are_told(voice: Path) -> None:
    for text in ("[]", '"a"', "{", "3"):
        (voice / "config.json").write_text(text)
        with pytest.raises(VoiceError, match=r"config\.json is (no voice|not readable JSON)"):
            load_config(voice)


def test_tensors_that_do_not_fit_are_named_with_both_shapes(voice: Path) -> None:
    path = voice / "model.safetensors"
    weights = load_file(path)
    weights["backbone.norm.weight"] = torch.ones(31)
    del weights["embeddings.symbol.weight"]
    weights["novel.weight"] = torch.ones(1)
    save_file(weights, path)
    with pytest.raises(VoiceError) as error:
        load_model(voice)
    for part in (
        "model.safetensors",
        "embeddings.symbol.weight is missing",
        "novel.weight is unknown",
        "is 31 and 32 is needed",
    ):
        assert part in str(error.value)
    assert "copy the whole folder" in str(error.value)


def test_many_misfits_are_counted_not_listed(voice: Path) -> None:
    save_file({"a": torch.ones(1)}, voice / "model.safetensors")
    with pytest.raises(VoiceError, match=r"and \d+ more\.") as error:
        load_model(voice)
    assert len(str(error.value)) < 600


def test_pickles_are_refused_and_say_how_to_convert(voice: Path) -> None:
    (voice / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="run the train stage again"):
        load_model(voice)
    torch.save(build().state_dict(), voice / "model.pt")
    with pytest.raises(VoiceError, match=r"model\.pt.*run code when they are read.*save_file"):
        load_model(voice)
