"""What a model sounds like while it trains: waves, pictures of what it attends to and draws, a quick word error rate.

A ``vall_e.training.samples.Show``. Dimensions: L levels, T frames.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vall_e.audio import save_wav
from vall_e.codecs.base import Codec
from vall_e.config import Params
from vall_e.data.readings import Reading
from vall_e.evaluation.error_rates import word_errors
from vall_e.evaluation.normalisers import read_hypothesis
from vall_e.evaluation.pictures import codes_picture, maps_picture
from vall_e.evaluation.run import Listener
from vall_e.generation.alignment import aligned_row, first_frame
from vall_e.generation.respond import respond
from vall_e.models.packing import Place, pack
from vall_e.models.vall_e import VallE
from vall_e.text.normalize import words_for_scoring
from vall_e.text.tokenizer import Tokenizer

LONGEST = 2.0  # times the recording's frames, and a second: a model that does not stop yet is cut off


class Audition:
    """Reads texts aloud.

    Args:
        params: its ``sampling`` with one candidate, ``evaluate.recogniser`` and ``evaluate.asr_prompt`` are used.
        codec: turns codes into waves.
        tokenizer: names the phones in pictures.
        keep: called with each folder of samples that is whole.
        recogniser: listens; None takes the configured one, and nobody where that is not installed.
    """

    def __init__(
        self,
        params: Params,
        codec: Codec,
        tokenizer: Tokenizer,
        keep: Callable[[Path], None],
        recogniser: Listener | None = None,
    ) -> None:
        self.params, self.codec, self.tokenizer, self.keep = params, codec, tokenizer, keep
        self.recogniser, self.listens = recogniser, params.train.samples is not None and params.train.samples.wer
        plain = {"candidates": 1, "rank": "auto", "speculation": None, "beam": None}
        self.sampling = params.sampling.model_copy(update=plain)

    def make(self, model: VallE, texts: Sequence[Reading], folder: Path) -> dict[str, float]:
        """Into ``folder``: ``NAME.wav``, ``NAME-recording.wav`` and ``NAME-prompt.wav`` (both through the codec),
        ``NAME-codes.png``, ``NAME-maps.png``, and ``samples.json`` with what was to be said and what was heard.

        Returns:
            ``val.wer`` where a recogniser listens.
        """
        blank = [replace(reading.sample, response=reading.sample.response[:, :0]) for reading in texts]
        longest = [round(LONGEST * reading.sample.response.shape[1] + self.codec.frame_rate) for reading in texts]
        spoken = respond(
            model, blank, self.sampling, list(range(len(texts))), longest, lambda candidates, _: candidates[0]
        )
        waves, rows = [], []
        for reading, (_, codes) in zip(texts, spoken, strict=True):
            waves.append(self._wave(codes))
            said = {"": waves[-1]} | {
                f"-{name}": self._wave(c)
                for name, c in (("recording", reading.sample.response), ("prompt", reading.sample.prompt))
            }
            for name, wav in said.items():
                save_wav(folder / f"{reading.name}{name}.wav", wav, self.codec.sample_rate)
            codes_picture(folder / f"{reading.name}-codes.png", codes, reading.sample.response, self.codec.codes)
            if codes.shape[1]:
                self._maps(model, reading, codes, folder / f"{reading.name}-maps.png")
            seconds = codes.shape[1] / self.codec.frame_rate
            rows.append({"name": reading.name, "text": reading.text, "seconds": round(seconds, 3)})
        figures = self._listen(texts, waves, rows)
        report = json.dumps(figures | {"samples": rows}, indent=1, ensure_ascii=False) + "\n"
        (folder / "samples.json").write_text(report, encoding="utf-8")
        return figures

    def _wave(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 [L, T] → float32 [N]; a twentieth of a second of silence for none."""
        if not codes.shape[1]:
            return np.zeros(self.codec.sample_rate // 20, dtype=np.float32)
        with torch.inference_mode():
            wav = self.codec.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, 0].float().cpu().numpy()
        return np.nan_to_num(wav, posinf=0.0, neginf=0.0)

    def _maps(self, model: VallE, reading: Reading, codes: np.ndarray, path: Path) -> None:
        """What the frames that were drawn attend to in the last layer, and which phone they say (alignment head)."""
        row = aligned_row(model, replace(reading.sample, response=codes))
        packed = pack([row], model.layout).to(model.device)
        first, frames = first_frame(row, int(packed.response[0])), codes.shape[1]
        with torch.inference_mode(), model.backbone.watched() as watch:
            model.hidden(packed)
            attention = None if watch is None or watch.weights is None else watch.weights[0].mean(0)
            aligned = model.align(packed)[0].exp() if model.alignment is not None else None
        shown = slice(first, first + frames)
        places = {name: (packed.segment[0] == Place[name.upper()]).int().argmax().item() for name in ("text", "prompt")}
        text, phones = places["text"] + 1, self.tokenizer.decode(row.text.tolist())  # behind bos
        maps_picture(
            path,
            None if attention is None else attention[shown, : first + frames].cpu().numpy(),
            None if aligned is None else aligned[shown, text : text + len(phones)].cpu().numpy(),
            places | {"response": first},
            phones,
        )

    def _listen(self, texts: Sequence[Reading], waves: Sequence[np.ndarray], rows: list[dict]) -> dict[str, float]:
        listener = self._listener()
        if listener is None:
            return {}
        clips = [(wave, self.codec.sample_rate) for wave in waves]
        wrong = count = 0
        for reading, heard, row in zip(
            texts, listener.transcribe(clips, self.params.evaluate.asr_prompt), rows, strict=True
        ):
            wanted = words_for_scoring(reading.text, reading.language)
            words = read_hypothesis(heard, reading.language, wanted)
            errors = word_errors(wanted, words)
            row["heard"] = " ".join(words)
            wrong, count = wrong + errors.errors, count + errors.count
        return {"val.wer": wrong / count} if count else {}

    def _listener(self) -> Listener | None:
        if self.listens and self.recogniser is None:
            from vall_e.evaluation.asr import Recogniser
            from vall_e.evaluation.whisper import RecogniserError

            try:
                self.recogniser = Recogniser(self.params.evaluate.recogniser)
            except (RecogniserError, ImportError) as error:
                warnings.warn(f"train.samples.wer: nobody listens to the samples: {error}", stacklevel=2)
                self.listens = False
        return self.recogniser if self.listens else None
