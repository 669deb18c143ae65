"""``vall-e text`` shows how a text is read."""

from __future__ import annotations

import json
from pathlib import Path

from vall_e.cli import main
from vall_e.text.tokenizer import Tokenizer


def test_words_phones_and_what_is_not_known(capsys, tmp_path: Path) -> None:
    Tokenizer(["v", "ˈɛ", "n"]).save(tmp_path / "t.json")
    arguments = ["text", "7 привет!", "--language", "en-us", "--tokenizer", str(tmp_path / "t.json"), "--json"]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["words"] == "seven привет" and said["phones"][:2] == ["s", "ˈɛ"]
    assert said["unread"] == ["привет"] and {"s", "ə"} < set(said["unknown"])
    assert main(["text", "le weekend", "--language", "fr-fr"]) == 0
    assert "another language's rules: weekend" in capsys.readouterr().out
    assert main(["text", "7", "--language", "xx"]) == 1 and "does not speak 'xx'" in capsys.readouterr().err
    assert main(["text", "7", "--tokenizer", str(tmp_path / "none.json")]) == 1
