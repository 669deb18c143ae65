"""The bundled recogniser on espeak-ng's speech."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vall_e.corpus.demo import Voice, speak
from vall_e.evaluation.asr import Recogniser
from vall_e.evaluation.error_rates import corpus_rate, word_errors
from vall_e.evaluation.hearing import Hypothesis
from vall_e.evaluation.whisper import RecogniserError, load_whisper
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
    whole, expected = recogniser._encoder.encode, recogniser.transcribe(clips[:3], PROMPT)
    poison = len(clips[1][0]) * 16_000 // clips[1][1]

    def encode(clips, window):
        if any(abs(len(clip) - poison) < 3 for clip in clips):
            raise RuntimeError("broken")
        return whole(clips, window)

    monkeypatch.setattr(recogniser._encoder, "encode", encode)
    with pytest.warns(UserWarning, match="broken"):
        assert recogniser.transcribe(clips[:3], PROMPT) == [expected[0], "", expected[2]]


def test_the_text_is_words_and_its_length_is_capped(recogniser: Recogniser, clips: list[Clip]) -> None:
    assert not any(c.isdigit() for text in recogniser.transcribe(clips) for c in text)
    short = Recogniser(RecogniserConfig(max_new_tokens=2, pad_seconds=0.25))
    heard = short.transcribe(clips[:2], PROMPT)
    assert all(1 <= len(short._tokenizer("en").encode(text)) <= 2 for text in heard), heard


def test_a_loop_ranks_below_anything_finished() -> None:
    loop, guess = Hypothesis("two, " * 20, -0.1, 0.0, True), Hypothesis("two, two", -1.5, 0.0, True)
    cut = Hypothesis("two", -0.1, 0.0, False)
    assert loop.runaway and cut.runaway and loop.doubtful and guess.doubtful and not guess.runaway
    assert max((loop, guess, cut), key=lambda heard: heard.rank) is guess
    assert Hypothesis("you", -1.2, 0.9, True).spoken == "" and Hypothesis("you", -0.2, 0.9, True).spoken == "you"


def test_a_hearing_says_how_sure_it_is_and_when_words_were(recogniser: Recogniser, clips: list[Clip]) -> None:
    wav, rate = clips[1]
    silence = np.zeros(2 * rate, np.float32)
    near, far = recogniser.hear([(wav, rate), (np.concatenate([silence, wav]), rate)], PROMPT, words=True)
    for hearing, delay in ((near, 0.0), (far, 2.0)):
        (piece,) = hearing.pieces
        assert hearing.language == "en" and hearing.language_probability is None and hearing.error is None
        assert -1 < piece.heard.log_prob < 0 <= piece.heard.no_speech < 0.5
        assert words_for_scoring(" ".join(word.text for word in piece.words)) == words_for_scoring(piece.heard.text)
        times = [time for word in piece.words for time in (word.start, word.end)]
        # By attention the first word has the silence before it as well.
        assert times == sorted(times) and times[1] >= delay
        assert times[-1] <= delay + len(wav) / rate + 0.01
    assert recogniser.hear([(wav, rate)], PROMPT)[0].pieces[0].words is None


def test_a_language_is_detected_once_a_clip_where_it_is_not_given(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the detector: the bundled model knows English only."""
    recogniser = Recogniser(RecogniserConfig(language="auto", pad_seconds=0.25))
    assert recogniser.hear(clips[:1])[0].language_probability is None

    class Detector:
        calls = 0

        def __getattr__(self, name):
            return getattr(recogniser._model.__dict__["inner"], name)

        def detect_language(self, encoded):
            Detector.calls += 1
            return [[("<|en|>", 0.75), ("<|de|>", 0.25)]]

    monkeypatch.setitem(recogniser._model.__dict__, "inner", recogniser._model.model)
    monkeypatch.setattr(recogniser._model, "model", Detector())
    recogniser._multilingual = True
    recogniser._tokenizers = {"en": recogniser._tokenizers["en"]}
    found = recogniser.hear(clips[:2], languages=[None, "en"])
    assert [(h.language, h.language_probability) for h in found] == [("en", 0.75), ("en", None)]
    assert Detector.calls == 1 and all(h.text for h in found)


def test_a_clip_in_a_language_that_the_model_does_not_know_costs_itself_only(clips: list[Clip]) -> None:
    recogniser = Recogniser(RecogniserConfig(pad_seconds=0.25))
    german, english = recogniser.hear(clips[:1] * 2, languages=["de", "en"])
    assert "knows English only, and this is in de" in german.error and not german.pieces
    assert english.error is None and english.text


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


def test_of_several_gpus_whisper_takes_the_one_that_torch_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the model: there is no GPU here."""
    places = []
    monkeypatch.setattr("faster_whisper.WhisperModel", lambda folder, **how: places.append(how))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    for device in ("cuda", "cpu"):
        load_whisper(RecogniserConfig(), device)
    assert [(how["device"], how["device_index"]) for how in places] == [("cuda", 2), ("cpu", 0)]
