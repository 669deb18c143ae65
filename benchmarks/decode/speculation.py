"""Figures of speculative decoding, on a model made so that its early exit is right as often as is wanted.

Dimensions: M positions, D width, n codes.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.decode.bench import Bench, build
from benchmarks.decode.speed import longer
from benchmarks.decode.steps import plain, run
from benchmarks.decode.timing import interleaved, median_ratio
from vall_e.decoding import SpeculationConfig
from vall_e.models.formats import use_weights
from vall_e.models.packing import Sample, pack
from vall_e.models.vall_e import VallE
from vall_e.sampling.draw import draw, gumbel

WANTED = {"low": 0.3, "high": 0.8}  # share of drafts that is accepted
SHARPER = 5.0  # deviation of the logits; of random heads it is 1, and trained ones are surer of what comes
MOST, HALVINGS = 64.0, 16  # of the factor
DRAWS = 8  # of each frame, to measure how often two distributions give the same code


class Constructed:
    """A model of the reference's sizes whose layers behind the early exit change little, by a factor on what they add.

    At 0 the exit says what the whole model says; at 1 and more it says something else. The time of a forward does not
    depend on it.
    """

    def __init__(self, bench: Bench) -> None:
        config, self.codes = bench.options.ref, bench.options.codes
        self.model = build(config, self.codes)
        self.exit = max(1, config.layers // 6)
        self.sharpen(bench.prompts(1)[0])
        later = self.model.backbone.blocks[self.exit :]
        self.outputs = [w for block in later for w in (block.attention.o.weight, block.feedforward.down.weight)]
        self.whole = [weight.clone() for weight in self.outputs]

    def sharpen(self, prompt: Sample) -> None:
        """Bring the logits behind ``prompt`` to a deviation of ``SHARPER``."""
        with torch.inference_mode():
            logits = self.model.heads(self.model.hidden(pack([prompt], self.model.layout))[0], 0, [])
        self.model.heads.heads[0].weight.mul_(SHARPER / float(logits[:, : self.codes].std()))

    def scale(self, factor: float) -> None:
        """Let the later layers add ``factor`` times what they would."""
        for weight, whole in zip(self.outputs, self.whole, strict=True):
            torch.mul(whole, factor, out=weight)

    def accept(self, wanted: float, row: Sample) -> None:
        """Find the factor at which a share ``wanted`` of drafts is accepted on ``row``, by halving."""
        low, high = 0.0, MOST
        for _ in range(HALVINGS):
            self.scale((low + high) / 2)
            if acceptance(self.model, row, self.exit) > wanted:
                low = (low + high) / 2
            else:
                high = (low + high) / 2


@torch.inference_mode()
def acceptance(model: VallE, row: Sample, layers: int) -> float:
    """Share of the frames of ``row`` on which the exit behind ``layers`` layers draws what the whole model draws, with
    the same noise, over ``DRAWS`` draws of each."""
    packed = pack([row], model.layout)
    states = list(model.states(packed))
    first = int(packed.response[0])
    drafted, drawn = (_logits(model, states[at][0, first:]) for at in (layers - 1, -1))
    generator, same = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        noise = gumbel(tuple(drawn.shape), generator)
        same.append(draw(drafted, noise) == draw(drawn, noise))
    return float(torch.stack(same).float().mean())


def _logits(model: VallE, states: Tensor) -> Tensor:
    """Of level 0 at each of the states [M, D], float [M, n + 1]."""
    return model.heads(model.backbone.norm(states), 0, [])


def speculative(bench: Bench) -> dict[str, float]:
    """Tokens a second with the first layers drafting over plain decoding of the same model, at temperature 1.

    ``low``: about 30 % of drafts are accepted (target: at least 0.95), ``high``: about 80 % (1.3). The model is
    constructed (``Constructed``), reference sizes, the best weight format, batch 1. The acceptance beside each ratio
    is measured on the frames that plain decoding drew.
    """
    made, options, tokens = Constructed(bench), bench.options, bench.tokens("ref")
    prompt = bench.prompts(1)[0]
    rules = plain(speculation=SpeculationConfig(exit_layer=made.exit))
    values, details = {}, {"model": "constructed", "exit_layer": made.exit, "weights": options.best}
    for name, wanted in WANTED.items():
        made.accept(wanted, longer(prompt, min(tokens, 64), options.codes))
        drawn = run(made.model, [prompt], [tokens])[0].numpy()
        model = use_weights(copy.deepcopy(made.model), options.best)
        drafted, alone = interleaved(
            options.pairs,
            lambda model=model: run(model, [prompt], [tokens], rules),
            lambda model=model: run(model, [prompt], [tokens]),
        )
        values[name] = median_ratio(alone, drafted)
        details[name] = {
            "acceptance": acceptance(made.model, replace(prompt, response=drawn), made.exit),
            "tokens_per_second": tokens / statistics.median(drafted),
            "plain_tokens_per_second": tokens / statistics.median(alone),
        }
    bench.details["speculative"] = details
    return values
