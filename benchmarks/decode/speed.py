"""Figures of speed: the cache, ``transformers``, the memory's bandwidth, long pasts. Each function is one key."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.decode import quality
from benchmarks.decode.bench import Bench, Size
from benchmarks.decode.peers import Peer
from benchmarks.decode.steps import Stepper, run
from benchmarks.decode.timing import ReadBandwidth, interleaved, median_ratio, seconds
from vall_e.decoding import FORMATS
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.draw import draw, gumbel

POINTS = 4  # lengths at which a forward without a cache is timed


def longer(prompt: Sample, frames: int, codes: int) -> Sample:
    """``prompt`` with a response of ``frames`` random codes to go on from."""
    return replace(prompt, response=np.random.default_rng(0).integers(codes, size=(1, frames)))


def cached_over_uncached(bench: Bench) -> float:
    """Tokens a second of decoding ``frames`` frames over recomputing the whole sequence at each step, the reference.

    The recomputation is timed at some lengths on the way (whole forward, head at the last position, draw) and
    integrated over all steps by trapezoids: at 750 frames a whole run would take half an hour. Target: at least 20.
    The tiny model, whose cached steps are calls more than arithmetic, stands beside it.
    """
    ratios = {size: _cached_over_uncached(bench, size) for size in ("tiny", "ref")}
    bench.details["cached_over_uncached"] = ratios
    return ratios["ref"]["ratio"]


def _cached_over_uncached(bench: Bench, size: Size) -> dict[str, Any]:
    model, options = bench.model(size), bench.options
    prompt, n = bench.prompts(1)[0], options.codes
    lengths = np.linspace(0, options.frames - 1, POINTS).round().astype(int)
    packed = [pack([longer(prompt, int(length), n)], model.layout) for length in lengths]
    found: list[float] = []
    noise = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def forward(row: Any) -> None:
        logits = model.heads(model.hidden(row)[:, -1], 0, [])
        draw(logits, gumbel(tuple(logits.shape), noise))

    def uncached() -> None:
        """Adds the seconds that all steps would take to ``found``."""
        at = [seconds(lambda row=row: forward(row)) for row in packed]
        found.append(float(np.trapezoid(at, lengths) * options.frames / max(1, options.frames - 1)))

    cached, _ = interleaved(options.pairs, lambda: run(model, [prompt], [options.frames]), uncached)
    ratio = median_ratio(found[1:], cached)
    return {
        "ratio": ratio,
        "frames": options.frames,
        "tokens_per_second": options.frames / statistics.median(cached),
        "uncached_tokens_per_second": options.frames / statistics.median(found[1:]),
        "method": f"uncached: {POINTS} lengths timed and integrated",
    }


def over_hf_generate(bench: Bench) -> dict[str, float]:
    """Tokens a second of decoding over those of ``transformers``' ``generate`` with its faster cache setting.

    Both have the same weights in float32 (their logits are compared first), the same prompts and draw from the whole
    distribution; prefill counts for both. ``tiny_b1``, ``tiny_b8`` (targets: 2), ``ref_fp32`` (1.05), and ``ref_best``
    (1.8): our best weight format against their float32, what it costs in quality beside it.
    """
    options, details = bench.options, {}
    values = {}
    for name, size, batch, weights in (
        ("tiny_b1", "tiny", 1, "float32"),
        ("tiny_b8", "tiny", 8, "float32"),
        ("ref_fp32", "ref", 1, "float32"),
        ("ref_best", "ref", 1, options.best),
    ):
        peer, model, tokens = Peer(bench.model(size, None)), bench.model(size, weights), bench.tokens(size)
        difference, prompts = peer.check(), bench.prompts(batch, ragged=False)
        cache, speeds = peer.best_cache(prompts, max(2, tokens // 2))
        ours, theirs = interleaved(
            options.pairs,
            lambda model=model, prompts=prompts, tokens=tokens: run(model, prompts, [tokens] * len(prompts)),
            lambda peer=peer, prompts=prompts, tokens=tokens, cache=cache: peer.generate(prompts, tokens, cache),
        )
        values[name] = median_ratio(theirs, ours)
        details[name] = {
            "weights": weights,
            "tokens_per_second": batch * tokens / statistics.median(ours),
            "hf_tokens_per_second": batch * tokens / statistics.median(theirs),
            "hf_cache": {"used": cache} | speeds,
            "largest_logit_difference": difference,
        }
    details["ref_best"]["quality"] = quality.of_formats(bench, [options.best])[options.best]
    details["formats"] = formats(bench)
    bench.details["over_hf_generate"] = details
    return values


def formats(bench: Bench) -> dict[str, dict[str, float]]:
    """Tokens a second of the reference at batch 1 in each weight format, in turns, and each one's quality."""
    tokens, prompts = bench.tokens("ref"), bench.prompts(1)
    models = {weights: bench.model("ref", weights) for weights in FORMATS}
    works = [lambda model=model: run(model, prompts, [tokens]) for model in models.values()]
    took = interleaved(bench.options.pairs, *works)
    lost = quality.of_formats(bench, [weights for weights in FORMATS if weights != "float32"])
    return {
        weights: {"tokens_per_second": tokens / statistics.median(t)} | lost.get(weights, {})
        for weights, t in zip(models, took, strict=True)
    }


