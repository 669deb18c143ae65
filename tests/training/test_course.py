"""A run that diverges goes back and slows down; one without memory takes batches in pieces; neither in silence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import LEVELS, build, of_task, rows, train_config
from tests.training.test_run import make_project, params, run
from tests.training.test_unfinished import killed
from vall_e.models.packing import Packed, pack
from vall_e.models.vall_e import VallE
from vall_e.regimen import RollbackConfig, TrainConfig
from vall_e.training import course
from vall_e.training.course import Course, CourseError, Diverged, Rollback
from vall_e.training.guard import Guard, Stop
from vall_e.training.memory import figures_of, is_memory_error, split
from vall_e.training.module import VallEModule

QUIET = {"text_dropout": 0.0, "input_mask": 0.0, "input_random": 0.0, "prompt_dropout": 0.0}


def _weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "models/voice/model.safetensors")


def _poison(
    monkeypatch: pytest.MonkeyPatch, step: int, times: int, by: float = math.nan, stop: int | None = None
) -> list:
    """Multiply the loss of optimiser step ``step`` (from 1), the first ``times`` times; die at step ``stop``."""
    plain, seen = VallEModule.training_step, []

    def training_step(self: VallEModule, batch: Packed, index: int) -> torch.Tensor:
        now = self.global_step + 1
        if stop is not None and now == stop and seen:
            raise OSError("killed")
        loss = plain(self, batch, index)
        if now == step and len(seen) < times:
            seen.append(now)
            return loss * by
        return loss

    monkeypatch.setattr(VallEModule, "training_step", training_step)
    return seen


@pytest.mark.parametrize("step", [2, 5])  # before the first checkpoint, and behind it
def test_a_poisoned_step_takes_the_run_back_with_lower_rates(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    make_project(tmp_path)
    _poison(monkeypatch, step, 1)
    figures = run(tmp_path, params(8, checkpoint_every=4))
    start = 4 if step == 5 else 0
    assert figures["rollbacks"] == 1
    said = capfd.readouterr().err
    assert f"step {step}: the loss is nan: back to the checkpoint of step {start}, rates times 0.5" in said
    curve = [line.split(",") for line in (tmp_path / "plots/train.csv").read_text().splitlines()[1:]]
    assert ["8", "train", "rollbacks", "1"] in curve
    assert all(math.isfinite(float(value)) for *_, value in curve)


def test_a_run_that_rolled_back_and_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plain", "whole", "killed"):
        make_project(tmp_path / name)
    run(tmp_path / "plain", params(8, checkpoint_every=2))
    with monkeypatch.context() as patch:
        _poison(patch, 5, 1)
        run(tmp_path / "whole", params(8, checkpoint_every=2))
    with monkeypatch.context() as patch:
        _poison(patch, 5, 1, stop=7)
        with pytest.raises(OSError, match="killed"):
            run(tmp_path / "killed", params(8, checkpoint_every=2))
    (file,) = tmp_path.glob("killed/.work/train-*/course.json")
    assert json.loads(file.read_text())["rollbacks"] == [{"step": 5, "start": 4, "why": "the loss is nan"}]
    assert run(tmp_path / "killed", params(8, checkpoint_every=2))["rollbacks"] == 1
    plain, whole, killed = (_weights(tmp_path / name) for name in ("plain", "whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not all(torch.equal(whole[name], plain[name]) for name in whole)  # the rates were lower


def test_a_step_that_is_always_poisoned_ends_the_run_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path)
    seen = _poison(monkeypatch, 5, 99)
    with pytest.raises(CourseError, match=r"step 5: the loss is nan again, after 2 rollbacks .*lower train.lr"):
        run(tmp_path, params(8, checkpoint_every=2, rollback={"tries": 2}))
    assert len(seen) == 3
    (file,) = tmp_path.glob(".work/train-*/course.json")
    assert [item["start"] for item in json.loads(file.read_text())["rollbacks"]] == [4, 2]  # the one before, then


def test_a_jump_of_the_loss_is_measured_against_the_median_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    make_project(tmp_path)
    _poison(monkeypatch, 18, 1, by=5.0)
    assert run(tmp_path, params(18, checkpoint_every=17, **QUIET))["rollbacks"] == 1
    assert "step 18: the loss is" in capfd.readouterr().err


def test_rates_are_lower_from_the_checkpoint_that_was_gone_back_to_and_not_before(tmp_path: Path) -> None:
    config = RollbackConfig(factor=0.5, tries=3)
    course = Course(tmp_path / "course.json", [Rollback(30, 20, "x"), Rollback(50, 40, "x")])
    assert [course.rate(step, config) for step in (0, 19, 20, 39, 40, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    course.roll_back(Diverged(45, "y"), 40, config)
    course.save()
    assert Course.load(course.path) == course and course.rate(40, config) == 0.125
    with pytest.raises(CourseError, match="step 46"):
        course.roll_back(Diverged(46, "y"), 40, config)


def small_machine(monkeypatch: pytest.MonkeyPatch, positions: int, *, training: bool = True) -> None:
    """A machine that holds so many positions of a batch in training, or in validation."""
    plain = VallE.loss

    def loss(self: VallE, packed: Packed, *args: object, **named: object) -> tuple:
        if self.training == training and packed.symbol.numel() > positions:
            raise torch.OutOfMemoryError(f"{packed.symbol.shape}")
        return plain(self, packed, *args, **named)

    monkeypatch.setattr(VallE, "loss", loss)


def test_a_batch_that_does_not_fit_is_taken_in_pieces_and_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    for name in ("large", "small"):
        make_project(tmp_path / name)
    settings = params(6, batch_frames=300, optimizer="adamw", **QUIET)
    assert run(tmp_path / "large", settings)["pieces"] == 1
    small_machine(monkeypatch, 260)
    figures = run(tmp_path / "small", settings)
    assert figures["pieces"] == 2
    assert "every batch is taken in 2 pieces from now on" in capfd.readouterr().err
    large, small = (_weights(tmp_path / name) for name in ("large", "small"))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=0, atol=2e-5)


def test_a_row_that_does_not_fit_alone_is_an_error_that_says_how_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path)
    small_machine(monkeypatch, 8)
    with pytest.raises(
        CourseError, match=r"one row of \d+ positions: shorten the longest \(train.max_response_seconds"
    ):
        run(tmp_path, params(4))


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "nar-len", "v2-ar", "v2-nar"])
@pytest.mark.parametrize("pieces", [2, 3, 16])
def test_gradients_of_pieces_add_up_to_those_of_the_batch(kind: str, pieces: int) -> None:
    """However unequal the rows are, and with more pieces than rows."""
    model = build(kind).train()
    samples = [sample for seed in range(2) for sample in rows(model.config, seed)]
    packed = pack(samples, model.layout)
    factors = {f"level{level}": 1.0 + level for level in range(LEVELS)} | {"digits": 0.2}
    options = {"label_smoothing": 0.1, "alignment_weight": 0.5, "factors": factors}
    model.loss(packed, **options)[0].backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    cut = split(packed, pieces)
    assert len(cut) == pieces
    for piece in cut:
        (model.loss(piece, **options, shares=piece.shares)[0] / pieces).backward()
    for name, parameter in model.named_parameters():
        if name in whole:
            torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_no_room_for_the_model_is_no_matter_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path)

    def on_fit_start(self: VallEModule) -> None:
        raise torch.OutOfMemoryError("the teacher moves to the GPU")

    monkeypatch.setattr(VallEModule, "on_fit_start", on_fit_start)
    with pytest.raises(CourseError, match=r"before the first batch: the model has [\d,]+ parameters"):
        run(tmp_path, params(4))
    (file,) = tmp_path.glob(".work/train-*/course.json")
    assert json.loads(file.read_text())["pieces"] == 1


def test_validation_that_does_not_fit_is_taken_in_pieces_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    for name in ("large", "small"):
        make_project(tmp_path / name)
    large = run(tmp_path / "large", params(2, batch_frames=300))
    small_machine(monkeypatch, 100, training=False)
    small = run(tmp_path / "small", params(2, batch_frames=300))
    said = capfd.readouterr().err
    assert "out of memory in validation with" in said and "its batches are taken in 4 pieces" in said
    assert small["pieces"] == 1 and "every batch" not in said
    figures = [name for name in large if name.startswith("val.")]
    assert len(figures) > 5 and {name: small[name] for name in figures} == pytest.approx(
        {name: large[name] for name in figures}, abs=2e-4
    )
    small_machine(monkeypatch, 8, training=False)
    with pytest.raises(CourseError, match=r"one row of \d+ positions"):
        run(tmp_path / "small", params(2, batch_frames=300))


@pytest.mark.parametrize("kind", ["ar-depth", "ar+nar", "nar-len", "v2-nar"])
def test_figures_of_pieces_are_those_of_the_batch(kind: str) -> None:
    model = build(kind)
    samples = [sample for seed in range(2) for sample in rows(model.config, seed)]
    packed = pack([*samples, *(of_task("tts", 5, response=n) for n in (3, 11))], model.layout)
    whole = figures_of(model, packed, 1)
    for pieces in (2, 3, len(packed.symbol)):
        found = figures_of(model, packed, pieces)
        assert {k: float(v) for k, v in found.items()} == pytest.approx(
            {k: float(v) for k, v in whole.items()}, abs=1e-4
        )


def test_a_process_that_the_oom_killer_ended_is_followed_by_one_with_smaller_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    make_project(tmp_path)
    killed(tmp_path, params(4), step=3)
    (file,) = tmp_path.glob(".work/train-*/course.json")
    kept = json.loads(file.read_text())
    assert kept["running"] is None  # it ended by itself
    file.write_text(json.dumps(kept | {"running": ["today", 3]}))
    monkeypatch.setattr(course, "oom_kills", lambda: ("today", 4))
    assert run(tmp_path, params(4))["pieces"] == 2
    assert "(OOM killer), or one beside it: every batch is taken in 2 pieces from now on" in capfd.readouterr().err


@pytest.mark.parametrize("before, now, pieces", [
    (("a", 3), ("a", 4), 2),
    (("a", 3), ("a", 3), 1),  # ended by somebody else
    (("a", 3), ("b", 4), 1),  # the machine began anew
    (None, ("a", 4), 1),
    (("a", 3), None, 1),
])  # fmt: skip
def test_only_what_the_system_counts_is_the_oom_killer(
    before: tuple | None, now: tuple | None, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "oom_kills", lambda: now)
    Course(tmp_path / "course.json", running=before).save()
    found = Course.load(tmp_path / "course.json")
    with found.under_way():
        assert found.pieces == pieces and Course.load(found.path) == found and found.running == now
    assert Course.load(found.path).running is None
    Course(found.path, pieces=course.MOST, running=("a", 3)).save()
    monkeypatch.setattr(course, "oom_kills", lambda: ("a", 4))
    with pytest.raises(CourseError, match="OOM killer"), Course.load(found.path).under_way():
        pass


def _looked_at(config: TrainConfig, losses: list[float]) -> None:
    """Show a guard these losses, one a step."""
    guard = Guard(config, Course(Path("course.json")), Stop())
    guard._pending = [torch.tensor([loss, 0.0]) for loss in losses]
    strategy = SimpleNamespace(reduce=lambda values, reduce_op: values)
    guard._look(SimpleNamespace(global_step=len(losses), strategy=strategy))


def test_batches_of_a_harder_task_are_no_jump_and_neither_is_a_new_stage() -> None:
    plain = train_config(max_steps=100)
    _looked_at(plain, [1.0, 1.0, 4.5, 1.0] * 20)
    with pytest.raises(Diverged, match=r"step 81: the loss is 6, 6.0 times the median"):
        _looked_at(plain, [1.0, 1.0, 4.5, 1.0] * 20 + [6.0])
    staged = train_config(max_steps=100, stages=[{"until": 40, "text_dropout": 0.5}])
    _looked_at(staged, [1.0] * 40 + [5.0] * 40)
    with pytest.raises(Diverged, match="step 41"):
        _looked_at(plain, [1.0] * 40 + [5.0] * 40)


def test_what_counts_as_out_of_memory() -> None:
    said = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
    assert all(map(is_memory_error, (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError(said))))
    for cublas in ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUDNN_STATUS_ALLOC_FAILED"):
        assert is_memory_error(RuntimeError(f"CUDA error: {cublas}"))
    assert is_memory_error(RuntimeError("std::bad_alloc")) and is_memory_error(
        RuntimeError("CUDA error: out of memory")
    )
    assert not any(map(is_memory_error, (RuntimeError("shape mismatch"), ValueError("not enough memory"))))
