"""The model: batching, causality, loss, starting tables, saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import CODES, LEVELS, PHONES, build, model_config, sample
from vall_e.config import CodecConfig, EncodeConfig, SamplingConfig
from vall_e.models.checkpoint import VoiceConfig, VoiceError, load_model, save_model
from vall_e.models.packing import TEXT, pack

KINDS = ("ar-depth", "ar+nar")


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_a_mixed_batch_equals_the_row_alone(kind: str) -> None:
    model, rng = build(kind), np.random.default_rng(0)
    levels = (0, 0, 0) if kind == "ar-depth" else (0, 1, 2)
    samples = [sample(rng, 3 + i, 2 * i, 5 + i, level) for i, level in enumerate(levels)]
    together = model.hidden(pack(samples, model.layout))
    for i, s in enumerate(samples):
        alone = model.hidden(pack([s], model.layout))[0]
        torch.testing.assert_close(together[i, : s.length], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("level", "sees_future"), [(0, False), (1, True)])
def test_future_frames_reach_parallel_outputs_and_never_causal_ones(level: int, sees_future: bool) -> None:
    model, s = build("ar+nar"), sample(np.random.default_rng(0), level=level)
    packed = pack([s], model.layout)
    x = model.embed(packed.text, packed.segment, packed.code).detach().requires_grad_()
    at = int(packed.response[0]) + 2
    model.backbone(x, packed.position, packed.mask())[0, at].sum().backward()
    future = x.grad[0, at + 1 :].abs().amax(-1)
    assert (future > 0).all() if sees_future else (future == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_both_kinds_overfit_one_batch(kind: str) -> None:
    model, rng = build(kind).train(), np.random.default_rng(0)
    levels = (0, 0) if kind == "ar-depth" else (0, 1, 2)
    packed = pack([sample(rng, level=level) for level in levels], model.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        loss, figures = model.loss(packed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert all(figures[f"accuracy.{level}"] == 1 for level in range(LEVELS))


def test_a_gradient_reaches_every_parameter() -> None:
    for kind, levels in (("ar-depth", (0,)), ("ar+nar", (0, 1, 2))):
        model = build(kind).train()
        packed = pack([sample(np.random.default_rng(0), level=level) for level in levels], model.layout)
        model.loss(packed, alignment_weight=1.0)[0].backward()
        silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
        assert silent == []


def test_the_alignment_head_learns_where_in_the_text_a_frame_is() -> None:
    """Its loss is -log of the probability on the phones that may be spoken, and training brings it down."""
    model, rng = build().train(), np.random.default_rng(0)
    packed = pack([sample(rng, 4, 3, 8), sample(rng, 5, 2, 9)], model.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    found = []
    for _ in range(60):
        loss, figures = model.loss(packed, alignment_weight=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(figures["alignment"]))
    assert found[0] > 0.7 and found[-1] < 0.05
    state = next(model.backbone.states(model.embed(packed.text, packed.segment, packed.code), packed.position))
    text = packed.segment == TEXT
    log_p = model.alignment(state, text)[0]
    at, (first, last) = int(packed.response[0]), packed.spoken[0]
    by_hand = [-log_p[t, first[t] : last[t] + 1].exp().sum().log() for t in range(at, at + 9)]
    torch.testing.assert_close(
        model.alignment.loss(state[:1], text[:1], packed.spoken[:1]), torch.stack(by_hand).mean()
    )
    assert log_p[:, ~text[0]].exp().sum() == 0


def test_tables_start_from_codebooks_and_keep_their_distances() -> None:
    model, dim = build(dim=64), 16
    books = [torch.randn(CODES, dim, generator=torch.Generator().manual_seed(level)) for level in range(LEVELS)]
    model.start_from_codebooks(books)
    for level, book in enumerate(books):
        table = model.code[level].weight.detach()
        prompt, response = table[1 : CODES + 1], table[CODES + 1 : 2 * CODES + 1]
        torch.testing.assert_close(prompt, response)
        correlation = torch.corrcoef(torch.stack((torch.pdist(book), torch.pdist(prompt))))[0, 1]
        assert correlation > 0.6
    assert model.code[0].weight[0].abs().max() == 0


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
