"""The flags of ``otelperf savings``, and what of them cannot be meant."""

from __future__ import annotations

import argparse
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from otelperf import config_values
from otelperf.config_values import NUMBER, Kind
from otelperf.errors import ConfigError
from otelperf.savings.recording import in_calendar

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

_EPILOG = """\
examples:
  otelperf savings --url http://prometheus:9090 --selector '{job="vllm"}' --since 6h
  otelperf savings --url https://mimir/prometheus --header 'X-Scope-OrgID: team' --selector '{job=~"node|vllm"}' --price 0.16
  promtool tsdb dump-openmetrics /var/lib/prometheus | otelperf savings --file - --delta 2%,10% --json

docs/savings.md says what is counted and how errors are measured.
"""
_PERCENT = re.compile(rf"({NUMBER})%")
_LOOKBACK = 300.0  # s
_MOST = 1e12  # in any currency; more would not be a number any more once it is multiplied


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, in groups."""
    parser.usage = "%(prog)s (--url URL --selector SELECTOR | --file FILE) [FLAG ...]"
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    origin = parser.add_argument_group("what to read")
    origin.add_argument("--url", type=_of(config_values.URL), help="Prometheus, or what speaks its HTTP API")
    origin.add_argument(
        "--selector",
        action="append",
        metavar="SELECTOR",
        help="series to read, as in PromQL; may be given several times",
    )
    origin.add_argument(
        "--since",
        type=_of(config_values.PERIOD),
        metavar="DURATION",
        help="the last so much of time; 6h if no time is given",
    )
    origin.add_argument("--start", type=_moment, metavar="TIME", help="begin: RFC 3339, or Unix seconds")
    origin.add_argument("--end", type=_moment, metavar="TIME", help="end; now if not given")
    origin.add_argument(
        "--file",
        metavar="FILE",
        help="samples instead: a matrix in JSON, OpenMetrics, text with times, a promtool dump; - is stdin",
    )
    how = parser.add_argument_group("what to compare")
    how.add_argument(
        "--delta", type=_percentages, default="1%,5%,15%", metavar="LIST",
        help="shares that a gauge may move and a rate may be off unseen; default 1%%,5%%,15%%",
    )  # fmt: skip
    how.add_argument(
        "--scrape", type=_intervals, default="15s,30s,60s", metavar="LIST",
        help="scrape intervals to compare with; default 15s,30s,60s",
    )  # fmt: skip
    how.add_argument(
        "--window",
        type=_of(config_values.PERIOD),
        default=120.0,
        metavar="DURATION",
        help="window of rate(); default 2m",
    )
    how.add_argument(
        "--heartbeat", type=_heartbeat, default=50.0, metavar="DURATION", help="the gate's longest silence; default 50s"
    )
    how.add_argument("--price", type=_price, help="price of a million samples, in any currency")
    how.add_argument("--json", action="store_true", help="print JSON")
    access = parser.add_argument_group("how to reach it")
    access.add_argument(
        "--header", action="append", type=_header, default=[], metavar="'NAME: VALUE'", help="send a header"
    )
    access.add_argument("--bearer-token-file", metavar="FILE", help="file with a bearer token")
    access.add_argument("--basic-auth-file", metavar="FILE", help="file with user:password")
    access.add_argument("--certificate", metavar="FILE", help="trusted certificates (PEM) instead of the system's")
    access.add_argument("--client-certificate", metavar="FILE", help="our certificate (PEM)")
    access.add_argument("--client-key", metavar="FILE", help="its key (PEM)")
    access.add_argument(
        "--timeout",
        type=_of(config_values.PERIOD),
        default=60.0,
        metavar="DURATION",
        help="of each request; default 60s",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-series",
        type=_of(config_values.count(1, 10**9)),
        default=5000,
        metavar="N",
        help="refuse more; default 5000",
    )
    limits.add_argument(
        "--max-samples", type=_of(config_values.count(1, 10**12)), default=20_000_000, metavar="N",
        help="refuse more; default 20000000",
    )  # fmt: skip


def _typed(parse: Callable[[str], T], expected: str) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            return parse(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from error

    return read


def _of(kind: Kind[T]) -> Callable[[str], T]:
    return _typed(kind.parse, kind.expected)


def _read_moment(text: str) -> float:
    if re.fullmatch(NUMBER, text):
        seconds = float(text)
    else:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not in_calendar(seconds * 1000):
        raise ValueError
    return seconds


def _read_percentages(text: str) -> tuple[float, ...]:
    found = [_PERCENT.fullmatch(part.strip()) for part in text.split(",")]
    shares = {float(each[1]) / 100 for each in found if each}
    if not all(found) or max(shares) > 1:
        raise ValueError
    return tuple(sorted(shares))


def _read_intervals(text: str) -> tuple[float, ...]:
    found = {config_values.PERIOD.parse(part.strip()) for part in text.split(",")}
    if max(found) > _LOOKBACK:
        raise ValueError
    return tuple(sorted(found))


def _read_heartbeat(text: str) -> float:
    seconds = config_values.PERIOD.parse(text)
    config_values.within(seconds, 0.0, 110.0)
    return seconds


def _read_price(text: str) -> float:
    price = float(text)
    if not 0 <= price <= _MOST:
        raise ValueError
    return price


def _read_header(text: str) -> tuple[str, str]:
    name, sign, value = text.partition(":")
    if not (sign and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and value.isascii() and value.isprintable()):
        raise ValueError
    return name.lower(), value.strip()


_moment = _typed(_read_moment, "a time such as 2026-11-21T12:00:00Z, or Unix seconds, in the years 1970 to 9999")
_percentages = _typed(_read_percentages, "percentages up to 100%, such as 1%,5%")
_intervals = _typed(_read_intervals, "durations up to 5m (Prometheus' lookback), such as 15s,60s")
_heartbeat = _typed(_read_heartbeat, "a duration above 0, at most 110s")
_price = _typed(_read_price, "a number from 0 to 1e12")
_header = _typed(_read_header, "a header such as 'X-Scope-OrgID: team'")


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict one another. Raises ConfigError."""
    given = vars(arguments)
    if (arguments.url is None) == (arguments.file is None):
        raise ConfigError("give either --url, a Prometheus to read, or --file, samples (see otelperf savings --help)")
    if arguments.file is not None:
        for name in ("selector", "since", "start", "end"):
            if given[name] is not None:
                raise ConfigError(f"--{name} goes with --url: of a file all samples are taken")
    elif not arguments.selector:
        raise ConfigError("--selector is missing: which series to read, such as '{job=\"vllm\"}'")
    if arguments.since is not None and arguments.start is not None:
        raise ConfigError("give either --since or --start, not both")
    if arguments.client_key and not arguments.client_certificate:
        raise ConfigError("--client-key is given without --client-certificate")


