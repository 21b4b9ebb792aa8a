"""Names by which browsers may call the page.

A person who can reach this server may have a stranger's page open, and its name may suddenly have this server's address
(DNS rebinding): the browser then lets that page read what it gets here. The name in the request is the stranger's, so
only names count that no stranger can own: addresses, names without a dot, this host's own name, names in its domain and
in those that its resolver searches, and what ``[aggregator] http_names`` lists.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from typing import Final

HOST: Final = re.compile(rb"\r?\n[Hh][Oo][Ss][Tt]:[ \t]*([^\r\n]*)")
RESOLVER_MAX: Final = 64 << 10
#: Of the header: a name or an address, and a port.
FORM: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]{1,253}?)\.?)(?::\d{1,5})?\Z")

#: Below a country's domain, everybody may own a name in these (``co.uk``, ``com.au``).
EVERYBODYS: Final = re.compile(r"(?:ac|co|com|edu|go|gob|gouv|gov|mil|ne|net|nom|or|org|sch)\.[a-z]{2}")


def called(request: bytes) -> str | None:
    """The name in a request's head, in lower case without its port; ``None`` without one, ``""`` for several or one
    that is none."""
    found = HOST.findall(request)
    if not found:
        return None
    match = FORM.match(found[0].decode("latin-1").strip()) if len(found) == 1 else None
    return "" if match is None else (match[1] or match[2]).lower()


def is_ours(name: str, names: Collection[str] = (), domains: Collection[str] = ()) -> bool:
    """Whether no stranger can own ``name``. ``domains``: one that is everybody's is none (``org``, ``co.uk``)."""
    if name in names or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        pass
    own = (d for d in domains if "." in d and EVERYBODYS.fullmatch(d) is None)
    return bool(name) and ("." not in name or any(name.endswith("." + d) for d in own))


def own_domains(host: str, resolver: str = "/etc/resolv.conf") -> frozenset[str]:
    """The domain of this host's name, and those in which its resolver searches. Nobody is asked for them."""
    found = {host.lower().partition(".")[2]}
    try:
        with open(resolver, encoding="utf-8", errors="replace") as f:
            for line in f.read(RESOLVER_MAX).splitlines():
                words = line.split()
                if words[:1] in (["search"], ["domain"]):
                    found.update(word.strip(".").lower() for word in words[1:])
    except OSError:
        pass
    return frozenset(found - {""})
