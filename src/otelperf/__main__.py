"""``python -m otelperf`` is ``otelperf``."""

from otelperf.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
