"""How languages other than English, Chinese and Japanese write numbers, and the words that num2words does not have.

A row of ``TABLE`` a language. In one without a row numbers are num2words', with a decimal comma that is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vall_e.text.numerals import LONGEST_NUMBER, apart, integer, spoken

_WHOLE = r"\d{1,3}(?:[. ']\d{3})+(?!\d)|\d+"


def _sum(side: str) -> str:
    return rf"(?P<{side}whole>{_WHOLE})(?:[,.](?P<{side}cents>\d\d)(?!\d))?"


_CODES = {"$": "USD", "£": "GBP", "€": "EUR", "¥": "JPY", "EUR": "EUR", "USD": "USD", "GBP": "GBP"}
_SIGN = r"(?<![A-Za-z])[$£€¥]|\b(?:EUR|USD|GBP)\b"
_MONEY = re.compile(rf"(?P<before>{_SIGN})\s?{_sum('a')}|(?<![\w.,]){_sum('b')}\s?(?P<behind>{_SIGN})")
_DATE = re.compile(r"(?<![\w./-])(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?![\w/-]|\.\d)")
_ISO = re.compile(r"(?<![\w./-])(\d{4})-(\d\d)-(\d\d)(?![\w/-])")
_CLOCK = re.compile(r"(?<![\w:.,])([01]?\d|2[0-3])(?::|\s?h\s?)([0-5]\d)(?![\w:])(?:\s(?:[Uu]hr|uur|heures?|horas)\b)?")
_PERCENT = re.compile(rf"(?<![\w.,])(-?(?:{_WHOLE})(?:,\d+)?)\s?%")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:[,.']\d{3})+(?![\d])")


@dataclass(frozen=True)
class Written:
    """What a language adds to num2words.

    Attributes:
        minus, point: the words of a sign and of a decimal comma.
        percent: behind a number; three forms where the number asks for one (1, 2 to 4, 5 and up).
        months: twelve words, as they stand in a date.
        day: number of a day → words; ``before`` is the word in front of it.
        year: number of a year → words; None: as any number.
        linked: what stands between day, month and year.
        hour: the word behind the hour of a time.
        minutes: the word before its minutes.
        ordinal: what stands behind the figures of an ordinal number, a regular expression.
        abbreviations: lower case, without the last point → words.
    """

    minus: str
    point: str
    percent: str | tuple[str, str, str]
    months: tuple[str, ...]
    day: Callable[[int, str], str]
    year: Callable[[int], str] | None = None
    linked: str = " "
    hour: str = ""
    minutes: str = ""
    ordinal: str | None = None
    abbreviations: Mapping[str, str] = field(default_factory=dict)


def _months(names: str) -> tuple[str, ...]:
    return tuple(names.split())


def _german_day(day: int, before: str) -> str:
    stem = spoken(day, "de", to="ordinal").removesuffix("e")
    weak = {"der": "e", "die": "e", "das": "e"} | dict.fromkeys(("am", "vom", "zum", "dem", "den", "bis", "seit"), "en")
    return stem + weak.get(before.lower(), "er")


def _cardinal(language: str, first: bool = True) -> Callable[[int, str], str]:
    """Days are counted, but for the first one where a language names that."""
    return lambda day, _: spoken(day, language, to="ordinal") if first and day == 1 else spoken(day, language)


TABLE: dict[str, Written] = {
    "de": Written(
        "minus", "komma", "prozent",
        _months("januar februar märz april mai juni juli august september oktober november dezember"),
        _german_day, lambda year: spoken(year, "de", to="year"), hour="uhr",
        abbreviations={
            "z.b": "zum beispiel", "d.h": "das heißt", "usw": "und so weiter", "bzw": "beziehungsweise",
            "dr": "doktor", "prof": "professor", "hr": "herr", "fr": "frau", "nr": "nummer", "ca": "circa",
        },
    ),
    "fr": Written(
        "moins", "virgule", "pour cent",
        _months("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
        _cardinal("fr"), hour="heures", ordinal=r"(?:er|ère|re|e|ème|nde?)",
        abbreviations={"m": "monsieur", "mm": "messieurs", "etc": "et cetera", "av": "avenue", "dr": "docteur"},
    ),
    "es": Written(
        "menos", "coma", "por ciento",
        _months("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
        _cardinal("es", first=False), linked=" de ", ordinal="[oº]",
        abbreviations={
            "sr": "señor", "sra": "señora", "srta": "señorita", "dr": "doctor", "dra": "doctora", "ud": "usted",
            "uds": "ustedes", "etc": "etcétera", "núm": "número",
        },
    ),
    "it": Written(
        "meno", "virgola", "per cento",
        _months("gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"),
        _cardinal("it"), minutes="e", ordinal="[oº]",
        abbreviations={"sig": "signor", "dott": "dottor", "prof": "professor", "ecc": "eccetera", "s": "san"},
    ),
    "pt": Written(
        "menos", "vírgula", "por cento",
        _months("janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro"),
        _cardinal("pt"), linked=" de ", hour="horas", minutes="e", ordinal="[oº]",
        abbreviations={"sr": "senhor", "sra": "senhora", "dr": "doutor", "dra": "doutora", "etc": "et cetera"},
    ),
    "nl": Written(
        "min", "komma", "procent",
        _months("januari februari maart april mei juni juli augustus september oktober november december"),
        _cardinal("nl", first=False), lambda year: spoken(year, "nl", to="year"), hour="uur", ordinal=r"(?:e|de|ste)",
        abbreviations={"bijv": "bijvoorbeeld", "dhr": "de heer", "mevr": "mevrouw", "dr": "dokter", "enz": "enzovoort"},
    ),
    "pl": Written(
        "minus", "przecinek", "procent",
        _months("stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia"),
        lambda day, _: spoken(day, "pl", to="ordinal"),
        abbreviations={"np": "na przykład", "itd": "i tak dalej", "prof": "profesor", "ul": "ulica"},
    ),
    "ru": Written(
        "минус", "запятая", ("процент", "процента", "процентов"),
        _months("января февраля марта апреля мая июня июля августа сентября октября ноября декабря"),
        lambda day, _: spoken(day, "ru", to="ordinal", gender="n"),
        lambda year: f"{spoken(year, 'ru', to='ordinal', case='g')} года",
        abbreviations={"т.е": "то есть", "т.д": "так далее", "ул": "улица", "им": "имени"},
    ),
}  # fmt: skip


def words(text: str, language: str) -> str:
    """``text`` (NFKC) with abbreviations, sums of money, dates, times, shares and groups of digits as words or plain.

    Args:
        language: its first part, such as ``de``.
    """
    row = TABLE.get(language)
    if row is not None:
        text = _abbreviations(text, row.abbreviations)
    if not any(c.isdigit() for c in text):
        return text
    if row is not None:
        text = _ISO.sub(lambda m: _date(m, row, language, int(m[3]), int(m[2]), int(m[1])), text)
        text = _DATE.sub(lambda m: _date(m, row, language, int(m[1]), int(m[3]), int(m[4])), text)
        text = _day_in_words(text, row)
        text = _CLOCK.sub(lambda m: _clock(m, row, language), text)
        text = _PERCENT.sub(lambda m: f" {m[1]} {_form(row.percent, m[1])} ", text)
        if row.ordinal is not None:
            pattern = rf"(?<![\w.,])(\d{{1,6}}){row.ordinal}(?!\w)"
            text = re.sub(pattern, lambda m: f" {spoken(int(m[1]), language, to='ordinal') or m[0]} ", text)
    text = _MONEY.sub(lambda m: _money(m, language), text)
    return _GROUPS.sub(lambda m: re.sub(r"\D", "", m[0]), text)


def _abbreviations(text: str, table: Mapping[str, str]) -> str:
    if not table or "." not in text:
        return text
    names = "|".join(re.escape(name).replace(r"\.", r"\.\s?") for name in table)
    return re.sub(rf"(?<![\w.])({names})\.", lambda m: table["".join(m[1].lower().split())], text, flags=re.IGNORECASE)


def _date(match: re.Match[str], row: Written, language: str, day: int, month: int, year: int) -> str:
    if not (1 <= day <= 31 and 1 <= month <= 12):
        return match[0]
    before = match.string[: match.start()].split()
    said = spoken(year, language) if row.year is None else row.year(year)
    return f" {row.linked.join((row.day(day, before[-1] if before else ''), row.months[month - 1], said))} "


def _day_in_words(text: str, row: Written) -> str:
    """The day before a month's name: "am 3. Mai", "5 мая", "1er mai"."""
    names = "|".join(row.months)
    pattern = rf"(?P<before>\w*)(?P<gap>\s|^)(?P<day>[0-3]?\d)(?:\.|er|[oº])?\s(?P<of>de\s)?(?=(?:{names})(?!\w))"

    def said(match: re.Match[str]) -> str:
        day = int(match["day"])
        if not 1 <= day <= 31:
            return match[0]
        return f"{match['before']}{match['gap']}{row.day(day, match['before'])} {match['of'] or ''}"

    return re.sub(pattern, said, text, flags=re.IGNORECASE)


