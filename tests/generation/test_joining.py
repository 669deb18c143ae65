"""Segments joined: the pauses are those that were asked for, and no join clicks."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.generation.joining import FADE_SECONDS, Joiner, join

RATE = 16_000


def tone(seconds: float, hertz: float = 220, lead: float = 0.2, trail: float = 0.3) -> np.ndarray:
    """A tone between silences."""
    sound = 0.3 * np.cos(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    edges = (np.zeros(round(lead * RATE)), np.zeros(round(trail * RATE)))
    return np.concatenate((edges[0], sound, edges[1])).astype(np.float32)


def silences(wav: np.ndarray) -> list[float]:
    """Seconds of the silences inside ``wav``."""
    loud = np.flatnonzero(np.abs(wav) > 0.02)
    gaps = np.diff(loud) / RATE
    return gaps[gaps > 0.01].tolist()


def test_one_segment_stays_as_it_is():
    wav = tone(0.5)
    joined, places = join([wav], [], RATE)
    np.testing.assert_array_equal(joined, wav)
    assert places == [(0, len(wav))]


def test_pauses_between_sounds_are_as_long_as_asked():
    joined, places = join([tone(0.5), tone(0.3, lead=0.0), tone(0.4, trail=0.0)], [0.18, 0.6], RATE)
    assert silences(joined) == pytest.approx([0.18, 0.6], abs=0.025)
    for (_, end), (start, _), pause in zip(places, places[1:], (0.18, 0.6), strict=False):
        assert (start - end) / RATE == pytest.approx(pause - 2 * FADE_SECONDS, abs=1e-3)
    assert places[-1][1] == len(joined)


@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_no_join_is_rougher_than_the_sound_itself(pause: float):
    """Tones that end and begin at full amplitude: put side by side they jump by twice that."""
    first, second = (tone(0.5, hertz, 0, 0) for hertz in (200, 310))
    second = -second
    raw = np.abs(np.diff(np.concatenate((first, second)))).max()
    joined, _ = join([first, second], [pause], RATE)
    own = max(np.abs(np.diff(w)).max() for w in (first, second))
    assert np.abs(np.diff(joined)).max() <= 1.5 * own < raw / 5


def test_a_cross_fade_keeps_the_power_of_different_sounds():
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((2, RATE)) * 0.1).astype(np.float32)
    joined, places = join([first, second], [0.0], RATE)
    fade = round(FADE_SECONDS * RATE)
    assert len(joined) == 2 * RATE - fade and places == [(0, RATE), (RATE - fade, len(joined))]
    assert joined[RATE - fade : RATE].std() == pytest.approx(0.1, rel=0.15)


def test_silent_and_very_short_segments_are_joined_too():
    joined, places = join([np.zeros(0, np.float32), tone(0.1), np.zeros(50, np.float32)], [0.0, 0.1], RATE)
    assert len(places) == 3 and np.isfinite(joined).all() and places[-1][1] == len(joined)


@pytest.mark.parametrize("seed", range(30))
def test_segments_that_come_in_pieces_are_joined_as_whole_ones_are(seed: int):
    rng, quiet = np.random.default_rng(seed), 1e-3

    def segment() -> np.ndarray:
        sound, edge = rng.standard_normal(int(rng.choice([0, 50, 400, 9_000]))), int(rng.integers(0, 6_000))
        return np.concatenate((np.zeros(edge), 0.2 * sound, quiet * rng.standard_normal(edge))).astype(np.float32)

    waves = [segment() for _ in range(int(rng.integers(1, 5)))]
    pauses = rng.choice([0.0, 0.005, 0.3], size=len(waves) - 1).tolist()
    whole, places = join(waves, pauses, RATE)
    joiner, out = Joiner(pauses, RATE), []
    for wav in waves:
        cuts = np.sort(rng.integers(0, len(wav) + 1, size=5))
        pieces = np.split(wav, cuts)
        out += [joiner.push(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)]
    np.testing.assert_array_equal(np.concatenate(out), whole)
    assert joiner.places == places and places[-1][1] == len(whole)


def test_sound_is_held_back_no_longer_than_a_join_needs():
    joiner = Joiner([0.2], RATE)
    sound = tone(1.0, lead=0.0, trail=0.0)
    assert len(joiner.push(sound)) >= len(sound) - 0.03 * RATE
    assert len(joiner.push(np.zeros(RATE, dtype=np.float32))) <= 0.03 * RATE, "it may be the silence at the end"
    assert len(joiner.push(np.zeros(0, dtype=np.float32), last=True)) == pytest.approx(0.2 * RATE, abs=0.03 * RATE)
    joiner.push(np.zeros(RATE, dtype=np.float32))
    assert len(joiner.push(sound)) >= len(sound), "the last one is waited for no longer than its beginning"


def test_the_outer_edges_stay():
    wav = tone(0.5, lead=0.2, trail=0.3)
    joined, _ = join([wav, wav], [0.1], RATE)
    loud = np.flatnonzero(np.abs(joined) > 0.02)
    assert loud[0] == pytest.approx(0.2 * RATE, abs=200) and len(joined) - loud[-1] == pytest.approx(
        0.3 * RATE, abs=200
    )