def read_per_token(model: VallE) -> int:
    """Bytes of weights that a step at batch 1 reads: the layers and the head of the one level."""
    parts = (*model.backbone.parameters(), *model.heads.parameters())
    return sum(p.numel() * p.element_size() for p in parts)


def bandwidth_share(bench: Bench) -> float:
    """Share of the memory's read bandwidth that a step of the reference uses at batch 1 in float32.

    Bytes of weights read per token / seconds of a step, over the bandwidth that the fastest of four torch operations
    on one big tensor reaches in the same process, both in turns. Target: at least 0.7.
    """
    model, options = bench.model("ref"), bench.options
    bandwidth, rates = ReadBandwidth(options.bandwidth_mb), []
    stepper = Stepper(model, bench.prompts(1), options.steps * (options.pairs + 1) + 1)
    took, _ = interleaved(
        options.pairs, lambda: stepper.step(options.steps), lambda: rates.append(bandwidth.measure())
    )  # fmt: skip
    size = read_per_token(model)
    per_second = [size * options.steps / t for t in took]
    bench.details["bandwidth_share"] = {
        "weights_bytes": size,
        "step_ms": 1000 * statistics.median(took) / options.steps,
        "read_gb_per_second": statistics.median(rates[1:]) / 1e9,
    }
    return median_ratio(per_second, rates[1:])


def per_token_3000_over_75(bench: Bench) -> dict[str, float]:
    """Seconds of a step behind the longest past over those behind the shortest, reference sizes, batch 1, float32.

    Each past is prefilled, then steps behind all of them are timed in turns. Targets: llama at most 1.5, yoco 1.2.
    """
    values, details = {}, {}
    for name, size in (("llama", "ref"), ("yoco", "yoco")):
        values[name], details[name] = _growth(bench, size)
    bench.details["per_token_3000_over_75"] = details | {"past": list(bench.options.past)}
    bench.forget("yoco")
    return values


def _growth(bench: Bench, size: Size) -> tuple[float, dict[str, Any]]:
    options, model = bench.options, bench.model(size)
    most = options.steps * (options.pairs + 1) + 1
    rows = [longer(bench.prompts(1)[0], past, options.codes) for past in options.past]
    steppers = [Stepper(model, [row], most) for row in rows]
    took = interleaved(options.pairs, *(lambda s=stepper: s.step(options.steps) for stepper in steppers))
    per_token = [1000 * statistics.median(t) / options.steps for t in took]
    return median_ratio(took[-1], took[0]), {"ms_per_token": per_token}


def yoco_kv_share(bench: Bench) -> float:
    """Bytes of YOCO's cache over llama's for the longest past, same sizes: all tensors that a row keeps, its
    self-decoder's states included. Target: at most 1/6 at 12 layers."""
    past, sizes = max(bench.options.past), {}
    for name, size in (("llama", "ref"), ("yoco", "yoco")):
        model = bench.model(size)
        sizes[name] = model.backbone.new_cache(1, past, model.dtype, torch.device("meta")).bytes
    bench.details["yoco_kv_share"] = {"frames": past, "bytes": sizes}
    return sizes["yoco"] / sizes["llama"]
