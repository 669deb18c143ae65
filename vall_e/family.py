"""The family in tables: what each backbone can do. A leaf, so that configuration can refuse what cannot work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """What a backbone can do.

    Attributes:
        bidirectional: positions may see later ones, as parallel passes need.
        multi_token: several new positions at once behind a past: verifying drafts, going on from a prefix.
        rewind: its cache can forget the last positions: rejected drafts.
        early_exit: the states of its layers can go to the heads: LayerSkip.
    """

    bidirectional: bool = True
    multi_token: bool = True
    rewind: bool = True
    early_exit: bool = True


BACKBONES: dict[str, Capabilities] = {
    "llama": Capabilities(),
}
