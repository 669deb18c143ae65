"""The bundled recogniser on espeak-ng's speech."""

from __future__ import annotations

import numpy as np
import pytest

from vall_e.corpus.demo import Voice, speak
from vall_e.evaluation.asr import Recogniser, RecogniserError, _Heard
from vall_e.evaluation.error_rates import corpus_rate, word_errors
from vall_e.preparation import RecogniserConfig
from vall_e.text.normalize import words_for_scoring

Clip = tuple[np.ndarray, int]
PROMPT = "Seven, three, nine. Open the green window. Zero, four, eight, six, two. Look at the black table."
TEXTS = ["seven three nine", "open the green window", "four two eight", "look at the black table", "one six zero five"]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser(RecogniserConfig(batch_size=3, pad_seconds=0.25, max_new_tokens=32))


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    voice = Voice(name="a", voice="en-us+edward", rate=140, gap=4)
    return [speak(voice, text) for text in TEXTS]


def test_words_are_understood_in_every_window(recogniser: Recogniser, clips: list[Clip]) -> None:
    rate = clips[0][1]
    # The same speech in windows of 6, 10 and 30 seconds.
    for silence in (0, 5, 20):
        padded = [(np.concatenate([wav, np.zeros(silence * rate, np.float32)]), rate) for wav, _ in clips[:4]]
        heard = recogniser.transcribe(padded, PROMPT)
        errors = [word_errors(words_for_scoring(a), words_for_scoring(b)) for a, b in zip(TEXTS, heard, strict=False)]
        assert corpus_rate(errors) <= 0.1, (silence, heard)


def test_order_batch_and_level_do_not_change_a_text(recogniser: Recogniser, clips: list[Clip]) -> None:
    heard = recogniser.transcribe(clips, PROMPT)
    assert recogniser.transcribe(clips[::-1], PROMPT)[::-1] == heard
    assert recogniser.transcribe([clips[4]], PROMPT) == heard[4:]
    assert recogniser.transcribe([(clips[4][0] * 0.05, clips[4][1])], PROMPT) == heard[4:]


def test_bad_items_are_empty_and_cost_the_others_nothing(recogniser: Recogniser, clips: list[Clip]) -> None:
    bad: list[Clip] = [
        (np.zeros(16_000, np.float32), 16_000),
        (np.zeros(0, np.float32), 16_000),
        (np.full(8000, np.nan), 8000),
        (np.zeros((2, 100)), 16_000),
    ]
    heard = recogniser.transcribe([*bad[:2], clips[0], *bad[2:]], PROMPT)
    assert heard == ["", "", recogniser.transcribe([clips[0]], PROMPT)[0], "", ""]
    assert recogniser.transcribe([]) == []


def test_a_clip_that_breaks_the_decoder_costs_itself_only(
    recogniser: Recogniser, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = recogniser._encode, recogniser.transcribe(clips[:3], PROMPT)
    poison = len(clips[1][0]) * 16_000 // clips[1][1]

    def encode(pieces, window):
        if any(abs(len(piece.wav) - poison) < 3 for piece in pieces):
            raise RuntimeError("broken")
        return whole(pieces, window)

    monkeypatch.setattr(recogniser, "_encode", encode)
    with pytest.warns(UserWarning, match="broken"):
        assert recogniser.transcribe(clips[:3], PROMPT) == [expected[0], "", expected[2]]


def test_the_text_is_words_and_its_length_is_capped(recogniser: Recogniser, clips: list[Clip]) -> None:
    assert not any(c.isdigit() for text in recogniser.transcribe(clips) for c in text)
    short = Recogniser(RecogniserConfig(max_new_tokens=2, pad_seconds=0.25))
    heard = short.transcribe(clips[:2], PROMPT)
    assert all(1 <= len(short._tokenizer.encode(text)) <= 2 for text in heard), heard


def test_a_loop_ranks_below_anything_finished() -> None:
    loop, guess = _Heard("two, " * 20, -0.1, 0.0, True), _Heard("two, two", -1.5, 0.0, True)
    cut = _Heard("two", -0.1, 0.0, False)
    assert loop.runaway and cut.runaway and loop.doubtful and guess.doubtful and not guess.runaway
    assert max((loop, guess, cut), key=lambda heard: heard.rank) is guess
    assert _Heard("you", -1.2, 0.9, True).spoken == "" and _Heard("you", -0.2, 0.9, True).spoken == "you"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "de"}, "English only"),
        ({"model": "./no/such/folder"}, "no such folder"),
        ({"compute_type": "int3"}, "int3"),
    ],
)
def test_what_cannot_be_loaded_says_why(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RecogniserError, match=message):
        Recogniser(RecogniserConfig.model_validate(changes))
