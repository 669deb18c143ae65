"""Weights that a training starts from instead of random ones: another voice's, or a text model's for the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from vall_e.backbones import huggingface
from vall_e.backbones.base import Backbone
from vall_e.config import Params
from vall_e.family import ModelConfig
from vall_e.models.checkpoint import load_config, load_model, load_weights, same_codec
from vall_e.models.vall_e import VallE
from vall_e.nn.convert import with_kv_heads
from vall_e.nn.weights import WeightsError, fill
from vall_e.text.tokenizer import EOS, Tokenizer

# What a backbone computes depends on these; key/value heads may be fewer, and are compared apart.
_SIZES = tuple(name for name in huggingface.SIZES if name != "kv_heads")
SAME = ("backbone", *_SIZES, "rope", "experts.count", "experts.active")


def sources(params: Params, root: Path) -> list[str | Path]:
    """What ``start`` would read, and a teacher: folders below ``root``, or the names of repositories on the hub."""
    teacher = params.train.distill and params.train.distill.voice
    given = (params.model.init_from, params.train.init_from, teacher)
    return [root / path if (root / path).exists() else path for path in given if path is not None]


def start(model: VallE, params: Params, tokenizer: Tokenizer, root: Path, out: Path) -> int:
    """Fill ``model`` with what ``model.init_from`` and ``train.init_from`` name; the latter is the whole voice.

    Args:
        tokenizer: of the corpus.
        root: the project's folder, with its codec in models/codec.
        out: the folder that the new voice will replace.

    Returns:
        phones of the corpus that the voice does not know.

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
        return start_voice(model, folder, tokenizer, root / "models/codec")
    return 0


def start_voice(model: VallE, folder: Path, tokenizer: Tokenizer, codec: Path) -> int:
    """Give ``model`` the weights of the voice in ``folder``; its adapters, where it has any, are folded in before.

    The corpus may have phones, and ``model.languages`` names, that the voice does not know, behind those that it does:
    each starts as the mean of the known ones, a place where what follows is as likely as on average (Hewitt 2021,
    "Initializing new word embeddings for pretrained language models").

    Returns:
        the number of new phones.

    Raises:
        FileNotFoundError: a file of the voice is missing.
        ValueError: tensors of other shapes, which are named; or other phones or codes behind the same ids.
    """
    config = load_config(folder)
    theirs = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.phones[: len(theirs.phones)] != theirs.phones:
        other = sorted(set(theirs.phones) ^ set(tokenizer.phones))
        raise WeightsError(
            f"train.init_from: {folder} and this corpus do not know the same phones ({' '.join(other[:8])}): "
            f"their ids would change their meaning; set phonemize.tokenizer: {folder / 'tokenizer.json'}, which keeps "
            "them and puts new phones behind them"
        )
    if not same_codec(folder, codec):
        raise WeightsError(
            f"train.init_from: {folder} speaks through another codec than {codec}: its codes would change their "
            f"meaning; set codec.weights: {folder / 'codec'}"
        )
    if config.model.lora is None:
        weights = load_weights(folder, config)
    else:
        voice, _ = load_model(folder)
        voice.merge_adapters()
        weights = voice.state_dict()
    _extend(weights, len(theirs), len(tokenizer))
    _extend_languages(weights, config.model.languages, model)
    remedy = (
        f"train.init_from needs a voice of this model's kind and sizes: see the section model of {folder}/config.json "
        f"({config.model.kv_heads} key/value heads; `vall-e model convert` makes fewer)"
    )
    fill(model, weights, folder, remedy)
    return len(tokenizer) - len(theirs)


def _extend(weights: dict[str, Tensor], known: int, wanted: int) -> None:
    """Rows for new phones behind the ``known`` ids; other symbols come behind the phones."""
    for name in ("embeddings.symbol.weight", "symbol_heads.phones.weight", "alignment.phone.weight"):
        if name in weights:
            weights[name] = with_rows(weights[name], known, wanted - known, first=EOS + 1)


def _extend_languages(weights: dict[str, Tensor], known: Sequence[str], model: VallE) -> None:
    name, wanted = "embeddings.header.1.weight", model.config.languages
    if known == wanted:
        return
    if wanted[: len(known)] != known:
        raise WeightsError(
            f"train.init_from: the voice knows the languages {list(known)}: model.languages must begin with them"
        )
    if known:
        weights[name] = with_rows(weights[name], 1 + len(known), len(wanted) - len(known), first=1)
    else:  # nothing was learned of languages
        weights[name] = model.state_dict()[name].clone()


def with_rows(table: Tensor, at: int, count: int, first: int) -> Tensor:
    """``table`` [N, D] with ``count`` rows put in at row ``at``, each the mean of the rows ``first`` to ``at``."""
    mean = table[first:at].mean(0, keepdim=True).expand(count, -1)
    return torch.cat((table[:at], mean, table[at:]))


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
