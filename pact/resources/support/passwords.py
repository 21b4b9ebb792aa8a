"""Passwords and user names in the options and the source of a mount: like the contents of closed files, only admins may
see them. Options stand also in ``was`` and ``took`` (see ``mount_options``).

The kernel does not say which options hold secrets; helpers give theirs similar names, hand on whole options in the
value of one of their own (``xlator-option=v.password=...``), or command lines (``ssh_command=...``).  # S2
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

HIDDEN: Final = "(hidden)"
#: A shorter word would be found in every text.
QUOTED_MIN: Final = 3
#: Options within options are followed so far; what lies deeper is hidden whole.
DEEP_MAX: Final = 8
#: Options whose value is a secret; an option that names a file (``passwd_file``, ``secretfile``) is only its place.
_OPTION: Final = re.compile(
    r"(?i)[\w.*-]*(?:pass(?!ive)|pwd|secret|token|username|credential|access_?key|api_?key|proxy_?user|command|cookie"
    r"|authorization|header)[\w.*-]*|user|key|pw|pin|psk|auth"
)
_PLACE: Final = re.compile(r"(?i).*(?:file|path|dir)")
#: ``scheme://user:password@host``, ``//user:password@host/share``, where a password may have any character, also ``@``
#: and ``/``; ``user%password@host``.
_BEFORE_HOST: Final = re.compile(r"(?s)((?:\A|[\w.+-]*:)//)([^/@]*[:%].*)@|\A([^/@\s]*[:%][^/@\s]*)@")
#: The same in the middle of a text: what stands between a scheme and a host.
_IN_TEXT: Final = re.compile(r"(\b[\w.+-]+://)[^\s/@\"'<>]*@")
#: ``?sig=...``, ``&token=...``
_QUERY: Final = re.compile(r"(?i)([?&;][\w.-]*(?:pass|pwd|secret|token|sig|key)[\w.-]*=)[^&;\s]+")


def shown_option(option: str, deep: int = 0) -> str:
    """The option in the form for everybody. ``deep``: in so many others."""
    name, _, value = option.partition("=")
    if not value:
        return option
    if _is_secret(name) or deep >= DEEP_MAX:
        return f"{name}={HIDDEN}"
    shown = shown_source(value)
    return f"{name}={shown_option(value, deep + 1) if shown == value else shown}"


def _is_secret(name: str) -> bool:
    return bool(_OPTION.fullmatch(name) and not _PLACE.fullmatch(name))


def shown_source(source: str) -> str:
    """The source in the form for everybody. Hosts, exports and labels stay."""
    shown = _BEFORE_HOST.sub(rf"\g<1>{HIDDEN}@", source) if "@" in source else source
    return _QUERY.sub(rf"\g<1>{HIDDEN}", shown)


def shown_text(text: str) -> str:
    """What a tool says, for everybody: of addresses in it neither users, passwords nor tokens."""
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _IN_TEXT.sub(rf"\g<1>{HIDDEN}@", text))


def option_secrets(option: str, deep: int = 0) -> list[str]:
    """The secret parts of the option."""
    name, _, value = option.partition("=")
    if not value:
        return []
    if _is_secret(name) or deep >= DEEP_MAX:
        return [value]
    return source_secrets(value) or option_secrets(value, deep + 1)


def source_secrets(source: str) -> list[str]:
    """The secret parts of the source."""
    before = [m.group(2) or m.group(3) for m in _BEFORE_HOST.finditer(source)] if "@" in source else []
    words = [word for pair in before for word in (pair, re.split("[:%]", pair, maxsplit=1)[1])]
    return words + [m.group(0)[len(m.group(1)) :] for m in _QUERY.finditer(source)]


def options_in(attrs: Mapping[str, Any]) -> Iterator[str]:
    """All options in a mount's attributes, wherever they stand."""
    took = attrs.get("took")
    rows = took.values() if isinstance(took, dict) else ()
    for row in (attrs.get("options"), attrs.get("was"), took, *rows):
        yield from (o for o in row if isinstance(o, str)) if isinstance(row, dict | list | tuple) else ()


def unquoted(text: str, *mounts: Mapping[str, Any] | None) -> str:
    """A text of pact or of a tool about mounts, without the secrets in their attributes."""
    words: dict[str, str] = {}
    for attrs in mounts:
        if attrs and isinstance(source := attrs.get("source"), str):
            words |= {source: shown_source(source)} | dict.fromkeys(source_secrets(source), HIDDEN)
        for option in options_in(attrs or {}):
            words |= {option: shown_option(option)} | dict.fromkeys(option_secrets(option), HIDDEN)
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, words[word]) if len(word) >= QUOTED_MIN else text
    return text


def _shown_options(options: Sequence[Any]) -> list[Any]:
    return [shown_option(o) if isinstance(o, str) else o for o in options]


def shown(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """A mount's attributes in the form for everybody; attributes of other kinds do not change."""
    out = dict(attrs)
    for key in ("options", "was"):
        if isinstance(attrs.get(key), list | tuple):
            out[key] = _shown_options(attrs[key])
    if isinstance(took := attrs.get("took"), dict):
        out["took"] = {
            shown_option(o): _shown_options(row) if isinstance(row, list | tuple) else row for o, row in took.items()
        }
    if isinstance(source := attrs.get("source"), str):
        out["source"] = shown_source(source)
    return out


def holds_secret(attrs: Mapping[str, Any]) -> bool:
    return shown(attrs) != dict(attrs)
