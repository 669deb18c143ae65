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
from vall_e.corpus.schema import CODES, read_rows, write_table
from vall_e.family import LoraConfig, ModelConfig
from vall_e.models.checkpoint import load_config, load_model
from vall_e.models.convert import convert
from vall_e.models.start import start_backbone
from vall_e.nn.convert import pool_heads
from vall_e.nn.weights import WeightsError
from vall_e.text.tokenizer import EOS, Tokenizer

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


def _corpus_with(root: Path, to: Path, phone: str) -> Path:
    """The project again, its tokenizer extended by ``phone``, which some utterances now have."""
    shutil.copytree(root, to, ignore=shutil.ignore_patterns(".work"))
    known = Tokenizer.load(to / "data/phonemize/tokenizer.json")
    known.extend([phone]).save(to / "data/phonemize/tokenizer.json")
    shard = to / "data/encode/shard-00000.parquet"
    rows = read_rows(shard, CODES)
    for row in rows[::3]:
        row["phones"] = [phone]
    write_table(rows, CODES, shard)
    return to


@pytest.mark.parametrize("tasks", [("tts",), ("tts", "stt", "un-phn")])
def test_a_language_is_added_to_a_voice(project: Path, tmp_path: Path, tasks: tuple[str, ...]) -> None:
    """Phones behind the known ids; all that was known stays, what is new begins as the mean of it."""
    root = _corpus_with(project, tmp_path / "new", "ø")
    first = project / "first"
    if len(tasks) > 1:
        run(project, changed(params(1), tasks=tasks))
        first = shutil.move(project / "models/voice", project / "written")
    run(root, changed(params(1, init_from=str(first), **STILL), tasks=tasks))
    old, new = (load_file(folder / "model.safetensors") for folder in (first, root / "models/voice"))
    known = len(Tokenizer.load(first / "tokenizer.json"))
    tables = ["embeddings.symbol.weight", "alignment.phone.weight"]
    tables += ["symbol_heads.phones.weight"] if len(tasks) > 1 else []
    for name in old:
        if name in tables:
            was, now = old[name], new[name]
            assert len(now) == len(was) + 1
            torch.testing.assert_close(now[:known], was[:known], atol=1e-6, rtol=0)
            torch.testing.assert_close(now[known], was[EOS + 1 : known].mean(0), atol=1e-6, rtol=0)
            torch.testing.assert_close(now[known + 1 :], was[known:], atol=1e-6, rtol=0)
        else:
            torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0)
    assert load_config(root / "models/voice").phones == known + 1


def test_new_phones_are_learned_and_a_frozen_table_of_them_is_refused(project: Path, tmp_path: Path) -> None:
    root = _corpus_with(project, tmp_path / "new", "ø")
    settings = params(2, init_from=str(project / "first"))
    with pytest.raises(ValueError, match=r"1 phones .* add embeddings\.symbol to train\.thaw"):
        run(root, changed(settings, lora={"rank": 2}))
    table = {"train": settings.train.model_dump() | {"thaw": ("embeddings.symbol",)}}
    run(root, changed(Params.model_validate(settings.model_dump() | table), lora={"rank": 2}))
    end = load_file(root / "models/voice/model.safetensors")["embeddings.symbol.weight"]
    start = load_file(project / "first/model.safetensors")["embeddings.symbol.weight"]
    known = len(Tokenizer.load(project / "first/tokenizer.json"))
    assert not torch.allclose(end[known], start[EOS + 1 : known].mean(0), atol=1e-6)


def test_language_tokens_are_added_behind_those_that_are_known(project: Path) -> None:
    run(project, changed(params(1), languages=("en-us",)))
    first = shutil.move(project / "models/voice", project / "one")
    run(project, changed(params(1, init_from="one", **STILL), languages=("en-us", "de")))
    old, new = (load_file(Path(f) / "model.safetensors") for f in (first, project / "models/voice"))
    old, new = old["embeddings.header.1.weight"], new["embeddings.header.1.weight"]
    torch.testing.assert_close(new, torch.cat((old, old[1:2])), atol=1e-6, rtol=0)
    with pytest.raises(WeightsError, match=r"must begin with them"):
        run(project, changed(params(1, init_from="one"), languages=("de", "en-us")))


def test_adapters_of_the_voice_before_are_folded_into_its_weights(project: Path) -> None:
    run(project, changed(params(2, init_from="first"), lora={"rank": 2}))
    shutil.move(project / "models/voice", project / "adapted")
    run(project, params(1, init_from="adapted", **STILL))
    voice, _ = load_model(project / "adapted")
    voice.merge_adapters()
    want, got = voice.state_dict(), load_file(project / "models/voice/model.safetensors")
    assert set(want) == set(got)
    assert all(torch.allclose(want[name], got[name], atol=1e-6) for name in want)
    assert load_config(project / "models/voice").model.lora is None


def test_from_many_heads_to_few_and_on(project: Path) -> None:
    """The chain of docs/training.md: train, convert to fewer key/value heads, go on from there."""
    figures = run(project, changed(params(4, init_from="second"), kv_heads=1))
    assert figures["train.loss"] > 0 and load_config(project / "models/voice").lineage["voice_from"] == "second"
    start, end = (load_file(project / name / "model.safetensors") for name in ("second", "models/voice"))
    name = "backbone.blocks.0.attention.k.weight"
    assert start[name].shape == end[name].shape and not torch.equal(start[name], end[name])


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
