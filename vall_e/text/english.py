"""How English is written → how it is read: the rules before and around wetext's.

Plain numbers are num2words' ("two hundred and five", "zero"; wetext leaves out the and, and says oh and ten hundred).
So are sums of money, times, ordinals and dates, which wetext reads unlike people ("two point five dollars") or in
another order ("the fifth of january" for "January 5"), and decades, which it takes for seconds. Measures, fractions,
addresses and dates of figures alone go through wetext.
"""

from __future__ import annotations

import re

from vall_e.text.numerals import apart, cardinal, integer, spoken
from vall_e.text.transducers import verbalize

_ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "vs": "versus",
    "etc": "et cetera", "jr": "junior", "sr": "senior", "capt": "captain", "col": "colonel", "gen": "general",
    "lt": "lieutenant", "sgt": "sergeant", "maj": "major", "rev": "reverend", "hon": "honorable", "gov": "governor",
    "esq": "esquire", "ltd": "limited", "inc": "incorporated", "mt": "mount", "ft": "fort", "ave": "avenue",
    "blvd": "boulevard", "dept": "department", "approx": "approximately",
}  # fmt: skip
_SYMBOLS = {"&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "°": "degrees"}
_CURRENCY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_NO_PLURAL = ("yen", "sen")
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "|".join(m.capitalize() for m in _MONTHS) + r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"
# What wetext reads right; it takes "m" for minutes, and stops at signs that it does not know (µ).
_UNIT = (
    r"(?:[kcmn]m|[kcm]?m[23]|[km]?g|[kM]W|km/h|mph|(?:[MG])?Hz|[MGT]B|°\s?[CF]|lbs?|oz|ml|kbps|ha|min|ms|h|mA|ft|yd|mi)"
    r"(?![\w/])"
)

_ABBREVIATION = re.compile(r"\b(" + "|".join(map(re.escape, _ABBREVIATIONS)) + r")\.", re.IGNORECASE)
_SAINT = re.compile(r"\bSt\.(?=(\s+[A-Z])?)")
_NUMERO = re.compile(r"\b[Nn]os?\.\s?(?=\d)")
_GROUPS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?(?![\d:,.]?\d)"
_MONTH_DAY = re.compile(rf"\b({_MONTH})\s+{_DAY}")
_DAY_MONTH = re.compile(rf"\b(?:the\s+)?(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?({_MONTH})(?!\w)")
_DECADE = re.compile(r"(?<![\w.,])'?(\d\d|1\d\d|\d0|[12]\d\d0|[12]\d00)s\b")
_MONEY = re.compile(r"([$£€¥])\s?(\d+)(?:\.(\d+))?(?:\s?(thousand|million|billion|trillion)\b)?")
_CLOCK = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)(?:\s?([AaPp])\.?[Mm]\b\.?)?(?!:?\d)")
_HOUR = re.compile(r"\b(1[0-2]|[1-9])\s?([AaPp])\.?[Mm]\b\.?")
_ORDINAL = re.compile(r"\b(\d{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w-])(?:\+\d{1,3}(?:[ .-]\d{2,4}){2,4}|(?:\(\d{3}\)\s?|\d{3}[ .-])?\d{3}[.-]\d{4})(?![\w-])")
_MEASURE = re.compile(rf"(?<![\w.])-?\d+(?:\.\d+)?\s?{_UNIT}")
_FRACTION = re.compile(r"(?<![\w./-])(?:\d{1,3} )?(\d{1,3})/(\d{1,3})(?![\w/]|\.\d)")
_FIGURES = re.compile(r"(?<![\w./-])(?:\d{4}-\d\d-\d\d|\d{1,2}/\d{1,2}/\d{4})(?![\w/-])")
_ADDRESS = re.compile(r"(?:https?://|www\.)[\w./-]*\w|[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_RANGE = re.compile(r"(?<![\w.,:/-])(\d+)\s?[-–]\s?(\d+)(?![\w:/-]|[.,]\d)")
_DIGITS = re.compile(r"\d")


def words(text: str) -> str:
    """English ``text`` (NFKC) with abbreviations and numbers as words, but for numbers that stand alone.

    >>> words("In the 1990s Dr. Li ran 10 km on January 5")
    'In the  nineteen nineties  doctor Li ran  ten kilometers  on  january fifth '
    """
    text = _SAINT.sub(_saint, _NUMERO.sub("number ", text))
    if _DIGITS.search(text):
        text = _MONTH_DAY.sub(_month_day, _GROUPS.sub("", text).replace("⁄", "/"))
        text = _DAY_MONTH.sub(_day_month, text)
    text = _ABBREVIATION.sub(lambda m: _ABBREVIATIONS[m[1].lower()], text)
    if "@" in text or "www." in text or "://" in text:
        text = _ADDRESS.sub(_verbalized, text)
    if _DIGITS.search(text):
        text = _FRACTION.sub(lambda m: _verbalized(m) if int(m[1]) < int(m[2]) else m[0], text)
        text = _FIGURES.sub(_verbalized, text)
        text = _PHONE.sub(lambda m: f" {apart(re.sub(r'[^0-9]', '', m[0]), 'en')} ", text)
        text = _DECADE.sub(_decade, _MONEY.sub(_money, text))
        text = _HOUR.sub(lambda m: f" {spoken(int(m[1]), 'en')} {m[2]} m ", _CLOCK.sub(_clock, text))
        text = _MEASURE.sub(_verbalized, text)
        text = _ORDINAL.sub(lambda m: f" {spoken(int(m[1]), 'en', to='ordinal')} ", text)
        text = _RANGE.sub(r"\1 to \2", text)
    return text


def symbols(text: str) -> str:
    """Signs that are read, as words."""
    for symbol, word in _SYMBOLS.items():
        text = text.replace(symbol, f" {word} ")
    return text


def _verbalized(match: re.Match[str]) -> str:
    return f" {verbalize(match[0], 'en')} "


def _saint(match: re.Match[str]) -> str:
    """Before a name it is a saint; behind one, a street."""
    before = match.string[: match.start()].split()
    behind_name = len(before) > 1 and before[-1][0].isupper() and before[-1][-1].isalpha()
    return "street" if match[1] is None or behind_name else "saint"


def _month(name: str) -> str:
    return next(month for month in _MONTHS if month.startswith(name[:3].lower()))


def _month_day(match: re.Match[str]) -> str:
    if not 1 <= int(match[2]) <= 31:
        return match[0]
    return f" {_month(match[1])} {spoken(int(match[2]), 'en', to='ordinal')} "


def _day_month(match: re.Match[str]) -> str:
    if not 1 <= int(match[1]) <= 31:
        return match[0]
    return f" the {spoken(int(match[1]), 'en', to='ordinal')} of {_month(match[2])} "


def _decade(match: re.Match[str]) -> str:
    digits = match[1]
    if not digits.endswith("0"):
        return match[0]
    said = spoken(int(digits), "en", to="year") if len(digits) == 4 else spoken(int(digits), "en")
    return f" {said[:-1]}ies " if said.endswith("y") else f" {said}s "


def _money(match: re.Match[str]) -> str:
    (unit, small), whole, cents, magnitude = _CURRENCY[match[1]], match[2].lstrip("0"), match[3], match[4]
    if magnitude or (cents and len(cents) != 2):
        amount = integer(match[2], "en") + (f" point {apart(cents, 'en')}" if cents else "")
        return f" {amount} {magnitude or ''} {_plural(unit, '2')} "
    cents = (cents or "").lstrip("0")
    parts = [(whole or "0", unit)] if whole or not cents else []
    parts += [(cents, small)] if cents else []
    said = " and ".join(f"{cardinal(count, 'en')} {_plural(name, count)}" for count, name in parts)
    return f" {said} "


def _plural(unit: str, count: str) -> str:
    return unit if count == "1" or unit in _NO_PLURAL else {"penny": "pence"}.get(unit, unit + "s")


def _clock(match: re.Match[str]) -> str:
    hour, minute, half = int(match[1]), match[2], match[3]
    if minute == "00":
        tail = "" if half else "o'clock"
    else:
        tail = f"oh {spoken(int(minute), 'en')}" if minute[0] == "0" else spoken(int(minute), "en")
    return f" {spoken(hour, 'en')} {tail} " + (f"{half} m " if half else "")
