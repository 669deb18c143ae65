"""Raw sound on a pipe: the samples, at the reader's pace, and only as long as somebody reads."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

from vall_e.audio import play_to, save_wav


def test_the_samples_are_those_of_a_saved_file(tmp_path) -> None:
    wav = np.concatenate((np.random.default_rng(0).uniform(-1, 1, 999), [1.5, -1.5])).astype(np.float32)
    out = io.BytesIO()
    assert play_to(out, iter(np.split(wav, [0, 100, 777]))) == 1001
    pcm = np.frombuffer(out.getvalue(), dtype="<i2")
    np.testing.assert_array_equal(pcm, soundfile.read(save_wav(tmp_path / "a.wav", wav, 8000), dtype="int16")[0])


class Sips(io.RawIOBase):
    """Takes at most three bytes at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.taken += bytes(data[:3])
        return min(3, len(data))


def test_a_stream_that_takes_a_part_gets_the_rest() -> None:
    out, wav = Sips(), np.linspace(-1, 1, 50)
    play_to(out, [wav])
    np.testing.assert_array_equal(np.frombuffer(out.taken, "<i2"), np.round(wav * 32767).astype(np.int16))


def test_a_slow_reader_slows_down_what_makes_the_sound() -> None:
    reader, writer = os.pipe()
    made = []

    def pieces() -> Iterator[np.ndarray]:
        for index in range(64):
            made.append(index)
            yield np.zeros(8192)

    def play() -> None:
        with os.fdopen(writer, "wb") as out:
            play_to(out, pieces())

    thread = threading.Thread(target=play)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and len(made) < 16, "a pipe holds 64 KiB: four pieces of 16 KiB"
    with os.fdopen(reader, "rb") as sound:
        assert len(sound.read()) == 64 * 8192 * 2
    thread.join(10)
    assert len(made) == 64


def test_when_the_reader_leaves_nothing_more_is_made() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = []

    def pieces() -> Iterator[np.ndarray]:
        try:
            while True:
                yield np.zeros(100)
        finally:
            closed.append(True)

    with os.fdopen(writer, "wb", buffering=0) as out, pytest.raises(BrokenPipeError):
        play_to(out, pieces())
    assert closed == [True]


def test_a_command_whose_reader_leaves_ends_quietly() -> None:
    code = (
        "import sys, itertools, numpy, vall_e.cli as cli\n"
        "from vall_e.audio import play_to\n"
        "parser = type('P', (), {'parse_args': lambda self, argv: self, 'run': staticmethod(lambda a: \n"
        "    play_to(sys.stdout.buffer, (numpy.zeros(999) for _ in itertools.count())))})\n"
        "cli._parser = parser\n"
        "sys.exit(cli.main([]))\n"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert len(command.stdout.read(100)) == 100
    command.stdout.close()
    assert command.wait(30) == 1 and command.stderr.read() == b""
    command.stderr.close()


@pytest.mark.parametrize("wrong, reason", [(np.array([0.0, np.nan]), "NaN"), (np.zeros((2, 5)), "one channel")])
def test_what_is_no_sound_is_refused(wrong: np.ndarray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        play_to(io.BytesIO(), [wrong])
