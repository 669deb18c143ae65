"""evaluate and score from end to end with a voice, a recogniser and an encoder that are known exactly."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.evaluation.corpora import RATE, row, tone, write_recordings
from tests.processes import exit_code
from tests.stages.test_pipeline_file import _closure
from tests.test_architecture import ROOT
from vall_e import audio
from vall_e.config import parse_params
from vall_e.corpus.schema import RESULTS, SCORES, read_rows
from vall_e.corpus.work import WorkFolder, code_of
from vall_e.evaluation.normalisers import Normaliser, read_hypothesis
from vall_e.evaluation.run import CODE, _count_all, evaluate, summarise
from vall_e.evaluation.score import score, speaker_centroids, spread
from vall_e.evaluation.speaking import KINDS
from vall_e.preparation import EncodeConfig


class Codec:
    """Halves the level, and pads to whole frames as a codec does."""

    def encode(self, wav: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(wav, (0, 100))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes / 2


class Voice:
    sample_rate = RATE
    codec = Codec()
    device = "cpu"

    def __init__(self) -> None:
        self.requests: list = []

    def speak_batch(self, requests: list, sampling: object) -> list[SimpleNamespace]:
        self.requests.append(requests)
        waves = [
            np.zeros(0, np.float32) if "silence" in r.text else tone(700, 0.1 * len(r.text.split())) for r in requests
        ]
        return [SimpleNamespace(wav=w, warnings=[], compute_seconds=0.05) for w in waves]


class Recogniser:
    """Hears 'yes' per 0.1 s, and notes what it was asked."""

    def __init__(self) -> None:
        self.prompts: set = set()

    def transcribe(self, clips: list, prompt: str | None = None, vad: bool = True) -> list[str]:
        self.prompts.add((prompt, vad))
        return ["Yes, " * round(wav.size / rate / 0.1) for wav, rate in clips]


@pytest.fixture
def corpus(tmp_path: Path) -> list[dict]:
    rows = []
    for speaker in "ab":
        for i, text in enumerate(("Yes yes yes!", "No no", "silence")):
            rows.append(row(f"{speaker}{i}", speaker, text, "test", 0.1 * len(text.split())))
        rows += [row(f"{speaker}9", speaker, "hello", "val", 1.0), row(f"{speaker}x", speaker, "train", "train", 1.0)]
    return write_recordings([r for r in rows if r["id"] != "bx"], tmp_path / "wavs")


CONFIG = parse_params(
    {
        "evaluate": {
            "utterances": 6,
            "batch_size": 4,
            "asr_prompt": "say yes",
            "prompt_seconds": [0.5, 1.5],
            "bootstrap": 50,
        },
        "encode": {"trim_db": None},
        "score": {"bootstrap": 50},
    }
)


def test_every_kind_is_spoken_recognised_counted_and_written(corpus: list[dict], tmp_path: Path) -> None:
    voice, recogniser = Voice(), Recogniser()
    metrics = evaluate(CONFIG, voice, corpus, {r["id"]: r["text"] for r in corpus}, tmp_path, recogniser=recogniser)
    results = read_rows(tmp_path / "results.parquet", RESULTS)
    assert [(r["id"], r["kind"]) for r in results] == [(f"{s}{i}", k) for s in "ab" for i in range(3) for k in KINDS]
    assert all((tmp_path / r["audio"]).is_file() and (tmp_path / r["prompt"]).is_file() for r in results)
    assert recogniser.prompts == {("say yes", False)}
    assert [len(batch) for batch in voice.requests] == [4, 2]
    by_key = {(r["id"], r["kind"]): r for r in results}
    # "yes yes yes" is right, "no no" wholly wrong, silence a word that is missing (model) or mistaken.
    assert (by_key["a0", "model"]["word_errors"], by_key["a0", "model"]["word_count"]) == (0, 3)
    assert (by_key["a1", "recording"]["word_errors"], by_key["a1", "recording"]["word_count"]) == (2, 2)
    assert by_key["a2", "model"]["warning"] == "empty" and by_key["a2", "model"]["seconds"] == 0
    assert by_key["a0", "resynthesis"]["hypothesis"] == "yes yes yes"
    assert by_key["a0", "model"]["phone_errors"] == 0 and by_key["a0", "model"]["phone_count"] == 9
    half, whole = (audio.load(tmp_path / k / "a0.wav")[0] for k in ("resynthesis", "recording"))
    assert half.size == whole.size
    np.testing.assert_allclose(half, whole / 2, atol=1e-4)
    assert metrics["wer"]["model"]["value"] == 6 / 12
    assert metrics["kept"] == 6 and metrics["warnings"] == 2
    assert metrics["real_time_factor"] == pytest.approx(6 * 0.05 / 1.0)
    assert metrics["seen_speakers"]["utterances"] == 3 and metrics["unseen_speakers"]["speakers"] == 1
    json.dumps(metrics, allow_nan=False)


def test_a_text_that_cannot_be_spoken_costs_only_itself(corpus: list[dict], tmp_path: Path) -> None:
    class Picky(Voice):
        def speak_batch(self, requests: list, sampling: object) -> list[SimpleNamespace]:
            if any(r.text == "no no" for r in requests):
                raise ValueError("unknown phone")
            return super().speak_batch(requests, sampling)

    metrics = evaluate(CONFIG, Picky(), corpus, {r["id"]: r["text"] for r in corpus}, tmp_path, recogniser=Recogniser())
    model = {r["id"]: r for r in read_rows(tmp_path / "results.parquet", RESULTS) if r["kind"] == "model"}
    assert model["a1"]["warning"] == "unknown phone; empty" and model["a0"]["warning"] is None
    assert model["a0"]["word_errors"] == 0 and metrics["warnings"] == 4


class Killed(Voice):
    def speak_batch(self, requests: list, sampling: object) -> list[SimpleNamespace]:
        if self.requests:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().speak_batch(requests, sampling)


def _work(folder: Path) -> WorkFolder:
    return WorkFolder("evaluate", "0123456789abcdef", folder / "work")


def _evaluate_until_killed(corpus: list[dict], texts: dict, folder: Path) -> None:
    evaluate(CONFIG, Killed(), corpus, texts, folder / "again", recogniser=Recogniser(), work=_work(folder))


def test_a_killed_evaluation_goes_on_behind_its_last_batch(corpus: list[dict], tmp_path: Path) -> None:
    texts = {r["id"]: r["text"] for r in corpus}
    assert exit_code(_evaluate_until_killed, corpus, texts, tmp_path) == -signal.SIGKILL
    assert not (tmp_path / "again").exists()

    class Deaf(Recogniser):
        def transcribe(self, clips: list, prompt: str | None = None, vad: bool = True) -> list[str]:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(CONFIG, Voice(), corpus, texts, tmp_path / "again", recogniser=Deaf(), work=_work(tmp_path))
    voice = Voice()
    evaluate(CONFIG, voice, corpus, texts, tmp_path / "again", recogniser=Recogniser(), work=_work(tmp_path))
    assert voice.requests == []  # the first batch by the process that was killed, the second by the deaf one
    evaluate(CONFIG, Voice(), corpus, texts, tmp_path / "once", recogniser=Recogniser())
    files = {p.relative_to(tmp_path / "once") for p in (tmp_path / "once").rglob("*.*")}
    assert files == {p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*")} and len(files) == 25
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "once" / file).read_bytes(), file
    assert not (tmp_path / "work").exists()


def test_unfinished_work_is_keyed_by_all_code_that_makes_it() -> None:
    keyed = [path.relative_to(ROOT).as_posix() for path in code_of(*CODE)]
    assert [file for file in keyed if not (ROOT / file).exists()] == []
    made_by = ("evaluation/run", "evaluation/asr", "generation/synthesize")
    code = set().union(*(_closure(ROOT / "vall_e" / f"{name}.py") for name in made_by))
    assert [file for file in sorted(code) if not any(file == k or file.startswith(f"{k}/") for k in keyed)] == []


def test_a_looping_recogniser_is_capped_beside_the_uncapped_rate() -> None:
    said = [{"id": "a", "text": "one two", "written": "one two"}]
    _count_all(said, ["one two one two one two one two"], {"a": "en-us"}, Normaliser("spoken"))
    (row,) = said
    assert (row["word_errors"], row["word_edits"], row["word_count"]) == (2, 6, 2)
    assert (row["char_errors"], row["char_edits"], row["char_count"]) == (7, 24, 7)


def test_letters_are_the_words_of_a_language_without_spaces() -> None:
    said = [{"id": "a", "text": "你好，世界。", "written": "你好，世界。"}]
    _count_all(said, ["你好世间"], {"a": "cmn"}, Normaliser("spoken"))
    (row,) = said
    assert (row["word_errors"], row["word_count"]) == (row["char_errors"], row["char_count"]) == (1, 4)
    assert (row["reference"], row["hypothesis"]) == ("你 好 世 界", "你 好 世 间")
    assert 0 < row["phone_errors"] < row["phone_count"]


def test_a_hypothesis_in_figures_is_read_the_nearer_way() -> None:
    assert read_hypothesis("739.", "en-us", ["seven", "three", "nine"]) == ["seven", "three", "nine"]
    assert read_hypothesis("12 books", "en-us", ["twelve", "books"]) == ["twelve", "books"]


def test_the_difference_to_the_codec_is_paired() -> None:
    rows = []
    for i in range(40):
        for kind, errors in (("model", i % 3 + 1), ("resynthesis", i % 3), ("recording", 0)):
            counts = {
                f"{u}_{w}": n
                for u in ("word", "char", "phone")
                for w, n in (("errors", errors), ("count", 4), ("edits", 2 * errors))
            }
            rows.append(
                {
                    "id": str(i),
                    "kind": kind,
                    "speaker": "a",
                    "seen_speaker": True,
                    "seen_text": i % 2 == 0,
                    "seconds": 1.0,
                    "compute_seconds": 0.5,
                    "warning": None,
                    **counts,
                }
            )
    found = summarise(rows, 200, 0)
    assert found["wer_over_codec"] == {"value": 0.25, "low": 0.25, "high": 0.25}
    assert found["wer_uncapped"]["model"]["value"] == 2 * found["wer"]["model"]["value"]
    assert found["wer"]["model"]["low"] < found["wer"]["model"]["value"]
    assert "unseen_speakers" not in found
    assert found["seen_texts"]["utterances"] == found["unseen_texts"]["utterances"] == 20
    assert found["seen_texts"]["wer"]["model"]["value"] != found["unseen_texts"]["wer"]["model"]["value"]


class Encoder:
    """The embedding is the dominant pitch as a direction: one of 16 bands of 100 Hz."""

    def embed(self, clips: list) -> np.ndarray:
        out = np.full((len(clips), 16), 0.01)
        for index, (wav, rate) in enumerate(clips):
            pitch = np.argmax(np.abs(np.fft.rfft(wav, 2 * rate))) / 2
            out[index, min(15, int(pitch // 100))] = 1.0
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


class Mos:
    def score(self, wav: np.ndarray, rate: int) -> float | None:
        return 3.0 if np.abs(wav).max() > 0.01 else None


def test_scores_name_the_nearest_voice_and_leave_silence_unjudged(corpus: list[dict], tmp_path: Path) -> None:
    evaluate(CONFIG, Voice(), corpus, {r["id"]: r["text"] for r in corpus}, tmp_path / "e", recogniser=Recogniser())
    metrics = score(CONFIG, tmp_path / "e", corpus, RATE, tmp_path / "s", encoder=Encoder(), judges={"dnsmos": Mos()})
    scores = {(r["id"], r["kind"]): r for r in read_rows(tmp_path / "s/scores.parquet", SCORES)}
    assert len(scores) == 18
    assert scores["b0", "recording"]["nearest"] == "b" and scores["b0", "recording"]["similarity"] > 0.99
    assert scores["a0", "model"]["similarity"] < 0.1
    assert scores["a2", "model"]["dnsmos"] is None and scores["a0", "model"]["dnsmos"] == 3.0
    # The codec only halves the level; the model says something else at another pitch.
    copy, model = scores["a0", "resynthesis"], scores["a0", "model"]
    assert copy["similarity_recording"] > 0.99 and copy["similarity_resynthesis"] is None
    assert model["similarity_recording"] < 0.1 and model["similarity_resynthesis"] < 0.1
    assert copy["mcd"] < 0.05 < 2.0 < model["mcd"] and scores["a0", "recording"]["mcd"] is None
    assert copy["duration_ratio"] == pytest.approx(1.0) and scores["a2", "model"]["mcd"] is None
    assert copy["f0_mean"] == pytest.approx(200, rel=0.01) and copy["voiced"] > 0.7
    assert {key for key, row in scores.items() if row["voiced"] is None} == {("a2", "model"), ("b2", "model")}
    assert metrics["unseen_speakers"]["similarity"]["recording"]["value"] > 0.99
    assert metrics["speaker_top1"]["recording"]["value"] == 1.0
    assert metrics["similarity_others"]["recording"]["value"] < 0.1
    matrix = json.loads((tmp_path / "s/matrix.json").read_text())
    assert matrix["speakers"] == matrix["centroids"] == ["a", "b"] and len(matrix["values"]) == 2
    json.dumps(metrics, allow_nan=False)


def test_one_speaker_has_no_others_and_dnsmos_may_be_off(corpus: list[dict], tmp_path: Path) -> None:
    alone = [r for r in corpus if r["speaker"] == "a"]
    evaluate(CONFIG, Voice(), alone, {r["id"]: r["text"] for r in alone}, tmp_path / "e", recogniser=Recogniser())
    config = parse_params(
        {"score": {"dnsmos": False, "bootstrap": 20, "acoustics": False}, "encode": {"trim_db": None}}
    )
    metrics = score(config, tmp_path / "e", alone, RATE, tmp_path / "s", encoder=Encoder())
    nothing = dict.fromkeys(KINDS)
    assert metrics["similarity_others"] == metrics["dnsmos"] == metrics["utmos"] == metrics["mcd"] == nothing
    assert all(math.isnan(r["similarity_others"]) for r in read_rows(tmp_path / "s/scores.parquet", SCORES))


def test_centroids_use_no_training_recording_and_join_short_clips(corpus: list[dict]) -> None:
    heard: list = []

    class Spy(Encoder):
        def embed(self, clips: list) -> np.ndarray:
            heard.extend(wav.size / rate for wav, rate in clips)
            return super().embed(clips)

    names, means = speaker_centroids(corpus, EncodeConfig(trim_db=None), Spy(), RATE)
    assert names == ["a", "b"] and means.shape == (2, 16)
    # Of each speaker 1.0 s val and 0.3 + 0.2 + 0.1 s test, joined to one clip; the training second is not there.
    assert heard == pytest.approx([1.6, 1.6], abs=0.01)


def test_spread_is_stable_under_order() -> None:
    ids = [f"i{n}" for n in range(50)]
    assert spread(ids, 10) == spread(reversed(ids), 10) and len(spread(ids, 10)) == 10
    assert spread(ids[:3], 10) == set(ids[:3])
