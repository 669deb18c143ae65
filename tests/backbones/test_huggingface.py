"""Names, sizes and files of ``transformers``' layout, held against ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tests import hf
from tests.tiny import model_config
from vall_e.backbones import huggingface
from vall_e.backbones.base import build_backbone
from vall_e.family import RopeConfig
from vall_e.nn.weights import WeightsError, fill

ROPES = {
    "plain": None,
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family, kv_heads", [("llama", 4), ("llama", 2), ("llama", 1), ("mixtral", 2)])
def test_a_backbone_with_a_checkpoints_weights_equals_theirs(
    tmp_path: Path, family: str, kv_heads: int, rope: str
) -> None:
    """Also beyond the trained length, where dynamic positions stretch."""
    theirs = hf.FAMILIES[family](num_key_value_heads=kv_heads, rope_scaling=ROPES[rope])
    folder = hf.save(theirs, tmp_path / "llama")
    config = huggingface.our_config(huggingface.read_config(folder))
    assert (config.kv_heads, config.norm_eps, config.rope.base) == (kv_heads, 1e-5, 500.0)
    tensors = huggingface.read_weights(folder)
    ours = build_backbone(config).eval()
    fill(ours, {mine: tensors[name] for mine, name in huggingface.tensor_names(config).items()}, folder, "")
    for length in (9, 24):
        x, positions = torch.randn(2, length, 32), torch.arange(length).expand(2, length)
        with torch.no_grad():
            want = theirs.model(inputs_embeds=x, position_ids=positions).last_hidden_state
            torch.testing.assert_close(ours(x, positions), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scaling, factor", [("none", 1.0), ("linear", 2.0), ("dynamic", 4.0)])
def test_configurations_survive_the_way_there_and_back(tmp_path: Path, scaling: str, factor: float) -> None:
    rope = RopeConfig(base=500.0, scaling=scaling, factor=factor, trained_length=64)
    config = model_config(rope=rope, norm_eps=1e-5)
    theirs = huggingface.their_config(config, vocab_size=7)
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    read = AutoConfig.from_pretrained(tmp_path)
    assert (read.hidden_size, read.num_key_value_heads, read.rope_theta) == (config.dim, config.kv_heads, 500.0)
    again = huggingface.our_config(huggingface.read_config(tmp_path))
    kept = ("backbone", "rope", *huggingface.SIZES)
    assert {name: getattr(again, name) for name in kept} == {name: getattr(config, name) for name in kept}


def test_what_a_file_leaves_out_is_transformers_default(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8}')
    config = huggingface.our_config(huggingface.read_config(tmp_path))
    assert (config.layers, config.ff_dim, config.kv_heads, config.norm_eps) == (32, 11008, 8, 1e-6)


def test_rotary_settings_where_transformers_5_keeps_them(tmp_path: Path) -> None:
    raw = hf.SIZES | {
        "model_type": "llama",
        "rope_parameters": {"rope_theta": 77.0, "rope_type": "linear", "factor": 3.0},
    }
    raw.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    rope = huggingface.our_config(huggingface.read_config(tmp_path)).rope
    assert (rope.base, rope.scaling, rope.factor) == (77.0, "linear", 3.0)


@pytest.mark.parametrize("changes, reason", [
    ({"attention_bias": True}, "attention_bias = True is not built here"),
    ({"mlp_bias": True}, "mlp_bias = True"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"head_dim": 16}, "heads of width 16"),
    ({"num_key_value_heads": 3}, "not a multiple"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn' are not built here, only default, linear"),
    ({"model_type": "mixtral", "sliding_window": 8}, "mixtral with sliding_window = 8"),
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not built here, only llama"),
])  # fmt: skip
def test_what_is_not_built_here_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hf.SIZES | {"model_type": "llama"} | changes))
    with pytest.raises(WeightsError, match=reason):
        huggingface.our_config(huggingface.read_config(tmp_path))


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    model = hf.llama()
    one = huggingface.read_weights(hf.save(model, tmp_path / "one"))
    folder = hf.save(model, tmp_path / "many", max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    many = huggingface.read_weights(folder)
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    index = folder / huggingface.INDEX
    index.write_text(json.dumps({"weight_map": {"a": "../one/model.safetensors"}}))
    with pytest.raises(WeightsError, match="outside of its folder"):
        huggingface.read_weights(folder)


def test_pickles_damage_and_absence_are_told_apart(tmp_path: Path) -> None:
    folder = hf.save(hf.llama(), tmp_path / "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a whole safetensors file"):
        huggingface.read_weights(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        huggingface.read_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin.*run code.*safe_serialization"):
        huggingface.read_weights(folder)


def test_a_path_is_a_folder_or_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert huggingface.find(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="neither a folder nor the name of a repository"):
        huggingface.find(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder here.*out of reach"):
        huggingface.find("nobody/nothing")
