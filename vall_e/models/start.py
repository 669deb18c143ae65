"""Weights that a training starts from instead of random ones: another voice's, or a text model's for the backbone."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

from torch import Tensor

from vall_e.backbones import huggingface
from vall_e.backbones.base import Backbone
from vall_e.config import Params
from vall_e.family import ModelConfig
from vall_e.models.checkpoint import load_config, load_weights, same_codec
from vall_e.models.vall_e import VallE
from vall_e.nn.convert import with_kv_heads
from vall_e.nn.weights import WeightsError, fill
from vall_e.text.tokenizer import Tokenizer

# What a backbone computes depends on these; key/value heads may be fewer, and are compared apart.
_SIZES = tuple(name for name in huggingface.SIZES if name != "kv_heads")
SAME = ("backbone", *_SIZES, "rope", "experts.count", "experts.active")


def sources(params: Params, root: Path) -> list[str | Path]:
    """What ``start`` would read: folders below ``root``, or the names of repositories on the hub."""
    given = (params.model.init_from, params.train.init_from)
    return [root / path if (root / path).exists() else path for path in given if path is not None]


def start(model: VallE, params: Params, tokenizer: Tokenizer, root: Path, out: Path) -> None:
    """Fill ``model`` with what ``model.init_from`` and ``train.init_from`` name; the latter is the whole voice.

    Args:
        tokenizer: of the corpus.
        root: the project's folder, with its codec in models/codec.
        out: the folder that the new voice will replace.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: it does not fit.
    """
    if params.model.init_from is not None:
        path = root / params.model.init_from
        start_backbone(model.backbone, path if path.is_dir() else params.model.init_from)
    if params.train.init_from is not None:
        folder = root / params.train.init_from
        if folder.resolve() == out.resolve():
            raise ValueError(f"train.init_from: the stage replaces {folder}: copy that voice and name the copy")
        start_voice(model, folder, tokenizer, root / "models/codec")


def start_voice(model: VallE, folder: Path, tokenizer: Tokenizer, codec: Path) -> None:
    """Give ``model`` the weights of the voice in ``folder``.

    Raises:
        FileNotFoundError: a file of the voice is missing.
        ValueError: tensors of other shapes, which are named; or other phones or codes behind the same ids.
    """
    config, weights = load_config(folder), load_weights(folder)
    theirs = Tokenizer.load(folder / "tokenizer.json")
    if theirs != tokenizer:
        other = sorted(set(theirs.phones) ^ set(tokenizer.phones))
        raise WeightsError(
            f"train.init_from: {folder} and this corpus do not know the same phones ({' '.join(other[:8])}): "
            "their ids would change their meaning"
        )
    if not same_codec(folder, codec):
        raise WeightsError(
            f"train.init_from: {folder} speaks through another codec than {codec}: its codes would change their meaning"
        )
    remedy = (
        f"train.init_from needs a voice of this model's kind and sizes: see the section model of {folder}/config.json "
        f"({config.model.kv_heads} key/value heads; `vall-e model convert` makes fewer)"
    )
    fill(model, weights, folder, remedy)


def start_backbone(backbone: Backbone, path: str | Path) -> None:
    """Give ``backbone`` the weights of a text model, a folder or a repository in Hugging Face's layout.

    Key and value heads are pooled where the backbone has fewer (2305.13245, section 2.1).

    Raises:
        FileNotFoundError: it is not there.
        ValueError: other sizes, of which both are named.
    """
    folder = huggingface.find(path)
    ours, theirs = backbone.config, huggingface.our_config(huggingface.read_config(folder))
    _compare(ours, theirs, folder)
    tensors = huggingface.read_weights(folder)
    state: dict[str, Tensor] = {
        mine: tensors[name] for mine, name in huggingface.tensor_names(theirs).items() if name in tensors
    }
    if ours.kv_heads < theirs.kv_heads:
        state = with_kv_heads(state, theirs.kv_heads, ours.kv_heads)
    fill(backbone, state, folder, "Its config.json and its weights must be of one checkpoint")


def _compare(ours: ModelConfig, theirs: ModelConfig, folder: Path) -> None:
    pairs = [(name, attrgetter(name)(ours), attrgetter(name)(theirs)) for name in SAME]
    wrong = [f"model.{name} is {mine} and the checkpoint's is {other}" for name, mine, other in pairs if mine != other]
    if theirs.kv_heads % ours.kv_heads:
        wrong.append(f"model.kv_heads is {ours.kv_heads}, which does not divide the checkpoint's {theirs.kv_heads}")
    if wrong:
        raise WeightsError(f"model.init_from: {folder} is of other sizes: {'; '.join(wrong)}")
