"""The model: batching, causality, loss, starting tables, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.tiny import CODES, LEVELS, PHONES, build, masked, model_config, of_task, overfit, rows, sample
from vall_e.data.makers import MAKERS
from vall_e.decoding import SamplingConfig
from vall_e.family import KINDS, ModelConfig
from vall_e.models import losses
from vall_e.models.checkpoint import VoiceConfig, VoiceError, load_model, save_model
from vall_e.models.packing import IGNORE, Place, pack
from vall_e.preparation import CodecConfig, EncodeConfig
from vall_e.regimen import TrainConfig
from vall_e.tasks import TASKS
from vall_e.text.tokenizer import PAD

ALL = tuple(KINDS)


@pytest.mark.parametrize("kind", ALL)
def test_a_row_in_a_mixed_batch_equals_the_row_alone(kind: str) -> None:
    model = build(kind)
    samples = [*rows(model.config), *(replace(s, text=s.text[:2], spoken=None) for s in rows(model.config, 1))]
    together = model.hidden(pack(samples, model.layout))
    for i, s in enumerate(samples):
        alone = model.hidden(pack([s], model.layout))[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_future_frames_reach_parallel_outputs_and_never_causal_ones(kind: str) -> None:
    """And nothing of a parallel output reaches what is before it, which may serve every pass."""
    model = build(kind)
    for s in rows(model.config):
        packed = pack([s], model.layout)
        x = model.embeddings(packed).detach().requires_grad_()
        at = int(packed.response[0]) + 2
        model.backbone(x, packed.position, packed.mask())[0, at].sum().backward()
        future = x.grad[0, at + 1 :].abs().amax(-1)
        assert (future == 0).all() if s.mode == "ar" else (future > 0).all()
        if s.mode != "ar":
            x.grad = None
            model.backbone(x, packed.position, packed.mask())[0, at - 2].sum().backward()
            assert (x.grad[0, at - 1 :] == 0).all() and (x.grad[0, : at - 1].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("task", [task for task in MAKERS if TASKS[task].output != "codes"])
def test_what_is_written_never_sees_what_comes_after(task: str) -> None:
    model = build("ar+nar", tasks=("tts", task))
    packed = pack([of_task(task)], model.layout)
    x = model.embeddings(packed).detach().requires_grad_()
    start = int(packed.response[0])
    model.backbone(x, packed.position, packed.mask())[0, start].sum().backward()
    assert (x.grad[0, start + 1 :] == 0).all() and (x.grad[0, : start + 1].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_overfits_one_batch(kind: str) -> None:
    model = build(kind)
    _, figures = overfit(model, rows(model.config))
    levels = {"ar": {0}, "nar": {1, 2}}.get(kind, {0, 1, 2})
    assert {k: float(v) for k, v in figures.items() if "accuracy" in k} == {
        f"accuracy.{name}": 1.0 for name in ("tts", *(f"level{level}" for level in levels))
    }


@pytest.mark.parametrize("options", [
    {"code_heads": "one"}, {"tie_heads": True}, {"sum_levels": "off"}, {"timestep": True}, {"causal_size": 2},
    {"languages": ("en-us", "de"), "tones": 2},
])  # fmt: skip
def test_every_option_overfits_one_batch(options: dict) -> None:
    model = build("ar+nar-len", **options)
    samples = [replace(s, language=i % (1 + len(model.config.languages))) for i, s in enumerate(rows(model.config))]
    _, figures = overfit(model, samples)
    assert all(figures[f"accuracy.level{level}"] == 1 for level in range(LEVELS))


@pytest.mark.parametrize("kind", ["v2-ar", "v2-nar"])
def test_rows_that_ask_for_one_level_overfit_and_teach_no_other(kind: str) -> None:
    model = build(kind)
    samples = [replace(row, asked=level) for level in range(LEVELS) for row in rows(model.config)]
    targets = pack(samples, model.layout).target
    asked = {tuple(np.flatnonzero((row != IGNORE).any(-1).numpy())) for row in targets}
    assert asked == {(level,) for level in range(LEVELS)}
    model.loss(pack(samples[:1], model.layout))[0].backward()
    assert model.heads.heads[0].weight.grad.abs().max() > 0
    assert all(head.weight.grad is None or not head.weight.grad.any() for head in model.heads.heads[1:])
    model.zero_grad()
    _, figures = overfit(model, samples)
    assert all(figures[f"accuracy.level{level}"] == 1 for level in range(LEVELS))


@pytest.mark.parametrize("options", [{"codebook_mixing": "attention"}, {"code_heads": "one"}])
@pytest.mark.parametrize("kind", ["v2-ar", "v2-nar"])
def test_every_codebook_coder_overfits_one_batch(kind: str, options: dict) -> None:
    model = build(kind, **options)
    _, figures = overfit(model, rows(model.config))
    assert all(figures[f"accuracy.level{level}"] == 1 for level in range(LEVELS))


def test_every_task_has_a_head_as_wide_as_its_vocabulary_and_overfits() -> None:
    tasks = tuple(MAKERS)
    model = build("ar+nar", tasks=tasks)
    for task in tasks:
        vocabulary = TASKS[task].output
        if vocabulary != "codes":
            assert model.symbol_heads[vocabulary].out_features == model.layout.size(vocabulary)
    samples = [of_task(task, seed) for seed, task in enumerate(tasks)]
    _, figures = overfit(model, samples, 300)
    assert {name: float(v) for name, v in figures.items() if "accuracy" in name}.items() >= {
        "accuracy.phones": 1.0, "accuracy.chars": 1.0, "accuracy.digits": 1.0, "accuracy.level0": 1.0
    }.items()  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_a_gradient_reaches_every_parameter(kind: str) -> None:
    tasks = ("tts",) if kind == "nar" else ("tts", "stt", "phn", "un-phn", "len")
    model = build(kind, tasks=tasks).train()
    samples = [*rows(model.config), *(of_task(task) for task in tasks if task != "tts")]
    samples = [replace(s, language=1, tone=1) for s in samples]
    model.loss(pack(samples, model.layout), alignment_weight=1.0)[0].backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()}
    # level 0 is no output of nar, the levels above no output of ar; nobody draws a last level to go on from
    spare = {"nar": {"heads.heads.0.weight"}, "ar": {"heads.heads.1.weight", "heads.heads.2.weight"}}
    assert silent == spare.get(kind, set())


def test_every_weight_has_a_gradient_where_that_is_asked_for() -> None:
    model = build("ar+nar-len", tasks=("tts", "stt", "len")).train()
    packed, named = pack(rows(model.config)[:1], model.layout), dict(model.named_parameters())
    found = []
    for every in (False, True):
        model.zero_grad()
        loss, _ = model.loss(packed, every_weight=every)
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in named.items() if p.grad is not None}))
    (plain, some), (same, every) = found
    assert plain == same and set(some) < set(every) == set(named)
    for name, gradient in every.items():
        torch.testing.assert_close(gradient, some.get(name, torch.zeros_like(gradient)), rtol=0, atol=0)


def test_the_last_states_are_normalised_once_and_serve_codes_and_duration() -> None:
    model, calls = build("v2-nar"), []
    packed = pack(rows(model.config), model.layout)
    with torch.no_grad():
        hidden = model.hidden(packed)
        codes = model._predictions(hidden, packed).mean(hidden)
        duration = losses.of_duration(model.duration, hidden, packed)
        model.backbone.norm.register_forward_hook(lambda *_: calls.append(1))
        loss, figures = model.loss(packed)
    assert len(calls) == 1
    torch.testing.assert_close(loss, codes + duration)
    torch.testing.assert_close(figures["duration"], duration)
    assert codes > 0 and duration > 0


def test_figures_of_a_task_are_those_of_its_rows_alone() -> None:
    """Weighed by how much each level predicts, in a batch with others' rows as in one of its own."""
    model = build("ar+nar", tasks=("tts", "stt", "vc"))
    samples = {task: [of_task(task, seed, response=5 + seed) for seed in range(3)] for task in model.config.tasks}
    _, mixed = model.loss(pack([s for part in samples.values() for s in part], model.layout), 0.1)
    for task, part in samples.items():
        packed = pack(part, model.layout)
        _, alone = model.loss(packed, 0.1)
        for figure in ("loss", "accuracy"):
            torch.testing.assert_close(mixed[f"{figure}.{task}"], alone[f"{figure}.{task}"])
        counts = {f"level{level}": (packed.target[:, level] != IGNORE).sum() for level in range(LEVELS)}
        counts = {name: count for name, count in counts.items() if count} or {"phones": 1}
        want = sum(alone[f"loss.{name}"] * count for name, count in counts.items()) / sum(counts.values())
        torch.testing.assert_close(alone[f"loss.{task}"], want)
        assert {name for name in alone if name.startswith("loss")} == {f"loss.{name}" for name in (*counts, task)}


