"""Everything that leaves this process for somebody who is not an administrator: answers, records for the cluster,
records for hooks.

One rule: data that an ordinary account could not read by itself is left out. If something must stand in the place of a
content, it is a digest that cannot be computed without the key of this node (``nodekey``). The bare digest of a short
content reveals it: an attacker can try all possible contents. The keyed digest includes the name of the resource, so
that it cannot be compared with the digest of a file whose content the attacker chooses.  # S2

A record's hash is a bare digest of everything in the record. So a record that holds such data also holds a salt
(``pact.core.records.seal``), which is left out here: without it nobody can check guesses against the hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final

import orjson

from pact.agent.consumers import started_at
from pact.core import strict
from pact.core.node.closed import Names
from pact.core.node.events import Caller
from pact.core.records import SALT, not_for_all
from pact.model import Actor, Attrs, Owner, split_id
from pact.resources import KINDS
from pact.resources.support.passwords import QUOTED_MIN, option_secrets, options_in, source_secrets
from pact.resources.support.passwords import shown as without_passwords

HIDDEN: Final = "(hidden)"
KEYED: Final = "keyed:"
#: Receivers that get records without a request: the cluster as any viewer, hooks with the command lines of all.
VIEWER: Final = Caller(Actor("cluster", None, "viewer", "cluster"), Owner("cluster", "cluster"))
HOOKS: Final = Caller(Actor("hooks", None, "ops", "agent"), Owner("hooks", "hooks"))
#: The words of a command: they may say what its state is, or how it is come by.
WORDS: Final = ("observe", "restore", "users")
#: Fields that may have to be left out.
_PARTS: Final = frozenset(
    {
        SALT,
        "value",
        "reads",
        "target",
        *WORDS,
        "sha256",
        "size",
        "command",
        "xattrs",
        "parameters",
        "options",
        "source",
        "was",
        "took",
        "closed",
        "resources",
        "path",
    }
)
#: Fields that contain nothing secret, and are not searched.
_PLAIN: Final = frozenset({"owner", "actor", "xattrs", "parameters", "requires", "consumers", "settings"})
#: Texts for people in records and answers; they may quote data that is left out beside them.
_TEXTS: Final = frozenset({"notes", "left", "results", "reason", "why", "refused", "message"})


def is_secret(resource: str, attrs: Attrs | None) -> bool:
    """Whether not everybody may see its content: because of its attributes, of its mode, or of a closed directory on
    the way.  # S2"""
    kind, name = split_id(resource)
    known = KINDS[kind]
    return known.secret(attrs) or not known.reachable(name) or known.secret(known.marked(name, attrs))


def save_is_secret(resource: str, save: Mapping[str, Any]) -> bool:
    """Whether kept content is only for admins: because of its state when it was kept (a record without that is for
    admins only), or because of what its path is now.  # S2"""
    return bool(save.get("secret", True)) or is_secret(resource, save.get("attrs"))


def command_for(caller: Caller, uid: int | None, command: str) -> str:
    """Of other people's command lines, viewers see only the program's name."""
    if caller.actor.role != "viewer" or (uid is not None and uid == caller.owner.uid):
        return command
    return command.split(" ", maxsplit=1)[0].rpartition("/")[2]


def holder_for(caller: Caller, holder: Mapping[str, Any]) -> dict[str, Any]:
    uid = holder.get("uid")
    shown = {**holder, "command": command_for(caller, uid, str(holder.get("command", "")))}
    if holder.get("pid") and _has_ended(holder):
        shown["gone"] = True
    if caller.actor.role == "viewer" and uid != caller.owner.uid:
        shown["path"] = ""  # the names of files that other people have open are private
    return shown


def _has_ended(holder: Mapping[str, Any]) -> bool:
    """Whether the process has ended since it was recorded; its number may belong to another process now."""
    start = started_at(holder["pid"])
    return start is None or start != holder.get("start", start)


def world_readable(attrs: Mapping[str, Any]) -> bool:
    """Whether the mode, if known, lets everybody read it."""
    try:
        return bool(int(attrs.get("mode", "0644"), 8) & 0o004)
    except (TypeError, ValueError):
        return False  # another version accepted it


