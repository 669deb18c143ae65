"""Parameters of the ``register`` stage: under which name a model is registered, and what makes it the champion."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from vall_e.fields import Fraction, Section

Rate = Annotated[float, Field(ge=0.0)]
_NAME = r"^[\w.-][\w. -]*$"  # what MLflow takes in a tag's name too, which tells a run the models that came from it


class GatesConfig(Section):
    """What a candidate has to reach to become the champion; null: not asked for."""

    max_wer: Rate | None = Field(0.3, description="word error rate of the model")
    max_cer: Rate | None = Field(None, description="character error rate")
    min_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] | None = Field(
        0.6, description="cosine of the speaker embeddings of speech and prompt"
    )
    min_dnsmos: Annotated[float, Field(ge=1.0, le=5.0)] | None = Field(None, description="DNSMOS overall, 1 to 5")
    max_worse: Fraction | None = Field(0.0, description="WER above the champion's that a candidate may have")


class RegistryConfig(Section):
    """The model in MLflow's registry."""

    name: Annotated[str, Field(pattern=_NAME)] | None = Field(
        None, description="of the registered model; null: tracking.experiment and the profile, such as vall-e-demo"
    )
    gates: GatesConfig = GatesConfig()


def model_name(experiment: str, name: str) -> str:
    """Under which models of a profile or a workspace ``name`` are registered where ``registry.name`` is null: what
    MLflow does not take in names, as the + of joined profiles, is a hyphen."""
    return re.sub(r"[^\w.-]+", "-", f"{experiment}-{name}")