def test_level_factors_weigh_the_levels() -> None:
    model = build()
    packed = pack(rows(model.config), model.layout)
    _, figures = model.loss(packed)
    for factors in ((1.0, 1.0, 1.0), (4.0, 2.0, 1.0)):
        want = sum(f * figures[f"loss.level{i}"] for i, f in enumerate(factors)) / sum(factors)
        named = {f"level{i}": factor for i, factor in enumerate(factors)}
        torch.testing.assert_close(model.loss(packed, factors=named)[0], want)


def test_what_is_written_weighs_as_often_as_it_is_trained() -> None:
    """A sample in eight spells a length; where none speaks, what is written is all there is."""
    factors = TrainConfig().loss_factors(model_config("nar-len"), 2)
    assert factors == {"level0": 1.0, "level1": 1.0, "digits": 0.15}
    often = TrainConfig(task_weights={"len": 0.5}, level_factors=(2.0, 1.0))
    assert often.loss_factors(model_config("nar-len"), 2) == {"level0": 2.0, "level1": 1.0, "digits": 0.5}
    several = model_config("ar", tasks=("tts", "ns", "stt", "phn"))
    assert TrainConfig().loss_factors(several, 1) == {"level0": 1.0, "phones": 1.0}
    assert TrainConfig().loss_factors(model_config("ar", tasks=("stt",)), 1)["phones"] == 1.0
    model = build("nar-len")
    packed = pack([*rows(model.config), of_task("len", 0)], model.layout)
    _, figures = model.loss(packed)
    names = [*(f"level{level}" for level in range(LEVELS)), "digits"]
    want = sum(figures[f"loss.{name}"] * weight for name, weight in zip(names, (1, 1, 1, 0.15), strict=True)) / 3.15
    torch.testing.assert_close(model.loss(packed, factors={"digits": 0.15})[0], want)


