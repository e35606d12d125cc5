"""What the commands have in common: options, and how their values are written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import click

from skywave import config
from skywave.errors import ConfigError
from skywave.process.times import utc_today

from .settings import check_folder


def parse_day(_: click.Context, __: click.Parameter, value: Any) -> Any:
    """A day, or several."""

    def parse(text: str) -> date:
        try:
            return date.fromisoformat(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a day like 2026-11-24") from error

    if value is None or isinstance(value, date):
        return value
    return tuple(parse(text) for text in value) if isinstance(value, tuple) else parse(value)


def parse_time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """A time as µs since 1970; UTC unless it says otherwise."""
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a time like 2026-11-24T13:00:00Z") from error
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def parse_age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    """A number of days, like 90d."""
    if not value.endswith("d") or not value[:-1].isdecimal() or not 1 <= int(value[:-1]) <= 36_500:
        raise click.BadParameter(f"{value!r} is not a number of days like 90d")
    return timedelta(days=int(value[:-1]))


def parse_subset(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Part n of t, like 3/7; today/7 is another part each day."""
    if value is None:
        return None
    part, slash, parts = value.partition("/")
    if part == "today" and parts.isdecimal() and int(parts):
        part = str(utc_today().toordinal() % int(parts) + 1)
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{value!r} is not like 3/7 or today/7")
    return int(part), int(parts)


config_option = click.option(
    "--config", "path", required=True, type=click.Path(dir_okay=False), help="TOML file; see docs/archive.md."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def day_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--day, --from and --to."""
    for option in (
        click.option("--to", "last", callback=parse_day, help="Last day."),
        click.option("--from", "first", callback=parse_day, help="First day."),
        click.option("--day", "day", callback=parse_day, help="Only this day, like 2026-11-24 (UTC)."),
    ):
        command = option(command)
    return command


def first_and_last(day: date | None, first: date | None, last: date | None) -> tuple[date | None, date | None]:
    """First and last day meant by --day, --from and --to."""
    if day and (first or last):
        raise click.UsageError("give either --day or --from and --to")
    if first and last and last < first:
        raise click.UsageError("--to is before --from")
    return (day, day) if day else (first, last)


def parse_url(url: str) -> config.Store:
    """A target store: ``clickhouse://[user@]host[:port][/database][?password_file=…&ca_file=…]``,
    ``embedded:FOLDER[?database=…]`` or ``config:FILE``; raises ``ConfigError``."""
    if url.startswith("config:"):
        return config.load_store(url.removeprefix("config:"))
    try:
        parts = urlparse(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
        body: dict[str, Any] = {**options, "timeout": 600.0}
        if parts.password:
            raise ValueError("a password does not belong in a command line: give ?password_file=FILE")
        if parts.scheme == "embedded":
            check_folder(unquote(parts.path), f"--into {url}: its folder")
            body |= {"kind": "embedded", "path": unquote(parts.path)}
        elif parts.scheme == "clickhouse" and parts.hostname:
            body |= {"kind": "clickhouse", "host": parts.hostname}
            body |= {"port": parts.port} if parts.port else {}
            body |= {"user": unquote(parts.username)} if parts.username else {}
            body |= {"database": parts.path.strip("/")} if parts.path.strip("/") else {}
        else:
            raise ValueError("is none of clickhouse://, embedded: and config:")
        return config.parse(body, config.Store, f"--into {url}")
    except ValueError as error:
        raise ConfigError(
            f"--into {url}: {error}",
            "For example clickhouse://default@10.0.0.5:9000/telemetry?password_file=secret, or embedded:FOLDER.",
        ) from error
