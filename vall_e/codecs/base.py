"""What every neural codec offers to the rest of the house.

Dimensions: B batch, N samples, L codebook levels, T frames, n codes per level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from vall_e.codecs.stream import WaveStream
from vall_e.preparation import CodecConfig


@runtime_checkable
class Codec(Protocol):
    """Waveforms to codes and back. A codec inherits ``decode_stream``.

    Attributes:
        name: key of the registry.
        sample_rate: Hz of the waveforms it takes and gives.
        frame_rate: frames per second.
        levels: L.
        codes: n, codes per level.
        residual: True where later levels refine earlier ones (RVQ), False where levels have no order (FSQ).
    """

    name: str
    sample_rate: int
    frame_rate: float
    levels: int
    codes: int
    residual: bool

    def encode(self, wav: Tensor) -> Tensor:
        """``wav`` float [B, 1, N] in -1..1 → codes int64 [B, L, T]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """``codes`` int64 [B, L, T] → wav float [B, 1, N]."""
        ...

    def stream(self, look_ahead: int | None = None) -> WaveStream:
        """A decoder for codes that come piece by piece.

        Args:
            look_ahead: frames to wait for behind a frame; None: as many as its samples need for nobody to hear a
                difference from ``decode``.
        """
        ...

    def decode_stream(self, pieces: Iterable[Tensor], look_ahead: int | None = None) -> Iterator[Tensor]:
        """Pieces of codes int64 [B, L, T] → the wav float [B, 1, N] that each made certain (N may be 0), then the rest;
        in a row they are ``decode`` of all. ``look_ahead``: as for ``stream``."""
        stream, codes = self.stream(look_ahead), None
        for codes in pieces:
            yield stream.push(codes)
        if codes is not None:
            yield stream.push(codes[..., :0], last=True)

    def codebooks(self) -> list[Tensor]:
        """The L code tables, float [n, d]: a frame stands for the sum of its codes' vectors (levels that are groups of
        scalars have columns of their own). Empty for a codec without tables."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``load_codec`` needs to make this codec again, without any network."""
        ...


def load_codec(config: CodecConfig, folder: str | Path | None = None, device: str = "cpu") -> Codec:
    """The codec that ``config`` names.

    Args:
        folder: where ``fit_codec`` (or a model) saved it; for the others than mel optional (then
            ``config.weights`` or the hub's own weights).
        device: torch device.

    Raises:
        FileNotFoundError: the bundled codec was not fitted, or the named weights do not exist.
    """
    folder = Path(folder) if folder is not None else None
    if config.name == "mel":
        from vall_e.codecs.mel import MelCodec

        if folder is None:
            raise FileNotFoundError("the bundled mel codec is fitted on a corpus: run the fit_codec stage first")
        return MelCodec.load(folder, device)
    if config.name == "encodec":
        from vall_e.codecs.encodec import EncodecCodec

        return EncodecCodec.load(config, folder, device)
    if config.name == "nemo":
        from vall_e.codecs.nemo import NemoCodec

        return NemoCodec.load(config, folder, device)
    from vall_e.codecs.dac import DacCodec

    return DacCodec.load(config, folder, device)
