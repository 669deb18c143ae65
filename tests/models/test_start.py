"""Weights to start from: a converted voice, or a text model's backbone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests import hf
from tests.tiny import build
from tests.training.test_run import make_project, params, run
from vall_e.backbones import huggingface
from vall_e.config import Params, TrainConfig
from vall_e.family import LoraConfig, ModelConfig
from vall_e.models.checkpoint import load_config
from vall_e.models.convert import convert
from vall_e.models.start import start_backbone
from vall_e.nn.convert import pool_heads
from vall_e.nn.weights import WeightsError
from vall_e.text.tokenizer import Tokenizer

STILL = {"lr": 1e-12, "muon_lr": 1e-12, "weight_decay": 0.0, "threads": 0}


def text_backbone(**changes: object) -> dict:
    return {"norm_eps": 1e-5, "rope": {"base": 500.0, "trained_length": 16}, "kv_heads": 2} | changes


def changed(settings: Params, **model: object) -> Params:
    return Params.model_validate(settings.model_dump() | {"model": settings.model.model_dump() | model})


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained voice in first/, whose heads are pooled in second/."""
    root = tmp_path_factory.mktemp("project")
    make_project(root)
    run(root, params(2))
    shutil.move(root / "models/voice", root / "first")
    convert(root / "first", root / "second", 1)
    return root


def test_training_starts_from_a_converted_voice(project: Path) -> None:
    """With rates of nothing the weights stay where they start."""
    settings = changed(params(1, init_from="second", **STILL), kv_heads=1)
    run(project, settings)
    start, end = (load_file(project / name / "model.safetensors") for name in ("second", "models/voice"))
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)
    config = load_config(project / "models/voice")
    assert config.lineage["voice_from"] == "second" and config.model.kv_heads == 1
    with pytest.raises(ValueError, match="the stage replaces .*models/voice"):
        run(project, changed(params(1, init_from="models/voice"), kv_heads=1))


def test_a_voice_of_other_shapes_phones_or_codec_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"k\.weight is 16 x 32 and 8 x 32 is needed.*vall-e model convert"):
        run(project, changed(params(1, init_from="first"), kv_heads=1))
    other = shutil.copytree(project / "first", tmp_path / "phones")
    Tokenizer(["a", "b", "x"]).save(other / "tokenizer.json")
    with pytest.raises(WeightsError, match=r"same phones \(  c d x\)"):
        run(project, params(1, init_from=str(other)))
    other = shutil.copytree(project / "first", tmp_path / "codec")
    (other / "codec/model.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match="another codec"):
        run(project, params(1, init_from=str(other)))
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        run(project, params(1, init_from="nowhere"))


def test_the_backbone_starts_from_a_text_model(project: Path) -> None:
    hf.save(hf.llama(), project / "text")
    run(project, changed(params(1, **STILL), **text_backbone(init_from="text")))
    weights = load_file(project / "models/voice/model.safetensors")
    theirs = huggingface.read_weights(project / "text")
    config = load_config(project / "models/voice")
    for ours, name in huggingface.tensor_names(config.model).items():
        torch.testing.assert_close(weights[f"backbone.{ours}"], theirs[name], atol=1e-6, rtol=0)
    assert config.model.init_from is None and config.lineage["backbone_from"] == "text"


def test_heads_are_kept_or_pooled(tmp_path: Path) -> None:
    theirs = hf.llama(num_key_value_heads=4)
    folder = hf.save(theirs, tmp_path / "text")
    for kv_heads in (4, 2, 1):
        backbone = build(**text_backbone(kv_heads=kv_heads)).backbone
        start_backbone(backbone, folder)
        want = theirs.model.layers[1].self_attn.k_proj.weight
        assert torch.equal(backbone.blocks[1].attention.k.weight, pool_heads(want, 4, kv_heads))


@pytest.mark.parametrize("changes, reason", [
    ({"ff_dim": 40}, "model.ff_dim is 40 and the checkpoint's is 48"),
    ({"layers": 3}, "model.layers is 3 and the checkpoint's is 2"),
    ({"norm_eps": 1e-6}, "model.norm_eps is 1e-06 and the checkpoint's is 1e-05"),
    ({"rope": {"base": 10.0, "trained_length": 16}}, "model.rope is base=10.0"),
    ({"kv_heads": 4}, "model.kv_heads is 4, which does not divide the checkpoint's 2"),
])  # fmt: skip
def test_other_sizes_are_named(tmp_path: Path, changes: dict, reason: str) -> None:
    backbone = build(**text_backbone(**changes)).backbone
    with pytest.raises(WeightsError, match=reason):
        start_backbone(backbone, hf.save(hf.llama(), tmp_path / "text"))


def test_experts_are_of_the_same_number_and_as_many_work(tmp_path: Path) -> None:
    folder = hf.save(hf.mixtral(), tmp_path / "text")
    mixtral = text_backbone(backbone="mixtral", experts={"count": 3, "active": 2})
    start_backbone(build(**mixtral).backbone, folder)
    for experts in ({"count": 4, "active": 2}, {"count": 3, "active": 1}):
        with pytest.raises(WeightsError, match=r"experts\.(count is 4|active is 1) and the checkpoint's is [32]"):
            start_backbone(build(**(mixtral | {"experts": experts})).backbone, folder)


def test_parameters_in_conflict_across_sections_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"train\.init_from"):
        Params(model=ModelConfig(lora=LoraConfig()))
    with pytest.raises(ValidationError, match="leaves the alignment head untrained"):
        Params(train=TrainConfig(alignment_weight=0.0))
    with pytest.raises(ValidationError, match="no gradients"):
        Params(model=ModelConfig(attention="sageattention"))