@pytest.mark.parametrize(("options", "reason"), [
    ({"kind": "nar-len", "causal_size": 2}, "no such pass"),
    ({"kind": "ar-depth", "causal_size": 2}, "one level by level"),
    ({"kind": "ar", "timestep": True}, "demask"),
    ({"kind": "v2-ar", "tie_heads": True}, "tie_heads"),
    ({"kind": "nar", "tasks": ("tts", "stt")}, "only adds levels"),
    ({"kind": "nar", "alignment": True}, "set it to false"),
    ({"kind": "ar-depth", "level_weights": (1.0,)}, "level_weights"),
])  # fmt: skip
def test_what_cannot_work_is_refused_with_the_reason(options: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ModelConfig(**options)


def test_the_alignment_head_learns_where_in_the_text_a_frame_is_and_which_phone_stands_there() -> None:
    """Its losses are -log of the probability on the slots that may be spoken, and on the phones in them."""
    model, rng = build(), np.random.default_rng(0)
    samples = [sample(rng, 4, 3, 8), sample(rng, 5, 2, 9)]
    samples[0].text[1] = PAD  # the gap between the words of a corpus of single words
    packed = pack(samples, model.layout)
    before = model.loss(packed)[1]
    _, after = overfit(model, samples, 60, alignment_weight=1.0)
    assert before["alignment"] > 0.7 and after["alignment"] < 0.05
    assert before["phone"] > 1.0 and after["phone"] < 0.05
    state, behind = model.backbone.states(model.embeddings(packed), packed.position)
    text = packed.segment == Place.TEXT
    log_p = model.alignment(state, text)[0]
    at, (first, last) = int(packed.response[0]), packed.spoken[0]
    by_hand = [-log_p[t, first[t] : last[t] + 1].exp().sum().log() for t in range(at, at + 9)]
    torch.testing.assert_close(
        model.alignment.place_loss(state[:1], text[:1], packed.spoken[:1]), torch.stack(by_hand).mean()
    )
    shown = torch.nn.functional.rms_norm(behind[0], behind.shape[-1:])
    log_p = model.alignment.phone(shown).log_softmax(-1)
    phones = [set(packed.symbol[0, first[t] : last[t] + 1].tolist()) for t in range(at, at + 9)]
    by_hand = [-log_p[t, sorted(said)].exp().sum().log() for t, said in zip(range(at, at + 9), phones, strict=True)]
    got = model.alignment.phone_loss(behind[:1], packed.symbol[:1, : text.shape[1]], packed.spoken[:1])
    torch.testing.assert_close(got, torch.stack(by_hand).mean())
    log_p = model.alignment(state, text)[0]
    assert log_p[:, ~text[0]].exp().sum() == 0


@pytest.mark.parametrize("kind", ["nar-len", "ar+nar-len", "v2-nar"])
def test_frames_of_masked_rows_learn_where_they_are_too(kind: str) -> None:
    """What is masked and what is not: each frame at its own position, and nothing is asked behind the last."""
    model, rng = build(kind), np.random.default_rng(0)
    samples = [masked(rng, model.config, text=4, prompt=3, response=8), masked(rng, model.config, text=5, response=9)]
    packed = pack(samples, model.layout)
    start = int(packed.response[0]) + 1
    asked = packed.spoken[0, 0] >= 0
    assert asked.nonzero().flatten().tolist() == list(range(start, start + 8))
    assert packed.spoken[0, 0, start] == packed.spoken[0, 1, start] == 2  # behind the header and bos
    before = model.loss(packed)[1]["alignment"]
    _, after = overfit(model, samples, 60, alignment_weight=1.0)
    assert before > 0.7 and after["alignment"] < 0.05


def test_tables_start_from_codebooks_and_keep_their_distances() -> None:
    model, dim = build(dim=64), 16
    books = [torch.randn(CODES, dim, generator=torch.Generator().manual_seed(level)) for level in range(LEVELS)]
    model.start_from_codebooks(books)
    for level, book in enumerate(books):
        table = model.embeddings.code[level].weight.detach()
        prompt, response = table[1 : CODES + 1], table[CODES + 1 : 2 * CODES + 1]
        torch.testing.assert_close(prompt, response)
        correlation = torch.corrcoef(torch.stack((torch.pdist(book), torch.pdist(prompt))))[0, 1]
        assert correlation > 0.6
    assert model.embeddings.code[0].weight[0].abs().max() == 0


def _config(kind: str) -> VoiceConfig:
    return VoiceConfig(
        model=model_config(kind), levels=LEVELS, codes=CODES, phones=PHONES, codec=CodecConfig(), encode=EncodeConfig(),
        sampling=SamplingConfig(), language="en-us", with_stress=True, seconds_per_phone=0.1, prompt_seconds=2.0,
    )  # fmt: skip


def test_save_and_load_are_exact_and_damage_is_named(tmp_path: Path) -> None:
    model, config = build(), _config("ar-depth")
    save_model(tmp_path, model, config)
    again, read = load_model(tmp_path)
    assert read == config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(VoiceError, match=r"model\.safetensors"):
        load_model(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"levels"', '"lvls"'))
    with pytest.raises(VoiceError, match=r"config\.json .*(levels|lvls)"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="models/voice"):
        load_model(tmp_path / "nowhere")
