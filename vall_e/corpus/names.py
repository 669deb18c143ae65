"""Names of any characters → names that are safe in file names and unique."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_LONGEST_ID = 80


def spellings(name: str) -> list[str]:
    """A name as it is, composed (NFC) and decomposed (NFD): folders that were on a Mac have decomposed names, tables
    and other systems composed ones."""
    return list(dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))))


class Names:
    """Letters and digits of ASCII, ``.``, ``_`` and ``-`` stay. A name that had to be changed, or that would differ
    from another one in case only, has eight digits of its hash behind it.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._used: set[str] = set()

    def safe(self, raw: str) -> str:
        """The name for ``raw``: always the same one for the same ``raw``."""
        if raw in self._given:
            return self._given[raw]
        plain = unicodedata.normalize("NFKD", raw).encode("ascii", "ignore").decode()
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", plain.replace("/", "_")).strip("._-")[:_LONGEST_ID]
        if name != raw.replace("/", "_") or name.casefold() in self._used:
            name = f"{name or 'x'}-{hashlib.sha256(raw.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        self._given[raw] = name
        self._used.add(name.casefold())
        return name
