"""After a write to one sysctl: what all declared ones cost to be compared, beside reading them as sysctl(8) does.

Every sysctl of ``net`` that can be read (1,000 and more on most machines) is declared. Nothing is written: comparing
costs the same whether something moved or not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from _beside import Figure, faster, figure, in_turns, main  # noqa: E402

from pact._fast import FileTable  # noqa: E402
from pact.agent.followers import Followers  # noqa: E402
from pact.resources.kinds.sysctl import name_of_path  # noqa: E402


def readable() -> list[bytes]:
    found = []
    for top, _, names in os.walk(b"/proc/sys/net"):
        for name in names:
            try:
                with open(top + b"/" + name, "rb") as file:
                    file.read()
            except OSError:
                continue
            found.append(top + b"/" + name)
    return found


def read_all(paths: list[bytes]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            file.read()


def run(quick: bool = False) -> list[Figure]:
    paths = readable()
    table = FileTable()
    moved: list[str] = []
    followers = Followers(table, lambda resource, owner: moved.append(resource))
    for key, path in enumerate(paths):
        table.put(key, path, True)
        followers.add(f"sysctl:{name_of_path(path)}", key)
    table.scan()

    def compare() -> None:
        followers.wrote("sysctl:net.ipv4.ip_forward", None)
        followers.find(0, everything=True)

    times = in_turns(5 if quick else 25, {"compare": compare, "read": lambda: read_all(paths)})
    followers.close()
    each_us = times["compare"] * 1000 / len(paths)
    return [
        figure(f"compare {len(paths):,} declared sysctls after a write", each_us, "us each"),
        faster("the same, beside reading each from Python", times["compare"], times["read"], 1),
    ]


if __name__ == "__main__":
    main(run)