def masked_xattrs(xattrs: Mapping[str, str], *, readable: bool) -> dict[str, str]:
    """The kernel shows ``user.*`` to accounts that may read the file, ``trusted.*`` only to root, and the others to
    all."""
    closed = ("trusted.",) if readable else ("user.", "trusted.")
    return {k: HIDDEN if k.startswith(closed) else v for k, v in xattrs.items()}


def without_data(body: bytes, hash_: str) -> bytes:
    """A record that cannot be written as JSON again (nested too deeply: an older version accepted it), or that does not
    fit a frame: everything but its data, so that its number is not missing.  # S5"""
    record = strict.own(body)
    actor = {k: v for k, v in record["actor"].items() if isinstance(v, str)}
    return orjson.dumps(
        {**record, "actor": actor, "data": {"omitted": len(body)}, "hash": hash_}, option=orjson.OPT_SORT_KEYS
    )


class Veil:
    """Knows the key of this node. Any thread may call any method."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._older = Names()  # what records do not say is hidden, and is

    def hide(self, names: Iterable[str]) -> None:
        """These are hidden in every record, also in those of the version before, which have no mark. Call it at the
        start, before any other thread asks."""
        self._older = Names(names)

    def digest(self, resource: str, digest: str) -> str:
        """What stands for a content's digest: equal for the same content of the same resource on this node."""
        text = f"{resource}\0{digest}".encode("utf-8", "surrogatepass")
        return KEYED + blake2b(text, digest_size=32, key=self._key, person=b"pact content").hexdigest()

    def unnamed(self, value: Any, names: Names) -> Any:
        """A record or an answer with something else in the place of these names: equal for the same name on this node,
        so that one can follow what becomes of it."""
        return names.replaced(value, self._stand_in) if names else value

    def _stand_in(self, resource: str) -> str:
        name = blake2b(resource.encode(errors="surrogatepass"), digest_size=6, key=self._key, person=b"pact name")
        return f"{resource.partition(':')[0]}:{HIDDEN} {name.hexdigest()}"

    def attrs(self, resource: str, attrs: Attrs | None, *, secret: bool | None = None) -> Attrs | None:
        """Attributes in the form for callers who are not admins. ``secret``: whether the content is secret, if that is
        known."""
        if attrs is None:
            return None
        secret = is_secret(resource, attrs) if secret is None else secret
        out = {k: HIDDEN if secret and k in ("value", "reads", "target") else v for k, v in attrs.items()}
        if secret:
            out |= {k: [HIDDEN] for k in WORDS if isinstance(attrs.get(k), list)}
        if secret and "sha256" in attrs:
            out["sha256"] = self.digest(resource, attrs["sha256"])
        if secret and "size" in attrs:
            out["size"] = None
        if "parameters" in attrs:
            out["parameters"] = _masked_parameters(resource, attrs)
        if "xattrs" in attrs:
            out["xattrs"] = masked_xattrs(attrs["xattrs"], readable=not secret and world_readable(attrs))
        return without_passwords(out)

    def record_line(self, body: bytes, hash_: str, caller: Caller) -> bytes:
        """One record as a line of ``pact --json log``. Admins get exactly the bytes that were hashed, and the hash."""
        if caller.actor.role == "admin":
            return body[:-1] + b',"hash":"' + hash_.encode() + b'"}'
        try:
            record = strict.own(body)
            shown = self.unnamed(self.masked(record, caller) if not_for_all(body) else record, self._older)
            return orjson.dumps({**shown, "hash": hash_}, option=orjson.OPT_SORT_KEYS)
        except (orjson.JSONEncodeError, RecursionError):
            return without_data(body, hash_)

    def masked(self, value: Any, caller: Caller) -> Any:
        """A record or an answer without secrets and, for viewers, without other people's command lines.

        A secret in one place of it is left out everywhere. A record does not say whether the directories above a file
        were closed, so the values of ``user.*`` attributes and the targets of symbolic links are always left out.
        """
        found = _Secrets()
        found.look(value, "")
        masked = self.unnamed(self._masked(value, caller, found, "", False), Names(found.closed))
        return self.unnamed(masked, self._older)

    def told(self, message: str, result: Any) -> str:
        """The message of an answer, without what is left out of its result."""
        found = _Secrets()
        found.look(result, "")
        return found.unquoted(message)

    def _masked(self, value: Any, caller: Caller, found: _Secrets, resource: str, text: bool) -> Any:
        if isinstance(value, dict):
            return self._masked_dict(value, caller, found, resource, text)
        if isinstance(value, list | tuple):
            return [self._masked(item, caller, found, resource, text) for item in value]
        if text and isinstance(value, str):
            return found.unquoted(value)
        return value

    def _masked_dict(
        self, value: dict[str, Any], caller: Caller, found: _Secrets, resource: str, text: bool
    ) -> dict[str, Any]:
        resource = _named(value, resource)
        out: dict[str, Any] = {}
        for key, item in value.items():
            if key in _PARTS:
                out[key] = self._part(key, item, value, caller, found, resource, text)
            elif isinstance(item, dict | list | tuple):
                out[key] = self._masked(item, caller, found, _id_in(key) or resource, text or key in _TEXTS)
            elif isinstance(item, str) and (text or key in _TEXTS):
                out[key] = found.unquoted(item)
            else:
                out[key] = item
        return out

    def _part(
        self, key: str, item: Any, value: dict[str, Any], caller: Caller, found: _Secrets, resource: str, text: bool
    ) -> Any:
        """One field that may have to be left out, of a table that is about ``resource``."""
        secret = bool(value.get("secret")) or resource in found.resources
        if item is None or isinstance(item, bool):
            return item
        if (
            key == SALT
            or (key in ("value", "reads") and secret and not isinstance(item, dict))
            or (key == "target" and value.get("type") == "symlink")
        ):
            return HIDDEN
        if key in WORDS and secret and isinstance(item, list):
            return [HIDDEN]
        if key == "sha256" and isinstance(item, str):
            return self.digest(resource, item) if secret or not resource else item
        if key == "size" and isinstance(item, int):
            return None if secret or (not resource and "sha256" in value) else item
        if key == "command" and isinstance(item, str):
            return command_for(caller, value.get("uid"), item)
        if key == "xattrs" and isinstance(item, dict):
            return masked_xattrs(item, readable=False)
        if key == "parameters" and isinstance(item, dict):
            return _masked_parameters(resource, value)
        if key in ("options", "source") or (key == "was" and isinstance(item, list)) or key == "took":
            return without_passwords({key: item})[key]
        if key == "closed" and isinstance(item, list):
            return [HIDDEN] * len(item)
        if key == "resources" and isinstance(item, dict) and any(map(_in_closed, item.values())):
            names = (f"{HIDDEN} {n}" if _in_closed(v) else k for n, (k, v) in enumerate(item.items()))
            return {k: self._masked(v, caller, found, r, text) for k, (r, v) in zip(names, item.items(), strict=True)}
        if key == "path" and "how" in value and "pid" in value:
            return holder_for(caller, value)["path"]
        if key == "reads" and isinstance(item, dict):
            return {r: HIDDEN if r in found.resources else read for r, read in item.items()}
        return self._masked(item, caller, found, resource, text)

    def exported(self, resource: str, attrs: Attrs) -> tuple[Attrs, str]:
        """The attributes that ``export`` writes for callers who are not admins, in the form that ``declare`` reads; and
        a text that says what is left out."""
        secret, kept, gone = is_secret(resource, attrs), dict(attrs), list[str]()
        if secret and "sha256" in attrs:
            kept = {k: v for k, v in kept.items() if k not in ("sha256", "size")}
            gone.append("its content is not world-readable")
        if "parameters" in attrs:
            shown = _masked_parameters(resource, attrs)
            kept["parameters"] = {k: v for k, v in shown.items() if v != HIDDEN}
            if kept["parameters"] != shown:
                gone.append("not all of its parameters are world-readable")
        if "xattrs" in attrs:
            readable = masked_xattrs(attrs["xattrs"], readable=not secret and world_readable(attrs))
            kept["xattrs"] = {k: v for k, v in readable.items() if v != HIDDEN}
        kept = {k: v for k, v in kept.items() if k not in ("xattrs", "parameters") or v or v == attrs[k]}
        return kept, "; ".join(gone)


