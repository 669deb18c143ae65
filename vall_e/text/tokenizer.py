"""Phones ↔ ids. Ids are stable: 0 pad, 1 begin, 2 end, then the phones in sorted order, then an extension's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAD, BOS, EOS = 0, 1, 2
WORD_GAP = " "
_SPECIAL = ("<pad>", "<bos>", "<eos>")


class UnknownPhoneError(ValueError):
    """A phone was not in the corpus that the tokenizer was made from."""


@dataclass(frozen=True)
class UnknownPhone:
    """A phone that a tokenizer does not know: how often it occurs, and the first text that has it."""

    phone: str
    count: int
    example: str


class Tokenizer:
    """A closed set of phones.

    Args:
        phones: the known phones; order and repetitions do not matter.
    """

    def __init__(self, phones: Iterable[str]) -> None:
        self._order(sorted(set(phones) - set(_SPECIAL)))

    def _order(self, phones: Sequence[str]) -> Tokenizer:
        self.phones: tuple[str, ...] = tuple(phones)
        self._symbols = (*_SPECIAL, *self.phones)
        # A corpus of single words has no gap between words; where a loader joins them, the null id stands for it.
        self._ids = {WORD_GAP: PAD} | {symbol: index for index, symbol in enumerate(self._symbols)}
        return self

    @classmethod
    def fit(cls, corpus: Iterable[Sequence[str]]) -> Tokenizer:
        """The tokenizer of all phones that occur in ``corpus``, a list of phone lists."""
        return cls(phone for phones in corpus for phone in phones)

    def extend(self, phones: Iterable[str]) -> Tokenizer:
        """A tokenizer that knows ``phones`` as well: old ids stay, new ones come behind them in sorted order."""
        new = set(phones) - set(self.phones) - set(_SPECIAL)
        return Tokenizer(())._order([*self.phones, *sorted(new)])

    def validate(self, corpus: Iterable[tuple[str, Sequence[str]]]) -> list[UnknownPhone]:
        """The phones of ``corpus``, pairs of a text and its phones, that have no id: the most frequent first."""
        counts: dict[str, int] = {}
        examples: dict[str, str] = {}
        for text, phones in corpus:
            for phone in phones:
                if phone not in self._ids or phone in _SPECIAL:
                    counts[phone] = counts.get(phone, 0) + 1
                    examples.setdefault(phone, text)
        found = sorted(counts, key=lambda phone: (-counts[phone], phone))
        return [UnknownPhone(phone, counts[phone], examples[phone]) for phone in found]

    def __len__(self) -> int:
        return len(self._symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.phones == other.phones

    __hash__ = None  # type: ignore[assignment]

    def encode(self, phones: Sequence[str]) -> list[int]:
        """Ids of ``phones``, without begin and end.

        Raises:
            UnknownPhoneError: names the phones that the tokenizer does not know.
        """
        unknown = sorted({phone for phone in phones if phone not in self._ids or phone in _SPECIAL})
        if unknown:
            raise UnknownPhoneError(
                f"the model never saw the phones {' '.join(map(repr, unknown))}: "
                "use words whose sounds occur in its training texts"
            )
        return [self._ids[phone] for phone in phones]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Phones of ``ids``; pad, begin and end are left out. Raises ValueError for an id out of range."""
        out = []
        for index in map(int, ids):
            if not 0 <= index < len(self):
                raise ValueError(f"id {index} is outside the tokenizer's 0..{len(self) - 1}")
            if index >= len(_SPECIAL):
                out.append(self._symbols[index])
        return out

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps({"phones": self.phones}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote. Raises ValueError naming a file that is not a tokenizer."""
        try:
            phones = json.loads(Path(path).read_text(encoding="utf-8"))["phones"]
            if not all(isinstance(phone, str) for phone in phones):
                raise TypeError("phones are not strings")
            if len(set(phones) - set(_SPECIAL)) != len(phones):
                raise TypeError("a phone stands there twice, or is named like pad, begin or end")
        except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a tokenizer (JSON with a list 'phones'): {error}") from None
        return cls(())._order(phones)