def _clock(match: re.Match[str], row: Written, language: str) -> str:
    hour, minute = int(match[1]), int(match[2])
    if hour == 1:
        said = {"de": "ein uhr", "fr": "une heure", "pt": "uma hora"}.get(language)
        said = said or f"{spoken(hour, language)} {row.hour}"
    else:
        said = f"{_feminine(spoken(hour, language), language)} {row.hour}"
    return f" {said} {f'{row.minutes} {spoken(minute, language)}' if minute else ''} "


def _feminine(hour: str, language: str) -> str:
    """Hours are feminine in Portuguese ("duas horas"); French counts them in "vingt et une"."""
    if language == "pt":
        return re.sub(r"dois$", "duas", re.sub(r"um$", "uma", hour))
    return re.sub(r"\bun$", "une", hour) if language == "fr" else hour


def _form(percent: str | tuple[str, str, str], number: str) -> str:
    if isinstance(percent, str):
        return percent
    if "," in number:
        return percent[1]
    last, tens = int(number[-1]), number[-2:-1] == "1"
    return percent[0] if last == 1 and not tens else percent[1] if 2 <= last <= 4 and not tens else percent[2]


def _money(match: re.Match[str], language: str) -> str:
    side = "a" if match["before"] else "b"
    code = _CODES[match["before"] or match["behind"]]
    whole, cents = re.sub(r"\D", "", match[f"{side}whole"]).lstrip("0") or "0", match[f"{side}cents"]
    said = ""
    if len(whole) <= LONGEST_NUMBER:
        said = spoken(float(f"{whole}.{cents or '00'}"), language, to="currency", currency=code)
    if not said:
        return f" {whole} {f'{cents} ' if cents else ''}{code.lower()} "
    if not cents or not int(cents):
        # num2words reads "20.00" with its cents: "zwanzig Euro und null Cent".
        said = re.sub(rf"(?:,|\s\w+)\s{spoken(0, language)}\s\w+$", "", said)
    return f" {said} "


def decimal(whole: str, fraction: str, language: str) -> str:
    """A number with a decimal comma, digit by digit behind it."""
    row = TABLE.get(language)
    return f"{integer(whole, language)} {row.point if row else ' '} {apart(fraction, language)}"
