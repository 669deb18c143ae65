"""A voice in memory: its network, tokenizer and codec, and the way between what people have and what the network reads.

Dimensions: N samples, L levels, T frames, P prompt frames, S phones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch

from vall_e.audio import trim_and_level
from vall_e.codecs.base import Codec, load_codec
from vall_e.decoding import Weights
from vall_e.generation.ranking import Judge
from vall_e.generation.speech import SpeechError, one_channel
from vall_e.models.checkpoint import VoiceConfig, load_model
from vall_e.models.formats import use_weights
from vall_e.models.vall_e import VallE
from vall_e.text.normalize import normalize
from vall_e.text.phonemes import read
from vall_e.text.tokenizer import Tokenizer

STRESS = "ˈˌ"


class LoadedVoice:
    """A trained model with its tokenizer and codec.

    Args:
        model, config, tokenizer, codec: as ``load`` reads them.
        judge: a recogniser, for ``sampling.rank: recogniser`` (``vall_e.evaluation.judge``).
        draft: a smaller model of the same codes and phones, for ``sampling.speculation`` without an exit layer.
    """

    def __init__(
        self,
        model: VallE,
        config: VoiceConfig,
        tokenizer: Tokenizer,
        codec: Codec,
        judge: Judge | None = None,
        draft: VallE | None = None,
    ) -> None:
        self.model, self.config, self.tokenizer, self.codec = model, config, tokenizer, codec
        self.judge, self.draft = judge, draft

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        attention: str | None = None,
        *,
        weights: Weights = "float32",
        judge: Judge | None = None,
        draft: str | Path | None = None,
        compile: bool = False,
    ) -> Self:
        """Read the folder that the train stage wrote.

        Args:
            device: a torch device; ``auto`` is CUDA where there is one.
            attention: as in ``load_model``.
            weights: how they are kept and computed with, see ``use_weights``.
            judge: see the class.
            draft: folder of a smaller voice that drafts, see the class.
            compile: compile the step that decoding repeats (``torch.compile``; CUDA graphs on a GPU, a C++ compiler is
                needed on a CPU). The first speech takes half a minute more.

        Raises:
            FileNotFoundError: a file is missing.
            VoiceError: the folder is damaged.
            ValueError: no such format of weights.
        """
        folder = Path(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, config = load_model(folder, device, attention)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        codec = load_codec(config.codec, folder / "codec", device)
        smaller = None if draft is None else use_weights(load_model(draft, device, attention)[0], weights)
        use_weights(model, weights)
        if compile:
            model.backbone.compile_steps()
        return cls(model, config, tokenizer, codec, judge, smaller)

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prompt_codes(self, wav: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Codes int64 [L, P] of a reference at the voice's rate (see ``one_channel``), and warnings.

        It is trimmed and brought to the loudness of the training data, and cut to the longest prompt of training.
        """
        codes, warnings = self.whole_prompt(wav)
        if codes.shape[1] > self.longest_prompt:
            warnings.append(
                f"of {codes.shape[1] / self.codec.frame_rate:.2f} s of reference the first "
                f"{self.longest_prompt / self.codec.frame_rate:.2f} s count, as long as prompts were in training"
            )
        return codes[:, : self.longest_prompt], warnings

    @property
    def longest_prompt(self) -> int:
        """Frames of the longest prompt of training."""
        return max(1, round(self.config.prompt_seconds * self.codec.frame_rate))

    def whole_prompt(self, wav: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """As ``prompt_codes``, however long."""
        wav = one_channel(wav, "reference")
        if wav.size == 0 or not np.isfinite(wav).all() or float(np.abs(wav).max()) < 1e-4:
            raise SpeechError("the reference recording holds no sound: give one to three seconds of speech")
        warnings: list[str] = []
        wav = trim_and_level(wav, self.sample_rate, self.config.encode)
        if wav.size < 0.2 * self.sample_rate:
            warnings.append(
                f"the reference has only {wav.size / self.sample_rate:.2f} s of sound: one to three are better"
            )
        with torch.inference_mode():
            codes = self.codec.encode(torch.from_numpy(wav)[None, None].to(self.device))[0].cpu().numpy()
        return codes.astype(np.int64), warnings

    def phones(self, texts: Sequence[str], language: str) -> list[list[str]]:
        """Phones of each text, as the model was trained on them.

        Raises:
            SpeechError: words in letters that the language is not written in, which would be spelt by their names.
        """
        said = [normalize(text, language) for text in texts]
        readings = read(said, language, self.config.with_stress, self.config.words_apart)
        unread = [word for reading in readings for word in reading.unread]
        if unread:
            words = ", ".join(map(repr, dict.fromkeys(unread)))
            raise SpeechError(
                f"{words}: not in letters that {language} is written in: name their language, or rewrite them"
            )
        return [reading.phones for reading in readings]

    def ids(self, phones: Sequence[str]) -> np.ndarray:
        """Token ids int64 [S]; a phone never seen with its stress mark is read without it, or with another one."""
        known = set(self.tokenizer.phones)
        plain = {phone.lstrip(STRESS): phone for phone in sorted(known, reverse=True)}
        read = [phone if phone in known else plain.get(phone.lstrip(STRESS), phone) for phone in phones]
        return np.array(self.tokenizer.encode(read), dtype=np.int64)

    def language_id(self, language: str) -> int:
        """Of an espeak-ng language. Raises SpeechError for one that the voice does not know."""
        try:
            return self.config.model.language_id(language)
        except ValueError as error:
            raise SpeechError(str(error)) from None

    def to_wave(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 [L, T] → float32 [N]."""
        if codes.shape[1] == 0:
            return np.zeros(0, dtype=np.float32)
        with torch.inference_mode():
            return self.codec.decode(torch.from_numpy(codes)[None].to(self.device))[0, 0].float().cpu().numpy()