def time_range(arguments: argparse.Namespace) -> tuple[int, int]:
    """Return begin and end in Unix ms. Raises ConfigError."""
    end = time.time() if arguments.end is None else arguments.end
    start = end - (arguments.since or 6 * 3600.0) if arguments.start is None else arguments.start
    first, last = round(start * 1000), round(end * 1000)
    if first >= last:
        raise ConfigError("the time begins at or after its end: see --start, --end")
    if first < 0:
        raise ConfigError(f"the time begins {-start:g} s before 1970: see --since, --end")
    return first, last


def headers(arguments: argparse.Namespace) -> Mapping[str, str]:
    """Return the headers to send, credentials from files included. Raises ConfigError."""
    found = dict(arguments.header)
    if arguments.basic_auth_file:
        login = _secret("--basic-auth-file", arguments.basic_auth_file)
        found["authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    if arguments.bearer_token_file:
        found["authorization"] = f"Bearer {_secret('--bearer-token-file', arguments.bearer_token_file)}"
    return found


def _secret(flag: str, name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text or not text.isprintable():
        raise ConfigError(f"{flag} {name}: expected one line of text")
    return text


def tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Return a context for https, None for the system's own or where no TLS is spoken. Raises ConfigError."""
    files: tuple[Any, ...] = (arguments.certificate, arguments.client_certificate, arguments.client_key)
    if not any(files):
        return None
    from otelperf.tls import context

    try:
        return context(*files)
    except ConfigError as error:  # it names the agent's settings
        message = str(error).partition("; check")[0]
        raise ConfigError(f"{message}; check --certificate, --client-certificate, --client-key") from error
