"""All benches, one table: ``python bench/run.py [--quick] [--json FILE] [NAME...]``.

Every figure is a ratio, or stands beside its goal, from this one run. A figure that misses its goal is shown as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # what benches share, also where this is run as ``-m bench.run``


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description="run the benches")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("names", nargs="*", help="for example: wheel norms scan handles agent attribution")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    failed = 0
    for path in sorted(HERE.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if args.names and name not in args.names:
            continue
        print(f"\n{name}", flush=True)
        try:
            figures = load(path).run(args.quick)
        except Exception as exc:  # one bench that cannot run must not hide the others
            print(f"  could not run: {exc}", file=sys.stderr)
            failed += 1
            continue
        results[name] = figures
        for f in figures:
            verdict = {True: "met", False: "MISSED", None: ""}[f.get("ok")]
            value = f"{f['value']:>12.4g} {f['unit']:<16} {f.get('goal', ''):<10}"
            print(f"  {f['name']:<68} {value} {verdict}", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
