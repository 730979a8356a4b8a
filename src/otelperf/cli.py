"""The command line: one tuple of commands; errors become one message and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from otelperf import config, config_values
from otelperf.errors import ConfigError, OtelperfError

EXIT_ERROR = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class Command(NamedTuple):
    """A command: *arguments* are added to its parser only when it is the one called."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _agent(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if not settings.needs_tls:
        _leave_openssl_out()
    from otelperf import agent, logs

    logs.configure(settings.log.level, settings.log.format)
    return agent.run(settings)


def _leave_openssl_out() -> None:
    """Import http.client without ssl, as where Python was built without it: OpenSSL is 4 MiB of resident memory."""
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment] # the import system's way to say that there is none
    try:
        import http.client  # noqa: F401 # what counts is the first import
    finally:
        del sys.modules["ssl"]


def _doctor(arguments: argparse.Namespace) -> int:
    from otelperf import doctor

    return doctor.run(_settings(arguments), json=arguments.json)


def _savings(arguments: argparse.Namespace) -> int:
    from otelperf import savings

    return savings.run(arguments)


def _run_program(arguments: argparse.Namespace) -> int:
    from otelperf import run_command

    return run_command.run(_given(arguments), arguments.config, arguments.program)


def _config_show(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    rows = [(each, settings.value(each.key), settings.origin(each.key)) for each in config.SETTINGS]
    if arguments.json:
        _print_json({each.key: {"value": each.plain(value), "origin": origin} for each, value, origin in rows})
    else:
        _print_table(
            [("SETTING", "VALUE", "ORIGIN"), *((each.key, each.show(value), origin) for each, value, origin in rows)]
        )
    return 0


def _config_schema(_: argparse.Namespace) -> int:
    _print_json(config.schema())
    return 0


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2))


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _add_nothing(_: argparse.ArgumentParser) -> None:
    pass


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting, in a group for each section."""
    parser.usage = "%(prog)s [FLAG ...]"
    general = parser.add_argument_group("general")
    general.add_argument(
        config.FILE_FLAG, dest="config", metavar="FILE", help=f"settings file in YAML ({config.FILE_VARIABLE})"
    )
    groups = {"": general}
    for setting in config.SETTINGS:
        section = setting.key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section, config.SECTIONS[section].__doc__)
        if not setting.file_only:
            _add_flag(groups[section], setting)


def _add_flag(group: argparse._ArgumentGroup, setting: config.Setting) -> None:
    usual = setting.usual or setting.show(setting.default) or "none"
    text = f"{setting.doc} Default: {usual}.".replace("%", "%%")
    name = setting.kind.name
    options: dict[str, Any] = {"dest": setting.key, "default": argparse.SUPPRESS, "help": text}
    if setting.kind is config_values.BOOLEAN:
        options |= {"nargs": "?", "const": "true"}
    elif name == "list":
        options |= {"action": "append"}
    group.add_argument(setting.flag, metavar=name if "|" in name else name.upper(), **options)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs=argparse.REMAINDER, help="the program and its arguments, best after --")
    _add_settings(parser)
    parser.usage = "%(prog)s [FLAG ...] [--] PROGRAM [ARGUMENT ...]"


def _add_settings_and_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_settings(parser)


def _add_savings(parser: argparse.ArgumentParser) -> None:
    from otelperf import savings

    savings.add_arguments(parser)


def _add_config(parser: argparse.ArgumentParser) -> None:
    _add_commands(parser, CONFIG_COMMANDS)


CONFIG_COMMANDS: tuple[Command, ...] = (
    Command("show", "print each setting, its value and where it came from", _add_settings_and_json, _config_show),
    Command("schema", "print the JSON Schema of the settings file", _add_nothing, _config_schema),
)
COMMANDS: tuple[Command, ...] = (
    Command("agent", "sample this machine and its inference servers, and send what moves", _add_settings, _agent),
    Command("config", "show settings, print the schema of the settings file", _add_config, lambda _: 0),
    Command("run", "start a Python program, and measure it from inside", _add_run, _run_program),
    Command("doctor", "check that metrics can be read and arrive", _add_settings_and_json, _doctor),
    Command(
        "savings",
        "say what the gate would keep of series that you have, and how far off it would be",
        _add_savings,
        _savings,
    ),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Tell usage faults like all others: one line, without the usage text."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command]) -> None:
    parser.set_defaults(run=_print_help(parser))
    rooms = parser.add_subparsers(metavar="COMMAND")
    for command in commands:
        room = rooms.add_parser(
            command.name, help=command.help, description=_sentence(command.help), allow_abbrev=False
        )
        room.set_defaults(run=command.run)
        command.arguments(room)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _print_help(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def run(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    return run


class _Version(argparse.Action):
    """Print the version; it is looked up only then."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import otelperf

        print(f"otelperf {otelperf.__version__}")
        parser.exit()


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the command called gets its many flags."""
    parser = _Parser(prog="otelperf", description="A performance agent for AI inference.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    called = [
        command._replace(arguments=command.arguments if command.name in argv else _add_nothing) for command in COMMANDS
    ]
    _add_commands(parser, called)
    return parser


def _settings(arguments: argparse.Namespace) -> config.Settings:
    return config.load(_given(arguments), os.environ, arguments.config)


def _given(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings that were given as flags, and the flags that are none."""
    given = {key: value for key, value in vars(arguments).items() if key in config.BY_KEY}
    values = {key: ",".join(value) if isinstance(value, list) else value for key, value in given.items()}
    return {**values, **dict.fromkeys(arguments.unknown, "")}


def _unknown(extras: Sequence[str]) -> list[str]:
    """Return the flags among what argparse did not know; a word after a flag is taken for its value."""
    flags = [each.partition("=")[0] for each in extras if each.startswith("-")]
    if extras and not extras[0].startswith("-"):
        raise ConfigError(f"unexpected argument {extras[0]}")
    return flags


def _run(argv: Sequence[str]) -> int:
    arguments, extras = _parser(argv).parse_known_args(argv)
    arguments.unknown = _unknown(extras)
    if arguments.unknown and not hasattr(arguments, "config"):
        raise ConfigError("\n".join(f"unknown flag {flag}" for flag in arguments.unknown))
    run: Callable[[argparse.Namespace], int] = arguments.run
    code = run(arguments)
    sys.stdout.flush()
    return code


def _complain(error: OtelperfError) -> None:
    with suppress(OSError, ValueError):  # standard error may be closed
        for line in str(error).splitlines():
            print(f"otelperf: {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for trouble, 2 for a wrong setting or flag."""
    if sys.stdout is None:  # started with standard output closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 # open for as long as the process
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except OtelperfError as error:
        _complain(error)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at exit, when it flushes
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # as above
        _complain(OtelperfError(f"standard output takes nothing more: {error.strerror}"))
        return EXIT_ERROR
