"""A student learns what its teacher thinks, and nothing of what does not fit."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from tests.tiny import LEVELS, build, of_task, overfit, rows
from tests.training.test_run import make_project, params, run
from vall_e.models.checkpoint import load_model
from vall_e.models.packing import IGNORE, pack
from vall_e.text.tokenizer import Tokenizer
from vall_e.training.distill import Teacher
from vall_e.training.module import VallEModule
from vall_e.training.unfinished import work_folder


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "v2-nar"])
def test_a_teacher_that_is_the_student_has_nothing_to_say(kind: str) -> None:
    student = build(kind, alignment=False)
    packed = pack(rows(student.config), student.layout)
    loss, figures = student.loss(packed, guide=Teacher(deepcopy(student), 1.0, 2.0)(packed))
    loss = loss - figures.get("duration", 0.0)
    assert float(figures["distill"]) == pytest.approx(0.0, abs=1e-6) and float(loss) == pytest.approx(0.0, abs=1e-5)


def test_the_divergence_is_that_of_the_definition_where_something_is_predicted() -> None:
    student, teacher = build("ar-depth", seed=0, alignment=False), build("ar-depth", seed=1, dim=16, layers=1)
    packed = pack([*rows(student.config), of_task("tts", 3, response=9)], student.layout)
    weight, t = 0.3, 2.0
    loss, figures = student.loss(packed, guide=Teacher(teacher, weight, t)(packed))
    plain, _ = student.loss(packed)
    ours, theirs, by_hand = student.logits(packed), teacher.logits(packed), []
    wanted = packed.target.transpose(1, 2).flatten(0, 1)
    wanted = wanted[(wanted != IGNORE).any(1)]
    for level in range(LEVELS):
        known = wanted[:, level] != IGNORE
        p = (theirs[f"level{level}"][: len(wanted)][known] / t).softmax(-1)
        q = (ours[f"level{level}"][: len(wanted)][known] / t).softmax(-1)
        by_hand.append((p * (p / q).log()).sum(-1).mean())
    torch.testing.assert_close(figures["distill"], torch.stack(by_hand).mean())
    torch.testing.assert_close(loss, (1 - weight) * plain + weight * t * t * figures["distill"])
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_teacher_is_no_part_of_what_is_trained() -> None:
    student, teacher = build(), Teacher(build(seed=1), 0.5, 1.0)
    module = VallEModule(student, params().train, teacher)
    assert {f"model.{name}" for name in student.state_dict()} == set(module.state_dict())
    assert deepcopy(module).teacher is teacher and not teacher.model.training


def test_a_student_is_nearer_to_a_teacher_that_it_learned_from() -> None:
    """On rows that nobody trained on, where one-hot targets say nothing of what the teacher makes of them."""
    teacher = build("ar-depth", seed=1, alignment=False)
    known, fresh = ([of_task("tts", seed) for seed in part] for part in (range(6), range(50, 56)))
    overfit(teacher, known, 60)
    batch, other = pack(known, teacher.layout), pack(fresh, teacher.layout)

    def distance(weight: float) -> float:
        student = build("ar-depth", seed=2, dim=16, alignment=False).train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
        guide = Teacher(teacher, weight, 1.0)(batch)
        for _ in range(120):
            loss = student.loss(batch, guide=guide)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        guide = Teacher(teacher, 1.0, 1.0)
        with torch.no_grad():
            return float(student.eval().loss(other, guide=guide(other))[1]["distill"])

    assert distance(1.0) < 0.8 * distance(0.0)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained voice in teacher/."""
    root = tmp_path_factory.mktemp("distill")
    threads = torch.get_num_threads()
    make_project(root)
    run(root, params(2))
    torch.set_num_threads(threads)
    (root / "models/voice").rename(root / "teacher")
    return root


def test_the_stage_trains_a_smaller_voice_from_a_teacher(project: Path) -> None:
    before = load_model(project / "teacher")[0].state_dict()
    figures = run(project, params(2, {"layers": 1, "dim": 16}, distill={"voice": "teacher"}))
    assert figures["train.distill"] > 0
    voice, config = load_model(project / "models/voice")
    assert voice.config.dim == 16 and config.lineage["taught_by"] == "teacher"
    after = load_model(project / "teacher")[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_teacher_is_another_training(project: Path) -> None:
    """Unfinished work is keyed by the teacher's bytes: it does not go on with another one's."""
    shutil.copytree(project / "teacher", project / "second")
    config = params(2, distill={"voice": "second"})
    first, again = (work_folder(config, project, project / ".work").key for _ in range(2))
    (project / "second/note.txt").write_text("another\n")
    assert first == again != work_folder(config, project, project / ".work").key


@pytest.mark.parametrize(("model", "voice", "reason"), [
    ({"tasks": ("tts", "stt")}, "teacher", r"it has not learned stt \(model\.tasks\)"),
    ({"kind": "ar+nar"}, "teacher", r"model\.kind is ar\+nar, and the teacher's ar-depth has not all of its passes"),
    ({"positions": "sequence"}, "teacher", r"model\.positions is sequence and the teacher's is segment"),
    ({}, "models/voice", "copy that voice"),
    ({}, "nowhere", "nowhere"),
    ({}, "phones", "its phones are others"),
    ({}, "codec", "it speaks through another codec"),
])  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused(model: dict, voice: str, reason: str, project: Path) -> None:
    if voice in ("phones", "codec"):
        shutil.copytree(project / "teacher", project / voice)
        if voice == "phones":
            Tokenizer(["a", "b", "c", "x", " "]).save(project / voice / "tokenizer.json")
        else:
            (project / voice / "codec/model.safetensors").write_bytes(b"other")
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        run(project, params(2, model, distill={"voice": voice}))
