"""The encode stage beside a loop over files."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.corpus.bench import Bench
from benchmarks.corpus.stages import ready
from benchmarks.decode.timing import interleaved, median_ratio
from vall_e.codecs.base import load_codec
from vall_e.codecs.encodec import KBPS_PER_LEVEL
from vall_e.codecs.weights import read_weights, write_codec
from vall_e.config import Params
from vall_e.corpus.clips import encode_clips, prepare
from vall_e.corpus.encode import _utterances, load_codes
from vall_e.corpus.executor import one_thread
from vall_e.corpus.schema import CODES, write_table

SMALL_ENCODEC = {"n_filters": 8, "dimension": 32, "n_q": 8, "bins": 256}  # of 32, 128, 32, 1024
LEVELS = 4
MOST_DIFFERING = 1e-3  # share of codes: two vectors of a codebook can be as near as floats can say


def encode_over_loop(bench: Bench) -> float:
    """Seconds of a loop over files (prepare one, encode it alone, one table at the end) over those of the encode
    stage with one worker, both with one thread, the same weights and, but for ties, the same codes; median of rounds
    in turns. The lesser of the bundled codec's and a small EnCodec's, for which the loop takes the package's own model
    as its authors publish it, with weight normalisation. Target: at least 2."""
    ready(bench)
    mel, small = bench.home / "models/codec", bench.home / "encodec"
    theirs = _TheirEncodec(SMALL_ENCODEC)
    theirs.draw()
    theirs.save(small)
    loads: dict[str, tuple[Path, Callable[[], Any]]] = {
        "mel": (mel, lambda: load_codec(bench.changed(codec={"name": "mel"}).codec, mel)),
        "encodec": (small, lambda: _TheirEncodec.load(small)),
    }
    ratios = {}
    for name, (folder, load) in loads.items():
        settings = {"shard_size": bench.params.encode.shard_size}
        params = bench.changed(codec={"name": name}, executor={"kind": "local", "workers": 1}, encode=settings)
        works = (lambda p=params, c=load: _loop(bench, p, c), lambda p=params, f=folder: bench.encode(p, f))
        loop, ours = interleaved(bench.rounds, *works)
        differ = _differing(bench)
        if differ > MOST_DIFFERING:
            raise RuntimeError(f"{name}: the loop and the stage made different codes ({differ:.2%} of them)")
        ratios[name] = median_ratio(loop, ours)
        shown = {"loop_s": statistics.median(loop), "stage_s": statistics.median(ours), "ratio": ratios[name]}
        shown["codes_differ"] = differ
        bench.details.setdefault("encode_over_loop", {})[name] = shown
        print(f"  {name} {shown}", file=sys.stderr, flush=True)
    return min(ratios.values())


def _loop(bench: Bench, params: Params, load: Callable[[], Any]) -> None:
    """What one would write: ``load`` gives a codec, as far as ``encode_clips`` needs one."""
    rows = []
    with one_thread():
        codec = load()
        for row in _utterances(bench.manifest, bench.phones):
            for clip in prepare(row, params.encode, codec)[0]:
                rows += encode_clips(codec, [clip], params.encode.batch_seconds)
    write_table(rows, CODES, bench.home / "loop.parquet")


def _differing(bench: Bench) -> float:
    """Share of codes that are not the same in the loop's table and the stage's: 1 where their lengths are not."""
    alone = pq.read_table(bench.home / "loop.parquet", columns=["codes"])["codes"].combine_chunks()
    together = load_codes(bench.home / "out", ["codes"])["codes"].combine_chunks()
    if not alone.offsets.equals(together.offsets):
        return 1.0
    return float((alone.values.to_numpy() != together.values.to_numpy()).mean())


class _TheirEncodec:
    """The package's own ``EncodecModel``, built as its authors build it and at the sizes given."""

    sample_rate, levels = 24_000, LEVELS

    def __init__(self, sizes: dict[str, Any]) -> None:
        from encodec.model import EncodecModel
        from encodec.modules import SEANetDecoder, SEANetEncoder
        from encodec.quantization import ResidualVectorQuantizer

        self.sizes = sizes
        network = {key: sizes[key] for key in ("n_filters", "dimension")} | {"norm": "weight_norm", "causal": True}
        quantizer = ResidualVectorQuantizer(sizes["dimension"], sizes["n_q"], sizes["bins"])
        bandwidth = LEVELS * quantizer.get_bandwidth_per_quantizer(75)
        parts = (SEANetEncoder(**network), SEANetDecoder(**network), quantizer)
        self.model = EncodecModel(*parts, [bandwidth], self.sample_rate, 1).eval()
        self.model.set_target_bandwidth(bandwidth)
        self.frame_rate = float(self.model.frame_rate)

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] → codes int64 [B, L, T]."""
        return self.model.encode(wav)[0][0]

    @torch.no_grad()
    def draw(self) -> None:
        """Seeded weights that tell sounds apart."""
        torch.manual_seed(0)
        for name, value in self.model.named_parameters():
            if name.endswith("bias"):
                value.zero_()
        for layer in self.model.quantizer.vq.layers:
            layer._codebook.embed.copy_(torch.randn_like(layer._codebook.embed))
            layer._codebook.inited.fill_(1)

    def save(self, folder: Path) -> None:
        """As ``EncodecCodec`` reads it."""
        description = {"name": "encodec", "bandwidth": LEVELS * KBPS_PER_LEVEL, "architecture": self.sizes}
        write_codec(folder, description, self.model.state_dict())

    @classmethod
    def load(cls, folder: Path) -> _TheirEncodec:
        state, description = read_weights(folder)
        codec = cls(description["architecture"])
        codec.model.load_state_dict(state)
        return codec
