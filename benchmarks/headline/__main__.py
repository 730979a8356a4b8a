"""The claim that would convince an operator, tried: ``python -m benchmarks.headline``. docs/headline.md says what is measured."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.headline import public, report
from benchmarks.headline.public import PublicError
from benchmarks.headline.run import SATURATION, Record, run
from stack.parts import PartError
from stack.processes import ProcessError

MINUTES = 22.0
MODEL = "model"


def main() -> int:
    """Run, or read a run, and print the tables."""
    options = _options()
    try:
        alerts, boards = public.alerts(options.public), public.boards(options.public, MODEL)
        if options.read:
            record = Record(**json.loads(options.read.read_text()))
        else:
            with tempfile.TemporaryDirectory(prefix="otelperf-headline-") as folder:
                record = run(Path(folder), options.minutes * 60, alerts, boards)
    except (PublicError, PartError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.keep:
        options.keep.write_text(json.dumps(asdict(record)))
    text = report.everything(record, alerts)
    print(text)
    if options.write:
        report.write(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headline", description=(__doc__ or "").split(":")[0])
    usual = Path("~/.cache/otelperf/public").expanduser()
    parser.add_argument(
        "--public", type=Path, default=usual, help=f"folder of the rules and boards ({usual}): see public.yaml"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"how long ({MINUTES:g})")
    parser.add_argument("--keep", type=Path, help="write all answers into this file as JSON")
    parser.add_argument("--read", type=Path, help="make the tables of such a file instead of a run")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/headline.md")
    options = parser.parse_args()
    if options.minutes * 60 <= SATURATION[1] + 120 and options.write:
        parser.error("--write is for a whole run: without --minutes")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
