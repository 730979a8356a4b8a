"""`otelperf savings`: what the gate would keep of series that exist already, and how far off it would be; beside scrapes.

It reads only: from a Prometheus, or from a file of samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    from otelperf.savings import options

    options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, compare, print to standard output; return 0."""
    from otelperf.savings import command

    return command.run(arguments)
