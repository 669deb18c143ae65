"""Codes to waveform piece by piece: the pieces in a row are what decoding everything at once gives.

A decoder of convolutions makes a frame's samples from a few frames on either side. Each piece is therefore decoded
with the frames before it and as many behind it as are known, and only its own samples are kept.

Dimensions: B batch, L levels, T frames, N samples = T * hop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """Frames around a frame that its samples are made from.

    Attributes:
        left: before it.
        right: behind it.
        enough: of ``right``, after which the rest is not heard; the codec's tests say how far off it is.
    """

    left: int
    right: int
    enough: int


class WaveStream:
    """A decoder that is given codes as they come.

    Args:
        decode: features [B, ..., T] → wav float [B, 1, T * hop].
        hop: samples of a frame.
        context: what ``decode`` needs around a frame.
        look_ahead: frames to wait for behind a frame, at most ``context.right``; None is ``context.enough``. With fewer
            than ``context.right`` samples differ a little from those of the whole, and pieces are faded into each
            other over half a frame.
        before: what stands before ``decode`` and remembers everything: the next codes int64 [B, L, T], and whether
            they are the last, → the features that are now certain. None: features are the codes.

    Attributes:
        look_ahead: as given, or the default.

    Raises:
        ValueError: ``look_ahead`` below 0.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        hop: int,
        context: Context,
        look_ahead: int | None = None,
        before: Callable[[Tensor, bool], Tensor] | None = None,
    ) -> None:
        if look_ahead is not None and look_ahead < 0:
            raise ValueError(f"a stream cannot look {look_ahead} frames ahead: give 0 or more")
        self.look_ahead = context.enough if look_ahead is None else min(look_ahead, context.right)
        self._decode, self._hop, self._left = decode, hop, context.left
        self._before = before or (lambda codes, last: codes)
        self._fade = hop // 2 if 0 < self.look_ahead < context.right else 0
        self._features: Tensor | None = None
        self._made = 0  # frames at the beginning of the features whose samples were given out
        self._tail: Tensor | None = None  # samples behind those given out, to fade from

    def push(self, codes: Tensor, last: bool = False) -> Tensor:
        """The samples that ``codes`` int64 [B, L, T] made certain, float [B, 1, N]; N is a multiple of the hop, or 0.

        Args:
            last: no more will come; all samples left are given.
        """
        new = self._before(codes, last)
        features = new if self._features is None else torch.cat((self._features, new), dim=-1)
        until = max(self._made, features.shape[-1] - (0 if last else self.look_ahead))
        wav = torch.zeros(codes.shape[0], 1, 0, device=features.device)
        if until > self._made:
            decoded = self._decode(features)
            wav = self._joined(decoded[..., self._made * self._hop : until * self._hop])
            self._tail = decoded[..., until * self._hop :][..., : self._fade]
        first = max(0, until - self._left)
        self._features, self._made = features[..., first:], until - first
        return wav

    def _joined(self, wav: Tensor) -> Tensor:
        """``wav`` faded in from where the last piece was going."""
        if self._tail is None or self._tail.shape[-1] == 0:
            return wav
        size = self._tail.shape[-1]
        ramp = (torch.arange(size, device=wav.device) + 0.5) / size
        return torch.cat((self._tail * (1 - ramp) + wav[..., :size] * ramp, wav[..., size:]), dim=-1)
