"""A codec whose levels have no order, from recordings to speech, and what would give them one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.codecs.small import Fsq
from tests.corpus.test_encode import Corpus, tone
from tests.tiny import model_config
from vall_e.config import Params, TrainConfig
from vall_e.corpus.schema import SIMILAR, write_table
from vall_e.decoding import SamplingConfig
from vall_e.generation.speech import Request
from vall_e.generation.synthesize import Voice
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.run import train

SAMPLING = SamplingConfig(candidates=1, max_seconds=0.3)


@pytest.fixture(autouse=True)
def fsq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the configuration names, the codec is ``Fsq``."""
    for module in ("corpus.encode", "training.run", "generation.loaded"):
        monkeypatch.setattr(f"vall_e.{module}.load_codec", lambda *_: Fsq())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before training leave."""
    folder = tmp_path_factory.mktemp("fsq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vall_e.corpus.encode.load_codec", lambda *_: Fsq())
        corpus = Corpus(folder, 8)
        corpus.run("data/encode")
    Fsq().save(folder / "models/codec")
    near = [{"id": row["id"], "neighbours": [], "scores": []} for row in corpus.rows]
    write_table(near, SIMILAR, folder / "data/similar/similar.parquet")
    Tokenizer(["w", "ʌ", "n", " "]).save(folder / "data/phonemize/tokenizer.json")
    return folder


def run(root: Path, out: Path, kind: str, model: dict | None = None, **settings: object) -> None:
    sizes = {
        "max_steps": 3, "checkpoint_every": 3, "batch_frames": 200, "prompt_seconds": (0.1, 0.2), "threads": 1,
        "precision": "32-true",
    }  # fmt: skip
    params = Params(
        model=model_config(kind, **(model or {})).model_dump(), train=TrainConfig(**(sizes | settings)),
        sampling=SAMPLING,
    )  # fmt: skip
    train(params, root, out / "voice", out / "train.csv", out / ".work")


@pytest.mark.parametrize("kind", ["v2-nar", "ar-depth", "ar+nar"])
def test_a_voice_of_a_codec_without_order_trains_and_speaks(kind: str, root: Path, tmp_path: Path) -> None:
    run(root, tmp_path, kind)
    voice = Voice.load(tmp_path / "voice", "cpu")
    assert voice.config.residual is False and voice.model.layout.residual is False
    speech = voice.speak_batch([Request(phones=["w", "ʌ", "n"], prompt=tone(0.3, 8000), seed=1)])[0]
    assert speech.codes.shape[0] == Fsq.levels and speech.codes.max(initial=0) < Fsq.codes
    assert speech.wav.shape == (speech.frames * Fsq.hop,) and np.isfinite(speech.wav).all()
    if kind == "v2-nar":
        ordered = SAMPLING.model_copy(update={"demask": SAMPLING.demask.model_copy(update={"order": "level"})})
        with pytest.raises(ValueError, match=r"demask\.order level goes by the order .* \(FSQ\): take free"):
            voice.speak_batch([Request(phones=["w"], prompt=tone(0.3, 8000))], ordered)


@pytest.mark.parametrize(("kind", "settings", "reason"), [
    ("v2-nar", {"mask_levels": "one"}, r"train\.mask_levels one goes by the order .* \(FSQ\): take all"),
    ("ar+nar", {"model": {"level_weights": "decreasing"}}, r"decreasing weights go by the order of levels"),
    ("ar-depth", {"level_factors": "normal"}, r"normal weights go by the order of levels"),
    ("ar+nar", {"model": {"sum_levels": "prompt"}}, r"model\.sum_levels prompt lets one level stand for a frame"),
])  # fmt: skip
def test_what_goes_by_an_order_is_refused_before_the_first_step(
    kind: str, settings: dict, reason: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        run(root, tmp_path, kind, **settings)
    assert not list(tmp_path.rglob("last.ckpt")) and not (tmp_path / "voice").exists()


def test_weights_that_are_given_one_a_level_stay_allowed(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path, "ar+nar", {"level_weights": (1.0, 2.0, 1.0)}, level_factors=(2.0, 1.0, 1.0), max_steps=1)


def test_a_codec_without_tables_leaves_the_models_as_they_are(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one with tables of scalars starts them: neighbouring values start alike."""
    started: list[torch.Tensor] = []
    monkeypatch.setattr("vall_e.training.run.fit", lambda _, model, *__: started.append(table(model)) or 1 / 0)

    def table(model: torch.nn.Module) -> torch.Tensor:
        return model.embeddings.code[1].weight.detach()[1 : Fsq.codes + 1].clone()

    for books in (Fsq().codebooks(), []):
        monkeypatch.setattr(Fsq, "codebooks", lambda _, books=books: books)
        with pytest.raises(ZeroDivisionError):
            run(root, tmp_path, "ar-depth")
    scalars, random = (torch.cdist(t, t)[0] for t in started)
    assert scalars[1] < scalars[2] < scalars[8] and torch.isfinite(random).all()
    assert torch.linalg.matrix_rank(started[0]) == Fsq.group < torch.linalg.matrix_rank(started[1])
