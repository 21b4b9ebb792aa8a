"""What people type, for every command's ``--help``. A test parses each line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "agent": ("pact agent --config /etc/pact/agent.toml", "pact agent --wait --timeout 30"),
    "aggregator": ("pact aggregator --config /etc/pact/aggregator.toml", "pact aggregator"),
    "keygen": ("pact keygen n001 --dir /etc/pact/keys", "pact keygen ann --dir ~/.config/pact"),
    "status": ("pact status", "pact status -v", "pact status --nodes n[001-128]"),
    "diff": ("pact diff", "pact diff c7 file:/etc/chrony.conf", "pact diff --nodes @rack7 --exit-code"),
    "commit": (
        'pact commit -m "more connections on the login nodes"',
        'pact commit sysctl:net.core.somaxconn -m "for a try" --ttl 4h',
        'pact commit --all --shared -m "agreed with bob"',
    ),
    "rollback": (
        "pact rollback --dry-run",
        "pact rollback c7 --force",
        "pact rollback c7 --shared",
        "pact rollback --to 1200 --trials keep --dry-run",
    ),
    "extend": ("pact extend 30m", "pact extend c7 c9 4h", "pact extend g7 1h"),
    "redo": ("pact redo c12 --dry-run", 'pact redo c12 -m "it was needed after all"'),
    "apply": (
        "pact apply change.toml --dry-run",
        'pact apply change.toml -m "new scratch"',
        'pact apply change.toml --nodes n[001-128] --require all -m "new scratch"',
    ),
    "declare": ("pact declare node.toml --dry-run", "pact declare node.toml --prune", "pact declare node.toml --take"),
    "show": ("pact show 41", "pact show 41 --resource file:/etc/hosts --restore /root/hosts.lost"),
    "adopt": ("pact adopt 'file:/etc/**' 'sysctl:**' 'mount:**'", "pact adopt file:/etc/chrony.conf"),
    "track": ("pact track", "pact track 'file:/etc/**' report", "pact track 'mount:**' enforce"),
    "export": ("pact export > node.toml", "pact --json export"),
    "consumers": ("pact consumers mount:/scratch", "pact consumers file:/etc/chrony.conf --timeout 60"),
    "emergency": (
        'pact emergency start --reason "the storage is down" --for 6h',
        'pact emergency start --reason "cooling" --nodes @rack7',
        'pact emergency end --commit -m "as it was left" --dry-run',
        "pact emergency end --rollback --all",
    ),
    "hold": (
        'pact hold place --reason "vendor on site" --for 2h',
        'pact hold place c7 --reason "until the meeting" --for 1d',
        "pact hold release",
        "pact hold release h2",
    ),
    "log": ("pact log -n 50", "pact log --since 2h --type rolled_back", "pact log --follow"),
    "watch": ("pact watch", "pact --json watch", "pact watch --nodes n[001-128]"),
    "check": ("pact check", "pact check --timeout 500ms", "pact check --nodes @compute"),
    "nodes": ("pact nodes", "pact nodes --forget n[007,009]"),
    "groups": ("pact groups", "pact groups g7", "pact groups --all"),
    "journal": (
        "pact journal verify",
        "pact journal verify /root/n001.jsonl",
        "pact journal export /root/n001.jsonl",
        "pact journal export > n001.jsonl",
        "pact journal import /root/n001.jsonl",
        "pact journal import /root/n001.jsonl --config /etc/pact/agent.toml",
    ),
}


#: What a new administrator begins with.
FIRST: Final = (
    "pact status",
    'pact commit -m "more connections on the login nodes"',
    "pact rollback --dry-run",
    "pact COMMAND --help",
)


def epilog(command: str, action: str = "") -> str:
    """``action``: only of this one, as in ``emergency start``."""
    begins = f"pact {command} {action}" if action else "pact "
    listed = EXAMPLES.get(command, ()) if command else FIRST
    lines = "".join(f"  {line}\n" for line in listed if line.startswith(begins))
    return f"examples:\n{lines}" if lines else ""
