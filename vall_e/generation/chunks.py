"""Text of any length in pieces that a voice can speak at once: sentences, else clauses, else words, else phones.

Where to cut is chosen for all pieces together, as lines of a paragraph are broken (Knuth and Plass 1981): short of
the limit costs a piece the square of what it lacks, and a cut costs the more the less the text pauses there. A piece
is measured in phones. Nothing of the text is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate, groupby

Phones = Callable[[Sequence[str]], list[list[str]]]  # texts → phones of each, words apart by " "

INSIDE = 0.5  # a sentence that ends inside a piece, where the voice makes no pause of the right length
_OPENERS, _CLOSERS = "\"'“‘«([{「『（【¿¡", "\"'”’»)\\]}」』）】"
_TITLES = frozenset(  # what stands before a name or a number
    {
        *[
            "mr",
            "mrs",
            "ms",
            "mx",
            "dr",
            "prof",
            "st",
            "no",
            "nr",
            "nos",
            "fig",
            "vol",
            "pp",
            "ch",
            "capt",
            "col",
            "gen",
            "lt",
            "sgt",
            "rev",
            "hon",
            "vs",
            "ca",
            "approx",
        ]
    }
    | {*["hr", "fr", "mme", "mlle", "sig", "sra", "bzw", "vgl", "evtl", "inkl", "zzgl"]}
)
_MARK = re.compile(
    rf"(?P<spaced>[.!?…:;,؟،؛।۔]+)[{_CLOSERS}]*(?=\s|$)"
    rf"|(?P<wide>[。！？．，、；：]+)[{_CLOSERS}]*"
    r"|(?P<dash>\s[–—-]+(?=\s)|—)"
)
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")


class Mark(IntEnum):
    """What a piece of text ends with."""

    PHONE = 0
    WORD = 1
    CLAUSE = 2
    SENTENCE = 3
    PARAGRAPH = 4


_CUT = {Mark.PHONE: 4.0, Mark.WORD: 2.0, Mark.CLAUSE: 0.5, Mark.SENTENCE: 0.0, Mark.PARAGRAPH: 0.0}


@dataclass(frozen=True)
class Chunk:
    """A piece to speak at once.

    Attributes:
        text: as written.
        phones: of it, words apart by " ".
        mark: what it ends with.
    """

    text: str
    phones: tuple[str, ...]
    mark: Mark


@dataclass(frozen=True)
class _Unit:
    """What is not cut any further; ``count`` phones, which it names itself where it is a part of a word."""

    text: str
    mark: Mark
    count: int = 0
    phones: tuple[str, ...] | None = None


def cut(text: str, longest: int, phones: Phones) -> list[Chunk]:
    """The pieces of ``text``, none of more than ``longest`` phones; empty where nothing can be spoken.

    The text of a part of a word is as much of its letters as of its phones.
    """
    units = _counted([_Unit(*unit) for unit in marked(text)], phones)
    fine: list[_Unit] = []
    for unit in units:
        fine += [unit] if unit.count <= longest else _words(unit, longest, phones)
    groups = _pack(fine, longest)
    texts = ["".join(unit.text for unit in group).strip() for group in groups]
    spoken = phones(texts)
    chunks = []
    for group, whole, read in zip(groups, texts, spoken, strict=True):
        chunks.append(Chunk(whole, group[0].phones or tuple(read), group[-1].mark))
    return chunks


def cut_phones(phones: Sequence[str], longest: int) -> list[Chunk]:
    """As ``cut``, of a text that is given by its phones."""
    words = [list(run) for spoken, run in groupby(phones, key=lambda phone: bool(phone.strip())) if spoken]
    text = " ".join("\0".join(word) for word in words)  # inside words phones stay apart: "tʃ" is not "t", "ʃ"

    def read(texts: Sequence[str]) -> list[list[str]]:
        return [_joined([word.strip("\0").split("\0") for word in text.split()]) for text in texts]

    return [replace(chunk, text="".join(chunk.phones)) for chunk in cut(text, longest, read)]


def marked(text: str) -> Iterator[tuple[str, Mark]]:
    """The clauses of a text with what they end with. Joined they are the text, but for the breaks of paragraphs.

    A dot ends no sentence inside a number or a word, after a title or an initial, or before a small letter (unless
    the text has none but small letters).
    """
    cased = any(c.isupper() for c in text)
    for paragraph in _PARAGRAPH.split(text.strip()):
        at = 0
        for found in _MARK.finditer(paragraph):
            mark = _mark(paragraph, found, cased)
            if mark is not None and found.end() < len(paragraph):
                yield paragraph[at : found.end()], mark
                at = found.end()
        yield paragraph[at:], Mark.PARAGRAPH


def _mark(text: str, found: re.Match[str], cased: bool) -> Mark | None:
    if found["dash"]:
        return Mark.CLAUSE
    if found["wide"]:
        return Mark.SENTENCE if set(found["wide"]) & set("。！？．") else Mark.CLAUSE
    signs = found["spaced"]
    if not set(signs) & set(".!?…؟।۔"):
        return Mark.CLAUSE
    goes_on = cased and text[found.end() :].lstrip().lstrip(_OPENERS)[:1].islower()
    if signs == ".":
        before = text[: found.start()].split()[-1:] or [""]
        word = before[0].lstrip(_OPENERS)
        short = word.lower() in _TITLES or (len(word) == 1 and word.isalpha()) or "." in word.strip(".")
        return None if goes_on or (short and not word[-1:].isdigit()) else Mark.SENTENCE
    return Mark.CLAUSE if goes_on else Mark.SENTENCE


def _counted(units: Sequence[_Unit], phones: Phones) -> list[_Unit]:
    """Units with the number of their phones; one without any is joined to the one before or behind it."""
    out: list[_Unit] = []
    lead = ""
    for unit, read in zip(units, phones([unit.text for unit in units]), strict=True):
        count = len(read)
        if count:
            out.append(replace(unit, text=lead + unit.text, count=count))
            lead = ""
        elif out and out[-1].mark != Mark.PARAGRAPH:
            out[-1] = replace(out[-1], text=out[-1].text + unit.text, mark=max(out[-1].mark, unit.mark))
        else:
            lead += unit.text
    if out and lead:
        out[-1] = replace(out[-1], text=out[-1].text + lead)
    return out


def _words(unit: _Unit, longest: int, phones: Phones) -> list[_Unit]:
    words = [_Unit(word, Mark.WORD) for word in re.findall(r"\s*\S+", unit.text)]
    out: list[_Unit] = []
    for word in _counted(words, phones):
        out += [word] if word.count <= longest else _parts(word, phones([word.text])[0], longest)
    out[-1] = replace(out[-1], mark=unit.mark)
    return out


def _parts(word: _Unit, phones: Sequence[str], longest: int) -> list[_Unit]:
    count = -(-len(phones) // longest)
    out = []
    for i in range(count):
        sounds, letters = (slice(i * len(all_) // count, (i + 1) * len(all_) // count) for all_ in (phones, word.text))
        part = tuple(phones[sounds])
        out.append(_Unit(word.text[letters], Mark.PHONE, len(part), part))
    out[-1] = replace(out[-1], mark=word.mark)
    return out


def _pack(units: Sequence[_Unit], longest: int) -> list[Sequence[_Unit]]:
    """The cheapest way to join units into pieces of at most ``longest`` phones, gaps between units counted."""
    ends = [0, *accumulate(unit.count + 1 for unit in units)]
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the units so far: cost, first unit of the last piece
    for end in range(1, len(units) + 1):
        found, inside = [], 0
        for start in range(end - 1, -1, -1):
            size = ends[end] - ends[start] - 1
            joins = start < end - 1
            if joins and (size > longest or _alone(units[start]) or _alone(units[end - 1])):
                break
            if joins and units[start].mark == Mark.PARAGRAPH:
                break
            inside += joins and units[start].mark == Mark.SENTENCE
            cost = (max(0, longest - size) / longest) ** 2 + INSIDE * inside
            found.append((best[start][0] + cost + (_CUT[units[start - 1].mark] if start else 0.0), start))
        best.append(min(found))
    pieces, end = [], len(units)
    while end > 0:
        start = best[end][1]
        pieces.append(units[start:end])
        end = start
    return pieces[::-1]


def _alone(unit: _Unit) -> bool:
    return unit.phones is not None


def _joined(words: Sequence[Sequence[str]]) -> list[str]:
    return [phone for i, word in enumerate(words) for phone in ((" ", *word) if i else word)]