class _Secrets:
    """The secrets of one record or answer: resources, and words that texts may quote."""

    def __init__(self) -> None:
        self.resources: set[str] = set()
        self.closed: list[str] = []  # names that a record says are hidden
        self._words: set[str] = set()
        self._reachable: dict[str, bool] = {}

    def look(self, value: Any, resource: str) -> None:
        if isinstance(value, dict):
            resource = _named(value, resource)
            if resource:
                self._look_at(resource, value)
            if isinstance(source := value.get("source"), str):
                self._quote(source_secrets(source))
            self._quote(s for o in options_in(value) for s in option_secrets(o))
            if isinstance(closed := value.get("closed"), list):
                self.closed += [r for r in closed if isinstance(r, str)]
            for key, item in value.items():
                if isinstance(item, dict | list | tuple) and item and key not in _PLAIN:
                    self.look(item, _id_in(key) or resource)
        else:
            for item in value if isinstance(value, list | tuple) else ():
                if isinstance(item, dict | list | tuple):
                    self.look(item, resource)

    def _look_at(self, resource: str, value: Mapping[str, Any]) -> None:
        # A single word may occur in any text.
        if value.get("type") == "symlink" and "/" in (target := str(value.get("target"))):
            self._quote([target])
        if resource not in self.resources and self._is_secret(resource, value):
            self.resources.add(resource)

    def _quote(self, words: Iterable[str]) -> None:
        self._words.update(w for w in words if len(w) >= QUOTED_MIN)

    def unquoted(self, text: str) -> str:
        for word in sorted(self._words, key=len, reverse=True):
            text = text.replace(word, HIDDEN)
        return text

    def _is_secret(self, resource: str, value: Mapping[str, Any]) -> bool:
        """Whether this table is about the resource's attributes or its kept content and they are secret, or it is
        marked so."""
        kind, name = split_id(resource)
        if value.get("secret") is True:
            return True
        if "mode" in value and not world_readable(value) and KINDS[kind].has_content(dict(value)):
            return True
        if not isinstance(value.get("sha256"), str):
            return False
        if "attrs" in value:  # kept content: without a mark it is secret
            return bool(value.get("secret", True))
        return "mode" not in value or not self._can_reach(kind, name)

    def _can_reach(self, kind: str, name: str) -> bool:
        """Checked once for each directory of a record, so that a long record does not cost a path walk for each
        name."""
        above = f"{kind}:{name.rpartition('/')[0]}"
        if above not in self._reachable:
            self._reachable[above] = KINDS[kind].reachable(name)
        return self._reachable[above]


def _named(value: Mapping[str, Any], otherwise: str) -> str:
    """The resource that a table of a record or an answer is about."""
    named = value.get("resource") or value.get("id")
    return (_id_in(named) if isinstance(named, str) else "") or otherwise


def _id_in(text: str) -> str:
    if ":" not in text:
        return ""
    kind, colon, name = text.partition(":")
    return text if colon and name and kind in KINDS else ""


def _masked_parameters(resource: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters; those that were not world-readable when the record was made, or are not now, have no values."""
    secret: Any = attrs.get("secret")
    kind = _id_in(resource).partition(":")[0]
    if kind:
        now = KINDS[kind].marked(split_id(resource)[1], dict(attrs))
        now_secret = (now or {}).get("secret")
        secret = True if secret is True or now_secret is True else [*(secret or ()), *(now_secret or ())]
    return {k: HIDDEN if secret is True or k in (secret or ()) else v for k, v in attrs["parameters"].items()}


def _in_closed(row: Any) -> bool:
    """Whether the name in one row of ``untracked_seen`` is only for admins.  # S2"""
    return isinstance(row, dict) and "by" in row and bool(row.get("secret"))
