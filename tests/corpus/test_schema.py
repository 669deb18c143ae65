"""Tables as others read them: units in the files, plain lists and words in DuckDB, pandas and polars."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vall_e.corpus import schema as module
from vall_e.corpus.schema import CODES, code_matrices, read_table, write_table

SCHEMAS = {name: value for name, value in vars(module).items() if isinstance(value, pa.Schema)}


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"u{i}", "speaker": f"s{i % 3}", "language": "ja", "split": "train", "text": "ワン",
            "phones": ["w", "ʌ"],
            "frames": i + 1, "levels": 2, "codes": rng.integers(0, 1024, 2 * (i + 1)),
            "seconds": 0.5, "source": f"u{i}",
        }
        for i in range(20)
    ]  # fmt: skip
    return write_table(rows, CODES, tmp_path / "shard-00000.parquet"), rows


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_is_also_in_the_file(tmp_path, name):
    path = write_table([], SCHEMAS[name], tmp_path / "table.parquet")
    stored = pq.read_schema(path)
    assert stored.equals(SCHEMAS[name], check_metadata=False) and stored.names
    for field in stored:
        assert field.metadata[b"about"].strip(), field.name
    rows = pq.ParquetFile(path).metadata
    assert rows.num_columns >= len(stored.names)


def test_columns_are_zstd(table):
    group = pq.ParquetFile(table[0]).metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}


def test_duckdb_pandas_and_polars_read_codes_as_lists_and_speakers_as_words(table):
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    path, rows = table
    codes, speakers = [row["codes"].tolist() for row in rows], [row["speaker"] for row in rows]
    found = duckdb.sql(f"select codes, speaker from '{path}' order by frames").fetchall()
    assert [list(row[0]) for row in found] == codes and [row[1] for row in found] == speakers
    hours = duckdb.sql(f"select speaker, sum(seconds) from '{path}' group by speaker order by speaker").fetchall()
    assert [name for name, _ in hours] == ["s0", "s1", "s2"] and sum(s for _, s in hours) == pytest.approx(10.0)
    frame = polars.read_parquet(path)
    assert frame["codes"].to_list() == codes and frame["speaker"].cast(polars.String).to_list() == speakers
    frame = read_table(path, CODES).to_pandas()
    assert [item.tolist() for item in frame["codes"]] == codes and frame["speaker"].astype(str).tolist() == speakers


def test_codes_come_back_as_matrices(table):
    path, rows = table
    for matrix, row in zip(code_matrices(read_table(path, CODES), path), rows, strict=True):
        assert matrix.dtype == np.int16 and np.array_equal(matrix, row["codes"].reshape(2, -1))


def test_a_row_that_does_not_fit_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"shard.parquet: a row does not fit"):
        write_table([{"id": 3}], CODES, tmp_path / "shard.parquet")
    assert not list(tmp_path.iterdir())
