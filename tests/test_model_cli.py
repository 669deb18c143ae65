"""``vall-e model``: what it counts, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import hf
from tests.test_cli import make_voice
from vall_e.cli import main
from vall_e.models.checkpoint import load_config, load_model
from vall_e.models.text import TextModel
from vall_e.profiles import profile_files


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voice(tmp_path_factory.mktemp("voices") / "voice")  # 32 wide, 2 layers, 2 heads, 1 of keys


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = hf.save(hf.llama(num_key_value_heads=4), tmp_path_factory.mktemp("texts") / "llama")
    hf.save_tokenizer(folder)
    return folder


def model(*arguments: object) -> int:
    return main(["model", *map(str, arguments)])


def info(capsys: pytest.CaptureFixture, *arguments: object) -> dict:
    assert model("info", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_info_of_a_voice_counts_its_file(voice: Path, capsys: pytest.CaptureFixture) -> None:
    facts, weights = info(capsys, voice), load_file(voice / "model.safetensors")
    count = sum(t.numel() for t in weights.values())
    assert facts["parameters"] == sum(facts["parts"].values()) == count
    tables = sum(t.numel() for name, t in weights.items() if name.startswith("embeddings."))
    assert facts["parts"]["embeddings"] == tables
    assert facts["weight_bytes"]["fp32"] == 4 * count and facts["weight_bytes"]["bf16"] == 2 * count
    blocks = sum(t.numel() for name, t in weights.items() if ".blocks." in name and t.dim() > 1)
    matrices = sum(".blocks." in name and t.dim() > 1 for name, t in weights.items())
    assert facts["weight_bytes"]["ternary"] == 2 * (count - blocks) + blocks // 4 + 4 * matrices
    assert count < facts["weight_bytes"]["int8"] < facts["weight_bytes"]["bf16"]
    assert facts["cache"] == {"bytes_per_position": 2 * 2 * 16 * 4, "bytes_fixed": 0, "bytes_per_second": 256 * 50}
    assert facts["capabilities"]["rewind"] is True and facts["model"]["kv_heads"] == 1
    assert facts["residual"] is True
    assert model("info", voice) == 0
    shown = capsys.readouterr().out
    assert f"{count:,} parameters" in shown and "bytes per second: 12,800" in shown and "rewind" in shown
    assert "  residual = true" in shown


def test_the_cache_that_is_told_is_the_cache_that_is_used(voice: Path, capsys: pytest.CaptureFixture) -> None:
    loaded, _ = load_model(voice)
    cache = loaded.backbone.new_cache(3, 10, torch.float32, torch.device("cpu"))
    assert cache.bytes == 3 * 10 * info(capsys, voice)["cache"]["bytes_per_position"]


def test_info_of_a_text_checkpoint(text: Path, capsys: pytest.CaptureFixture) -> None:
    facts = info(capsys, text)
    assert facts["parameters"] == sum(t.numel() for t in load_file(text / "model.safetensors").values())
    assert facts["parts"].keys() == {"embedding", "backbone", "head"} and facts["vocabulary"] == hf.VOCABULARY
    assert facts["cache"] == {"bytes_per_position": 2 * 2 * 32 * 4, "bytes_fixed": 0}


def test_info_of_presets_and_profiles(project_root: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(project_root)
    names = profile_files(project_root)
    assert {"digits", "reference-220m", "tiny-valle", "tiny-depth"} <= names.keys()
    for name in names:
        facts = info(capsys, name)
        assert facts["preset"] == name and facts["parameters"] > 0
        if name.startswith("tiny-"):
            assert facts["parameters"] < 2_000_000
    reference = info(capsys, "reference-220m")
    assert 215e6 < reference["parameters"] < 235e6
    assert reference["cache"]["bytes_per_second"] == 2 * 12 * 16 * 64 * 4 * 75
    assert reference["codec"] == {"name": "encodec", "levels": 8, "codes": 1024, "frame_rate": 75.0}


def test_convert_a_voice(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Heads that are equal already are pooled without a loss; what goes with the voice goes along."""
    folder = make_voice(tmp_path / "full", kv_heads=2)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith(("attention.k.weight", "attention.v.weight")):
            tensor[16:] = tensor[:16]
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors")
    (folder / "run.json").write_text("{}")
    assert model("convert", folder, tmp_path / "pooled", "--kv-heads", 1) == 0
    assert "1 key/value heads of 2" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "pooled").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "codec"}
    config = load_config(tmp_path / "pooled")
    assert config.model.kv_heads == 1 and config.lineage["converted"]["kv_heads"] == [2, 1]
    (full, _), (pooled, _) = load_model(folder), load_model(tmp_path / "pooled")
    x, positions = torch.randn(2, 7, 32), torch.arange(7).expand(2, 7)
    torch.testing.assert_close(pooled.backbone(x, positions), full.backbone(x, positions))
    sizes = [m.backbone.new_cache(1, 8, torch.float32, torch.device("cpu")).bytes for m in (full, pooled)]
    assert sizes[0] == 2 * sizes[1]


def test_convert_a_text_checkpoint_that_transformers_then_loads(text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "pooled"
    assert model("convert", text, out, "--kv-heads", 2) == 0
    theirs, ours = AutoModelForCausalLM.from_pretrained(out).eval(), TextModel.load(out)
    assert theirs.config.num_key_value_heads == ours.config.kv_heads == 2
    ids = torch.randint(hf.VOCABULARY, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(out)("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize("kv_heads, reason", [(4, "it has 4 key/value heads: fewer"), (0, "fewer"), (3, "not divide")])
def test_conversions_that_cannot_be_leave_nothing(
    text: Path, tmp_path: Path, capsys, kv_heads: int, reason: str
) -> None:
    assert model("convert", text, tmp_path / "out", "--kv-heads", kv_heads) == 2
    assert reason in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    assert model("convert", text, tmp_path / "out", "--kv-heads", 2) == 2
    assert "is there already" in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []


def test_help_of_convert_says_how_to_train_on(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        model("convert", "--help")
    shown = capsys.readouterr().out
    assert "train.init_from" in shown and "2305.13245" in shown


def test_generate_writes_what_transformers_writes(text: Path, capsys: pytest.CaptureFixture) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(text).eval()
    want = theirs.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=8, pad_token_id=0)[0, 2:].tolist()
    assert model("generate", text, "--prompt", "w5 w6", "--max-new-tokens", 8, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ids"] == want
    assert found["text"].split() == [f"w{i}" for i in want if i != 2]
    drawn = []
    for seed in (1, 1, 2):
        assert model("generate", text, "--prompt", "w5", "--temperature", 2, "--top-k", 40, "--seed", seed) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("arguments, reason", [
    (["generate", "nowhere", "--prompt", "a"], "neither a folder nor the name of a repository"),
    (["generate", "TEXT", "--prompt", "a", "--top-p", "2"], "--top-p 2.0"),
    (["generate", "TEXT", "--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    (["generate", "TEXT", "--prompt", ""], "at least one id"),
    (["info", "nothing"], "no such folder, and of profiles there are"),
    (["info", "."], "no trained voice"),
    (["convert", ".", "out", "--kv-heads", "1"], "config.json is missing"),
])  # fmt: skip
def test_wrong_usage_exits_with_2(
    text: Path, tmp_path: Path, monkeypatch, capsys, arguments: list, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model(*(text if argument == "TEXT" else argument for argument in arguments)) == 2
    assert reason in capsys.readouterr().err


def test_pickled_text_weights_are_refused(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(text, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert model("generate", folder, "--prompt", "w5") == 2
    assert "run code when they are read" in capsys.readouterr().err
