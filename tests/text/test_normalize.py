"""Written text becomes spoken words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vall_e.text.normalize import normalize, words_for_scoring


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("7", "seven"),
        ("Seven, THREE -- nine!", "seven three nine"),
        ("it\u2019s \u201cfine\u201d", "it's fine"),
        ("In 1455, Mr. Smith", "in fourteen fifty five mister smith"),
        ("1,234,567", "one million two hundred and thirty four thousand five hundred and sixty seven"),
        ("3.14", "three point one four"),
        ("the 2nd of 21", "the second of twenty one"),
        ("$2.50 & 50%", "two dollars and fifty cents and fifty percent"),
        ("at 3:30", "at three thirty"),
        ("007", "zero zero seven"),
        ("12345678901234567890", "one two three four five six seven eight nine zero " * 2),
        ("-5 and b2b", "minus five and b two b"),
        ("\uff12\uff10 \u0663", "twenty three"),
        ("well-known 'quoted' rock'n'roll", "well known quoted rock'n'roll"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("\u2026 !? \n\t", ""),
        ("", ""),
    ],
)
def test_english(text: str, spoken: str) -> None:
    assert normalize(text, "en-us") == spoken.strip()


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("in the 1990s and the '80s", "in the nineteen nineties and the eighties"),
        ("the 2000s, the 1900s", "the two thousands the nineteen hundreds"),
        ("St. Mary went to St. Louis", "saint mary went to saint louis"),
        ("He lives at 221B Baker St. in London", "he lives at two hundred and twenty one b baker street in london"),
        ("January 5, 2021", "january fifth twenty twenty one"),
        ("Jan. 22nd", "january twenty second"),
        ("on 5 January 2021", "on the fifth of january twenty twenty one"),
        ("2021-05-06", "the sixth of may twenty twenty one"),
        ("$1.5 million or £3.20", "one point five million dollars or three pounds and twenty pence"),
        ("$0.99, $1, €1.01", "ninety nine cents one dollar one euro and one cent"),
        ("10kg at 5 km/h and 20°C", "ten kilograms at five kilometers per hour and twenty degrees celsius"),
        ("1/2, 2\u00bd, 24/7", "one half two and a half twenty four seven"),
        ("3 p.m., 3:30pm, 3:00, 10:05", "three p m three thirty p m three o'clock ten oh five"),
        ("call (555) 123-4567", "call five five five one two three four five six seven"),
        ("+1 555 123 4567", "one five five five one two three four five six seven"),
        ("user@example.com", "user at example dot com"),
        ("pages 3-5, 1914-1918", "pages three to five nineteen fourteen to nineteen eighteen"),
        ("No. 5, no 6", "number five no six"),
        ("Dr. Who, i.e., etc.", "doctor who i e et cetera"),
        ("100 m in 5 s", "one hundred m in five s"),
        ("1000 or 205", "one thousand or two hundred and five"),
        ("May 45 come, and may 5 go", "may forty five come and may five go"),
        ("5 µm 😀 7 km", "five μm seven kilometers"),
    ],
)
def test_english_as_people_read_it(text: str, spoken: str) -> None:
    assert normalize(text, "en-gb") == spoken


LANGUAGES = [
    ("de", "12.500 Äpfel, 3,5 kg", "zwölftausendfünfhundert äpfel drei komma fünf kg"),
    ("de", "2,50 € oder 1.000 €", "zwei euro und fünfzig cent oder eintausend euro"),
    ("de", "am 5.6.2021, der 3. Mai", "am fünften juni zweitausendeinundzwanzig der dritte mai"),
    ("de", "1999 um 15:30 Uhr", "neunzehnhundertneunundneunzig um fünfzehn uhr dreißig"),
    ("de", "z. B. -5 %, Dr. Li", "zum beispiel minus fünf prozent doktor li"),
    ("fr-fr", "21", "vingt et un"),
    ("fr-fr", "12,50 €, 20 %", "douze euros et cinquante centimes vingt pour cent"),
    ("fr-fr", "le 1er mai 2020, à 15h30", "le premier mai deux mille vingt à quinze heures trente"),
    ("fr-fr", "M. Dupont, le 2e", "monsieur dupont le deuxième"),
    ("fr-fr", "1\u00a0000\u202f000", "un million"),
    ("es", "2,50 €, 3,14, 20 %", "dos euros con cincuenta céntimos tres coma uno cuatro veinte por ciento"),
    ("es", "Sr. López, el 5/6/2021", "señor lópez el cinco de junio de dos mil veintiuno"),
    ("it", "2,50 € il 01/05/2021", "due euro e cinquanta centesimi il primo maggio duemilaventuno"),
    ("it", "alle 15:30, 20%", "alle quindici e trenta venti per cento"),
    ("pt", "Sr. Silva: 20% às 2:30", "senhor silva vinte por cento às duas horas e trinta"),
    ("nl", "€ 2,50 op 05-06-2021", "twee euro vijftig cent op vijf juni tweeduizendeenentwintig"),
    ("pl", "20 €, 5.06.2021", "dwadzieścia euro piąty czerwca dwa tysiące dwadzieścia jeden"),
    ("ru", "$100, 21%, 22%, 15%", "сто долларов двадцать один процент двадцать два процента пятнадцать процентов"),
    ("ru", "5.06.2021", "пятое июня две тысячи двадцать первого года"),
    ("uk", "2,50 €", "два євро п'ятдесят центів"),
    ("cmn", "价格是12.50元，涨了100%", "价格是十二点五零元 涨了百分之一百"),
    ("cmn", "2021年5月6日下午3:30", "二零二一年五月六日下午三点三十分"),
    ("cmn", "我有2个苹果和$100", "我有两个苹果和一百美元"),
    ("ja", "価格は1,250円です。", "価格は千二百五十円です"),
    ("ja", "2021年5月6日、午後3時30分、50%", "二千二十一年五月六日 午後三時三十分 五十パーセント"),
    ("ko", "21", "이십일"),
    ("xx", "42 x", "4 2 x"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "spoken"), LANGUAGES)
def test_other_languages_read_what_they_write(language: str, text: str, spoken: str) -> None:
    assert normalize(text, language) == spoken
    assert normalize(spoken, language) == spoken


@pytest.mark.parametrize(
    "text",
    ["In 1455, Mr. Smith paid $2.50 for 12 books!", "it's 3:30", "x² + y₃ = ½", "№ 5 ™", "1990s, 3/4, a@b.org"],
)  # fmt: skip
@pytest.mark.parametrize("language", ["en-us", "de", "fr-fr", "cmn", "ja", "ar"])
def test_normalising_twice_changes_nothing_and_leaves_words_only(text: str, language: str) -> None:
    once = normalize(text, language)
    assert normalize(once, language) == once
    if language != "ar":  # num2words writes a comma of its own between Arabic words, and so do we not
        assert all(c.isalpha() or c in " '〇" for c in once)


def test_plain_text_loads_no_library() -> None:
    script = (
        "import sys\nfrom vall_e.text.normalize import normalize\n"
        "for language in ('en-us', 'de', 'cmn', 'ja'): assert normalize('Open the door', language) == 'open the door'\n"
        "sys.exit(bool({'wetext', 'kaldifst', 'num2words'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_scoring_words() -> None:
    assert words_for_scoring("It's 739.") == ["its", "seven", "hundred", "and", "thirty", "nine"]
    assert words_for_scoring("It's 739.", digits_apart=True) == ["its", "seven", "three", "nine"]
    assert words_for_scoring(" ... ") == []
    assert words_for_scoring("12", "cmn", digits_apart=True) == ["一", "二"]


@pytest.mark.parametrize(
    ("text", "language"), [("${}", "en-us"), ("$0{} million", "en-us"), ("€{}.50", "de"), ("{} €", "fr-fr")]
)
def test_a_sum_longer_than_anybody_reads_is_read_digit_by_digit(text: str, language: str) -> None:
    """Python makes no number of 4,301 digits."""
    found = normalize(text.format("9" * 4301), language).split()
    assert len(found) > 4301 and set(found[:4000]) <= {"nine", "zero", "neun", "neuf"} | {"eur"}


def test_sums_up_to_that_are_read_as_before() -> None:
    assert normalize("$1500 and $0.50 and $1.01 and £001 and $0", "en-us") == (
        "one thousand five hundred dollars and fifty cents and one dollar and one cent and one pound and zero dollars"
    )
