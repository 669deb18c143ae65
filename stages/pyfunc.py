"""A voice as MLflow serves it (``pyfunc``): text and a prompt's recording in, speech out.

MLflow runs this file where a registered model is loaded or served; the model carries the voice's folder (artifact
``voice``) and the code of ``vall_e`` that it was made with. Sound travels as Base64 of a whole audio file, which JSON
can say: a prompt in any format that ``vall_e.audio.load`` reads, the answer as a WAV of 16 bits.

    curl -H 'Content-Type: application/json' http://127.0.0.1:5001/invocations -d '{"dataframe_records":
      [{"text": "one two three", "prompt": "'$(base64 -w0 voice.wav)'"}], "params": {"seed": 7, "temperature": 0.4}}'
"""

from __future__ import annotations

import base64
import binascii
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    import pandas as pd

    from vall_e.decoding import SamplingConfig
    from vall_e.generation.speech import Request


class VoiceModel(PythonModel):
    """Rows of requests to rows of speech; ``stages.registry.signature`` says which columns there are."""

    def load_context(self, context: Any) -> None:
        from vall_e.generation.synthesize import Voice

        self.voice = Voice.load(context.artifacts["voice"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Speak all rows in one batch.

        Args:
            model_input: a row per request: ``text``, and as they are given ``prompt`` (Base64), ``language``,
                ``speed``.
            params: see ``sampling_of``.

        Returns:
            A row per request: ``audio`` (Base64 of a WAV), ``sample_rate`` in Hz, ``seconds``, ``warnings`` (lines).

        Raises:
            MlflowException: a request that cannot be spoken, which the server answers with 400 and the reason.
        """
        import pandas as pd

        rows = [_given(row) for row in model_input.to_dict("records")]
        try:
            sampling = sampling_of(self.voice.config.sampling, params or {})
            requests = [self._request(number, row, sampling.seed) for number, row in enumerate(rows)]
            spoken = self.voice.speak_batch(requests, sampling)
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(
            {
                "audio": [_wav(audio) for audio in spoken],
                "sample_rate": [audio.sample_rate for audio in spoken],
                "seconds": [audio.seconds for audio in spoken],
                "warnings": ["\n".join(audio.warnings) for audio in spoken],
            }
        )

    def _request(self, number: int, row: dict[str, Any], seed: int) -> Request:
        from vall_e.generation.speech import Request, load_reference

        prompt = None
        if row.get("prompt"):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"prompt of row {number}"
                try:
                    path.write_bytes(base64.b64decode(row["prompt"], validate=True))
                except binascii.Error as error:
                    raise ValueError(f"row {number}: prompt is not Base64 of an audio file ({error})") from None
                prompt = load_reference(path, self.voice.sample_rate)
        return Request(row["text"], prompt, seed=seed, language=row.get("language"), speed=row.get("speed", 1.0))


def sampling_of(base: SamplingConfig, params: dict[str, Any]) -> SamplingConfig:
    """The voice's settings with a request's over them: ``temperature`` (of the pass from left to right), ``guidance``,
    ``candidates``, ``max_seconds``, ``seed``. Raises ValueError for values out of range."""
    return base.with_(**{"ar.temperature" if name == "temperature" else name: params[name] for name in params})


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """Without columns that are empty in this row: a table has NaN there."""
    return {
        key: value
        for key, value in row.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }


def _wav(audio: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return base64.b64encode(audio.save(Path(folder) / "speech.wav").read_bytes()).decode("ascii")


set_model(VoiceModel())
