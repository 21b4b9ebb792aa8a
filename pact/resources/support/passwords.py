"""Passwords and user names in ``options`` and ``source``: like the contents of closed files, only admins may see them.

The kernel does not say which options hold secrets; helpers give theirs similar names.  # S2
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

HIDDEN: Final = "(hidden)"
#: A shorter word would be found in every text.
QUOTED_MIN: Final = 3
#: Options whose value is a secret; an option that names a file (``passwd_file``, ``secretfile``) is only its place.
_OPTION: Final = re.compile(
    r"(?i)[\w.-]*(?:pass(?!ive)|pwd|secret|token|username|credential|access_?key|api_?key)[\w.-]*|user|key"
)
_PLACE: Final = re.compile(r"(?i).*(?:file|path|dir)")
#: ``scheme://user:password@host``, ``//user:password@host/share``, ``user%password@host``.
_BEFORE_HOST: Final = re.compile(r"((?:\A|[\w.+-]*:)//|\A)([^/@\s]*[:%][^/@\s]*)@")
#: ``?sig=...``, ``&token=...``
_QUERY: Final = re.compile(r"(?i)([?&;][\w.-]*(?:pass|pwd|secret|token|sig|key)[\w.-]*=)[^&;\s]+")


def shown_option(option: str) -> str:
    """The option in the form for everybody."""
    name, equals, value = option.partition("=")
    if equals and value and _OPTION.fullmatch(name) and not _PLACE.fullmatch(name):
        return f"{name}={HIDDEN}"
    return shown_source(option) if equals and "@" in value else option


def shown_source(source: str) -> str:
    """The source in the form for everybody. Hosts, exports and labels stay."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _BEFORE_HOST.sub(rf"\g<1>{HIDDEN}@", source))


def option_secrets(option: str) -> list[str]:
    """The secret parts of the option."""
    name, equals, value = option.partition("=")
    if equals and value and _OPTION.fullmatch(name) and not _PLACE.fullmatch(name):
        return [value]
    return source_secrets(option) if equals and "@" in value else []


def source_secrets(source: str) -> list[str]:
    """The secret parts of the source."""
    before = [m.group(2) for m in _BEFORE_HOST.finditer(source)]
    words = [word for pair in before for word in (pair, re.split("[:%]", pair, maxsplit=1)[1])]
    return words + [m.group(0)[len(m.group(1)) :] for m in _QUERY.finditer(source)]


def unquoted(text: str, *mounts: Mapping[str, Any] | None) -> str:
    """A text of pact or of a tool about mounts, without the secrets in their attributes."""
    words: dict[str, str] = {}
    for attrs in mounts:
        if attrs and isinstance(source := attrs.get("source"), str):
            words |= {source: shown_source(source)} | dict.fromkeys(source_secrets(source), HIDDEN)
        options = attrs.get("options", ()) if attrs else ()
        for option in options if isinstance(options, list | tuple) else ():
            if isinstance(option, str):
                words |= {option: shown_option(option)} | dict.fromkeys(option_secrets(option), HIDDEN)
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, words[word]) if len(word) >= QUOTED_MIN else text
    return text


def shown(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A mount's attributes in the form for everybody; attributes of other kinds do not change."""
    out = dict(attrs)
    if isinstance(options := attrs.get("options"), Sequence) and not isinstance(options, str):
        out["options"] = [shown_option(o) if isinstance(o, str) else o for o in options]
    if isinstance(source := attrs.get("source"), str):
        out["source"] = shown_source(source)
    return out


def holds_secret(attrs: Mapping[str, Any]) -> bool:
    return shown(attrs) != dict(attrs)
