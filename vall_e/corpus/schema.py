"""The tables that stages hand to each other: one declared pyarrow schema each, units in the metadata.

Tables are zstd Parquet, written atomically, so that a file that exists is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vall_e.corpus.work import write_atomic


def _field(name: str, kind: pa.DataType, about: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"about": about})


_STRING = pa.string()
_CATEGORY = pa.dictionary(pa.int32(), pa.string())

MANIFEST = pa.schema(
    [
        _field("id", _STRING, "unique id of the recording, safe as a file name"),
        _field("path", _STRING, "recording, absolute or relative to the project's folder"),
        _field("group", _CATEGORY, "corpus or other set that the recording belongs to", nullable=True),
        _field("speaker", _CATEGORY, "speaker id"),
        _field("text", _STRING, "transcript that came with the recording", nullable=True),
        _field("language", _CATEGORY, "BCP-47-like espeak-ng language"),
        _field("language_given", pa.bool_(), "the layout names it; else it is ingest.language", nullable=True),
        _field("seconds", pa.float64(), "duration in seconds: exact to the sample for hours"),
        _field("sample_rate", pa.int32(), "Hz, of the recording"),
        _field("channels", pa.int32(), "channels of the recording"),
        _field("digest", _STRING, "SHA-256 of the recording's bytes"),
        _field("licence", _CATEGORY, "of the recording, as its table names it", nullable=True),
    ]
)

REJECTS = pa.schema(
    [
        _field("id", _STRING, "utterance id, or the path where there is none yet"),
        _field("stage", _STRING, "stage that dropped it"),
        _field("rule", _STRING, "name of the rule"),
        _field("value", _STRING, "what was found", nullable=True),
        _field("threshold", _STRING, "what was allowed", nullable=True),
    ]
)

_WORD = pa.struct(
    [
        _field("word", _STRING, "as the recogniser wrote it"),
        _field("start", pa.float64(), "seconds within the recording"),
        _field("end", pa.float64(), "seconds within the recording"),
        _field("score", pa.float32(), "probability, 0 to 1"),
    ]
)

TRANSCRIPTS = pa.schema(
    [
        _field("id", _STRING, "utterance id: the recording's where it is one utterance, else RECORDING-0001 and on"),
        _field("recording", _STRING, "id of the recording in the manifest"),
        _field("start", pa.float64(), "seconds within the recording"),
        _field("end", pa.float64(), "seconds within the recording"),
        _field("speaker", _CATEGORY, "speaker id; with diarisation -S0, -S1 and on behind it"),
        _field("text", _STRING, "the transcript that later stages use"),
        _field("origin", _CATEGORY, "given (came with the recording) or recognised"),
        _field("recognised", _STRING, "the recogniser's words; null where it was not asked", nullable=True),
        _field("cer", pa.float32(), "character error rate of recognised against given, 0 and up", nullable=True),
        _field("language", _CATEGORY, "espeak-ng language"),
        _field("language_probability", pa.float32(), "0 to 1; null where it was not detected", nullable=True),
        _field("no_speech", pa.float32(), "probability that nobody speaks, highest of the pieces", nullable=True),
        _field("avg_logprob", pa.float32(), "mean log-probability of a token, lowest of the pieces", nullable=True),
        _field("compression_ratio", pa.float32(), "bytes of the recognised text over zlib's", nullable=True),
        _field("words", pa.list_(_WORD), "what was recognised when; null where nobody asked", nullable=True),
    ]
)

UTTERANCES = pa.schema(
    [
        _field("id", _STRING, "unique utterance id, safe as a file name"),
        _field("recording", _STRING, "id of the recording in MANIFEST"),
        _field("path", _STRING, "recording, absolute or relative to the project's folder"),
        _field("start", pa.float64(), "seconds within the recording, silence cut"),
        _field("end", pa.float64(), "seconds within the recording, silence cut"),
        _field("group", _CATEGORY, "what the speaker belongs to, where the corpus says so", nullable=True),
        _field("speaker", _CATEGORY, "speaker id"),
        _field("text", _STRING, "the transcript"),
        _field("origin", _CATEGORY, "given (came with the recording) or recognised"),
        _field("language", _CATEGORY, "BCP-47-like espeak-ng language"),
        _field("split", _CATEGORY, "train, val or test"),
        _field("seconds", pa.float32(), "end - start"),
        _field("sample_rate", pa.int32(), "Hz, of the recording"),
        _field("channels", pa.int32(), "channels of the recording"),
        _field("digest", _STRING, "SHA-256 of the recording's bytes"),
    ]
)

MEASURES = pa.schema(
    [
        _field("id", _STRING, "utterance id; kept or not"),
        _field("start", pa.float64(), "seconds within the recording, silence cut"),
        _field("end", pa.float64(), "seconds within the recording, silence cut"),
        _field("seconds", pa.float32(), "end - start"),
        _field("clipped", pa.float32(), "share of samples at full scale", nullable=True),
        _field("flat_tops", pa.float32(), "share of samples in runs of one level at the peak", nullable=True),
        _field("lufs", pa.float32(), "loudness as recorded, LUFS; null for silence", nullable=True),
        _field("snr_db", pa.float32(), "WADA-SNR, dB, -20 to 100", nullable=True),
        _field("bandwidth_hz", pa.float32(), "frequency above which there is nothing, Hz", nullable=True),
        _field("content_rate", pa.int32(), "the lowest usual sample rate that holds it, Hz", nullable=True),
        _field("dnsmos", pa.float32(), "DNSMOS P.835 overall, 1 to 5; null where not asked for", nullable=True),
        _field("samples", _STRING, "SHA-256 of the samples, silence cut", nullable=True),
        _field("characters_per_second", pa.float32(), "letters and digits of the text by seconds", nullable=True),
        _field("language_probability", pa.float32(), "of the language that transcribe found", nullable=True),
        _field("duplicate_of", _STRING, "the utterance that is kept in its place", nullable=True),
        _field(
            "duplicate_bits",
            pa.float32(),
            "share of equal bits where their fingerprints differ most, 1: same samples",
            nullable=True,
        ),
    ]
)

PHONES = pa.schema(
    [
        _field("id", _STRING, "utterance id"),
        _field("text", _STRING, "normalised text"),
        _field("phones", pa.list_(_STRING), "IPA phones, with ' ' between words"),
    ]
)

CODES = pa.schema(
    [
        _field("id", _STRING, "utterance id; a speed copy has @SPEED behind it"),
        _field("speaker", _CATEGORY, "speaker id; a speed copy has @SPEED behind it"),
        _field("group", _CATEGORY, "group of recordings; null for none", nullable=True),
        _field("language", _CATEGORY, "espeak-ng language"),
        _field("split", _CATEGORY, "train, val or test"),
        _field("text", _STRING, "normalised text"),
        _field("phones", pa.list_(_STRING), "IPA phones"),
        _field("frames", pa.int32(), "T, number of code frames"),
        _field("levels", pa.int16(), "L, codebook levels"),
        _field("codes", pa.list_(pa.int16()), "codes [L, T] in row-major order"),
        _field("seconds", pa.float32(), "duration in seconds of what was encoded"),
        _field("source", _STRING, "id of the recording in the manifest"),
    ]
)

MIXTURES = pa.schema(
    [
        _field("id", _STRING, "the utterance that is mixed, as in CODES"),
        _field("kind", _CATEGORY, "noise, or overlap with another voice"),
        _field("other", _STRING, "the noise recording below its folder, or the id of the other voice's utterance"),
        _field("ratio_db", pa.float32(), "level of the utterance above the other, dB over active stretches"),
        _field("room", _STRING, "the impulse response below its folder; null for none", nullable=True),
        _field("frames", pa.int32(), "T, as of the utterance alone"),
        _field("levels", pa.int16(), "L, codebook levels"),
        _field("codes", pa.list_(pa.int16()), "codes [L, T] of the mixture in row-major order"),
        _field("noise", pa.list_(pa.int16()), "of the noise alone; null for another voice", nullable=True),
    ]
)

SIMILAR = pa.schema(
    [
        _field("id", _STRING, "utterance id"),
        _field("neighbours", pa.list_(_STRING), "ids of the most similar utterances of the speaker, best first"),
        _field("scores", pa.list_(pa.float32()), "cosine similarities of the neighbours, -1 to 1"),
    ]
)

RESULTS = pa.schema(
    [
        _field("id", _STRING, "test item"),
        _field("kind", _CATEGORY, "model, resynthesis or recording"),
        _field("speaker", _CATEGORY, "speaker of the prompt"),
        _field("seen_speaker", pa.bool_(), "the speaker is in the training split"),
        _field("seen_text", pa.bool_(), "the text is that of a training utterance"),
        _field("text", _STRING, "the text that was spoken, normalised"),
        _field("written", _STRING, "the text as it was given"),
        _field("prompt_text", _STRING, "what the prompt says"),
        _field("audio", _STRING, "wave file, relative to the table's folder"),
        _field("prompt", _STRING, "the prompt's wave file, relative to the table's folder"),
        _field("heard", _STRING, "what the recogniser wrote"),
        _field("reference", _STRING, "the words that the rates compare, by evaluate.normaliser"),
        _field("hypothesis", _STRING, "the recogniser's words, by evaluate.normaliser"),
        _field("word_errors", pa.int32(), "substitutions + deletions + insertions, at most word_count"),
        _field("word_count", pa.int32(), "words of the reference"),
        _field("char_errors", pa.int32(), "as word_errors, characters"),
        _field("char_count", pa.int32(), "characters of the reference"),
        _field("phone_errors", pa.int32(), "as word_errors, phones of the hypothesis against those of the text"),
        _field("phone_count", pa.int32(), "phones of the reference"),
        _field("seconds", pa.float32(), "duration of the audio"),
        _field("compute_seconds", pa.float32(), "share of the time that synthesis took; 0 for recordings"),
        _field("warning", _STRING, "what went wrong in synthesis, if anything", nullable=True),
    ]
)

SCORES = pa.schema(
    [
        _field("id", _STRING, "test item"),
        _field("kind", _CATEGORY, "model, resynthesis or recording"),
        _field("speaker", _CATEGORY, "speaker of the prompt"),
        _field("seen_speaker", pa.bool_(), "as in RESULTS"),
        _field("seen_text", pa.bool_(), "as in RESULTS"),
        _field("similarity", pa.float32(), "cosine of the speaker embeddings of audio and prompt"),
        _field("similarity_resynthesis", pa.float32(), "to the codec's copy; null for itself", nullable=True),
        _field("similarity_recording", pa.float32(), "to the recording; null for itself", nullable=True),
        _field("nearest", _STRING, "the speaker whose centroid is nearest"),
        _field("similarity_others", pa.float32(), "mean cosine to the other speakers' centroids"),
        _field("dnsmos", pa.float32(), "DNSMOS P.835 overall, 1 to 5; null where not computed", nullable=True),
        _field("utmos", pa.float32(), "UTMOS, 1 to 5; null where not computed", nullable=True),
        _field("mcd", pa.float32(), "mel-cepstral distance to the recording, dB; null for itself", nullable=True),
        _field("duration_ratio", pa.float32(), "duration over the recording's; null for itself", nullable=True),
        _field("f0_mean", pa.float32(), "Hz, geometric mean; null where too little is voiced", nullable=True),
        _field("f0_std", pa.float32(), "semitones; null where too little is voiced", nullable=True),
        _field("voiced", pa.float32(), "share of the frames; null where not computed", nullable=True),
        _field("f0_rmse", pa.float32(), "to the recording, aligned, semitones", nullable=True),
        _field("f0_correlation", pa.float32(), "of log-F0 with the recording's, aligned", nullable=True),
    ]
)


def write_table(rows: Iterable[Mapping[str, Any]] | pa.Table, schema: pa.Schema, path: str | Path) -> Path:
    """Write rows under ``schema``, atomically. Raises ValueError naming the file for a row that does not fit."""
    path = Path(path)
    if not isinstance(rows, pa.Table):
        try:
            rows = pa.Table.from_pylist(list(rows), schema=schema)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"{path}: a row does not fit the table's schema: {error}") from None
    whole = rows.cast(schema)
    return write_atomic(path, lambda temporary: pq.write_table(whole, temporary, compression="zstd"))


def read_table(path: str | Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table and check that it has the schema's columns. Raises ValueError naming file and columns."""
    path = Path(path)
    try:
        table = pq.read_table(path, columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet table: {error}") from None
    missing = set(columns or schema.names) - set(table.column_names)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}: made by an older version? run its stage again")
    return table


def read_rows(path: str | Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    return read_table(path, schema, columns).to_pylist()


def shard_files(folder: str | Path) -> list[Path]:
    """The tables of an encode folder (schema CODES), in order.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(Path(folder).glob("shard-*.parquet"))
    if not found:
        raise FileNotFoundError(f"{folder} has no shards: run the encode stage first")
    return found


def code_matrices(table: pa.Table, path: Path, column: str = "codes") -> list[np.ndarray | None]:
    """A column of codes as int16 [L, T] a row, None for null; ``table`` has id, levels and frames as well.

    Raises:
        ValueError: naming ``path``, for a row that holds other codes than it says.
    """
    lists = table[column].combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_numpy()
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    out: list[np.ndarray | None] = []
    for index, row in enumerate(table.select(("id", "levels", "frames")).to_pylist()):
        flat, shape = values[offsets[index] : offsets[index + 1]], (row["levels"], row["frames"])
        if not valid[index]:
            out.append(None)
        elif len(flat) != shape[0] * shape[1]:
            raise ValueError(f"{path}: row {row['id']} holds {len(flat)} codes, not {shape[0]} x {shape[1]}")
        else:
            out.append(flat.reshape(shape))
    return out
