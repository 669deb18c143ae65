"""How others write languages (BCP 47, ISO 639, ``en_US``) → espeak-ng's names, by which tables here call them."""

from __future__ import annotations

from functools import cache

from vall_e.text import espeak


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# What espeak-ng calls otherwise, and its nearest form of what it does not have.
_FORMS = _pairs("""
    en en-us  en-au en-gb  en-ie en-gb  en-in en-gb  en-nz en-gb  en-uk en-gb  en-za en-gb  fr fr-fr  no nb  sh hr
    zh cmn  zh-hk yue  zh-mo yue  zh-yue yue  iw he  in id  mo ro  arb ar  pes fa  ory or  swh sw  zsm ms
    es-ar es-419  es-bo es-419  es-cl es-419  es-co es-419  es-cr es-419  es-cu es-419  es-do es-419  es-ec es-419
    es-gt es-419  es-hn es-419  es-mx es-419  es-ni es-419  es-pa es-419  es-pe es-419  es-pr es-419  es-py es-419
    es-sv es-419  es-us es-419  es-uy es-419  es-ve es-419
""")
# ISO 639-2 and 639-3 → 639-1.
_ISO = _pairs("""
    afr af  amh am  ara ar  asm as  aze az  bak ba  bel be  bul bg  ben bn  bos bs  cat ca  ces cs  cze cs
    cym cy  wel cy  dan da  deu de  ger de  ell el  gre el  eng en  epo eo  spa es  est et  eus eu  baq eu
    fas fa  per fa  fin fi  fra fr  fre fr  gle ga  gla gd  grn gn  guj gu  heb he  hin hi  hrv hr  hat ht
    hun hu  hye hy  arm hy  ina ia  ind id  ido io  isl is  ice is  ita it  jpn ja  kat ka  geo ka  kaz kk
    kal kl  kan kn  kor ko  kur ku  kir ky  lat la  ltz lb  lit lt  lav lv  mri mi  mao mi  mkd mk  mac mk
    mal ml  mar mr  msa ms  may ms  mlt mt  mya my  bur my  nob nb  nor no  nep ne  nld nl  dut nl  ori or
    pan pa  pol pl  por pt  que qu  ron ro  rum ro  rus ru  snd sd  sin si  slk sk  slo sk  slv sl  sqi sq
    alb sq  srp sr  swe sv  swa sw  tam ta  tel te  tha th  tir ti  tuk tk  tsn tn  tur tr  tat tt  uig ug
    ukr uk  urd ur  uzb uz  vie vi  zho zh  chi zh
""")


@cache
def espeak_name(said: str) -> str | None:
    """espeak-ng's name of a language, or None where it does not speak it.

    A form that espeak-ng does not have is the usual one: ``de`` of ``de-AT``.

    >>> [espeak_name(said) for said in ("zh-CN", "pt_BR", "deu", "Klingon")]
    ['cmn', 'pt-br', 'de', None]
    """
    known = {name.lower(): name for name in espeak.languages()}
    first, *rest = said.strip().lower().replace("_", "-").split("-")
    parts = [_ISO.get(first, first), *rest]
    for count in range(len(parts), 0, -1):
        name = "-".join(parts[:count])
        if (name := _FORMS.get(name, name)) in known:
            return known[name]
    return None
