"""The command line: ``skywave-archive …``."""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from skywave import __version__
from skywave.cli import ErrorGroup
from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, SkywaveError
from skywave.service import setup_logging

from .archive import Archive, Workspace, utc_now, utc_today
from .settings import Archive as Settings
from .settings import load
from .tables import BY_DAY, TELEMETRY
from .target import open_target


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def main(log_level: str) -> None:
    """Every closed day of the store into HDFS or a folder, proven by digest, and back into any store.

    Exit codes: 0 done, 1 something is wrong with the data, 2 wrong usage or configuration, 75 try again later.
    """
    setup_logging(log_level)
    # A scheduler's stop ends a command like Ctrl-C does: the lock is given back and nothing is half done.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))


def _day(_: click.Context, __: click.Parameter, value: Any) -> Any:
    def parse(text: str) -> date:
        try:
            return date.fromisoformat(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not a day like 2026-11-24") from error

    if value is None or isinstance(value, date):
        return value
    return tuple(parse(text) for text in value) if isinstance(value, tuple) else parse(value)


def _time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        when = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a time like 2026-11-24T13:00:00Z") from error
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int((when - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def _age(_: click.Context, __: click.Parameter, value: str) -> timedelta:
    if not value.endswith("d") or not value[:-1].isdigit() or int(value[:-1]) < 1:
        raise click.BadParameter(f"{value!r} is not a number of days like 90d")
    return timedelta(days=int(value[:-1]))


def _subset(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    part, slash, parts = value.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise click.BadParameter(f"{value!r} is not like 3/7")
    return int(part), int(parts)


config_option = click.option(
    "--config", "path", required=True, type=click.Path(dir_okay=False), help="TOML file; see docs/archive.md."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def _day_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--to", "last", callback=_day, help="Last day."),
        click.option("--from", "first", callback=_day, help="First day."),
        click.option("--day", "day", callback=_day, help="Only this day, like 2026-11-24 (UTC)."),
    ):
        command = option(command)
    return command


def _span(day: date | None, first: date | None, last: date | None) -> tuple[date | None, date | None]:
    if day and (first or last):
        raise click.UsageError("give either --day or --from and --to")
    if first and last and last < first:
        raise click.UsageError("--to is before --from")
    return (day, day) if day else (first, last)


@dataclass
class Report:
    """What a command did, for its output, its exit code and its metrics."""

    settings: Settings
    command: str
    as_json: bool
    document: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    rows: int = 0
    bytes: int = 0
    oldest_open: date | None = None
    newest_verified: date | None = None
    started: float = field(default_factory=time.monotonic)

    def line(self, text: str) -> None:
        """One line for people; nothing with --json."""
        if not self.as_json:
            click.echo(text)

    def problem(self, error: SkywaveError, what: str = "") -> None:
        """One thing that went wrong and does not stop the rest."""
        self.exit_code = max(self.exit_code, error.exit_code) if self.exit_code != EXIT_DATA else EXIT_DATA
        self.document.setdefault("problems", []).append(f"{what}{error}")
        click.echo(f"Error: {what}{error}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)


@contextmanager
def _reported(path: str, command: str, as_json: bool) -> Iterator[tuple[Archive, Report]]:
    """Opens the archive; at the end prints the document, writes the metrics and exits with the report's code."""
    settings = load(path)
    report = Report(settings, command, as_json)
    code = EXIT_TRY_LATER
    try:
        yield Archive(open_target(settings.target)), report
        code = report.exit_code
    except SkywaveError as error:
        code = error.exit_code
        raise
    finally:
        if settings.metrics_file:
            from . import metrics

            metrics.write(
                settings.metrics_file, command, code, time.monotonic() - report.started, report.rows, report.bytes,
                report.oldest_open, report.newest_verified,
            )  # fmt: skip
    if as_json:
        click.echo(json.dumps({**report.document, "exit_code": report.exit_code}))
    sys.exit(report.exit_code)


def with_archive(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the archive and its report instead of a path."""

    @functools.wraps(command)
    def wrapped(path: str, as_json: bool, **options: Any) -> None:
        with _reported(path, command.__name__, as_json) as (archive, report):
            command(archive=archive, report=report, **options)

    return wrapped


@contextmanager
def _bar(report: Report, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    if report.as_json or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    done = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, done="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, completed=done, done=f"{done / 1e6:,.1f} M {unit}")

        yield advance


# -- export --------------------------------------------------------------------------------------------------------------


@main.command()
@config_option
@_day_options
@click.option("--all-closed", is_flag=True, help="Every closed day with rows not yet archived; the default.")
@click.option("--open-day", is_flag=True, help="Today so far, marked unsealed; tomorrow's export completes it.")
@click.option(
    "--anew", is_flag=True, help="With --day: put aside what the archive has of the day, and export it whole."
)
@dry_run_option
@json_option
@with_archive
def export(
    archive: Archive, report: Report, day: date | None, first: date | None, last: date | None, all_closed: bool,
    open_day: bool, anew: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Export closed days, oldest first; whatever was exported before is left as it is.

    Rows that came late for an archived day become an additional file. A day is published only when all shards were read
    and what was written is what they hold. Run it again at any time: it goes on where it was ended.
    """
    from .accounts import export_accounts
    from .export import DayResult, Exporter, plan, remember
    from .source import open_shards

    if ((all_closed or open_day) and (day or first or last)) or (all_closed and open_day):
        raise click.UsageError("give one of --day, --from/--to, --all-closed and --open-day")
    if anew and not day:
        raise click.UsageError("--anew needs --day")
    first, last = _span(day, first, last)
    today = utc_today()
    if (first and first > today) or (last and last > today):
        raise click.UsageError(f"that day has not come yet; today is {today} (UTC)")
    if open_day:
        first = last = today
    shards = open_shards(report.settings.stores())
    named = bool(first)
    if dry_run:
        plans = [plan(archive, shards, table, first, last, named) for table in BY_DAY.values()]
        days = [{"table": p.table.name, "day": d.isoformat()} for p in plans for d in p.days]
        for item in days:
            report.line(f"would look at {item['table']} {item['day']}")
        report.line(f"{len(days)} days")
        report.document = {"days": days}
        return
    results: list[DayResult] = []
    failed: list[date] = []
    with Workspace(archive.target, report.settings.export.lock_ttl) as work:
        for table in BY_DAY.values():
            todo = plan(archive, shards, table, first, last, named)
            if open_day and not any(today in found for found in todo.markers.values()):
                continue
            marks: dict[str, Any] = {}
            for wanted in todo.days:
                began = time.monotonic()
                markers = {name: found.get(wanted, "") for name, found in todo.markers.items()}
                with _bar(report, f"{table.name} {wanted}", None, "rows") as progress:
                    exporter = Exporter(archive, work, shards, report.settings.export, progress)
                    try:
                        result = exporter.export(table, wanted, markers, todo.generations.get(wanted, []), anew)
                    except SkywaveError as error:
                        if error.exit_code != EXIT_DATA:
                            remember(archive, work, marks)
                            raise
                        report.problem(error, f"{table.name} {wanted}: ")
                        results.append(DayResult(table.name, wanted, "failed", note=str(error)))
                        failed.append(wanted)
                        continue
                result.seconds = round(time.monotonic() - began, 2)
                results.append(result)
                if result.outcome != "unsealed" and wanted < today:
                    now = {name: found[wanted] for name, found in todo.markers.items() if wanted in found}
                    generation = archive.generations(table.name)[wanted][-1]
                    marks[f"{table.name}/{wanted}"] = {"generation": generation, "shards": now}
                if result.outcome == "unsealed":
                    report.exit_code = report.exit_code or EXIT_TRY_LATER
                report.rows += result.new_rows
                report.bytes += result.bytes
                report.line(_export_line(result))
            remember(archive, work, marks)
        accounts = export_accounts(archive, work, shards)
    for shard in shards:
        shard.close()
    report.oldest_open = min([*failed, *(r.day for r in results if r.outcome == "unsealed")], default=None)
    if not results:
        report.line("nothing new")
    report.document |= {"days": [result.as_json() for result in results], "accounts": accounts}


def _export_line(result: Any) -> str:
    rate = f" at {result.new_rows / result.seconds / 1e6:.2f} M rows/s" if result.seconds and result.new_rows else ""
    note = f"; {result.note}" if result.note else ""
    return (
        f"{result.table} {result.day}: {result.outcome}, {result.rows:,} rows ({result.new_rows:,} new),"
        f" {result.bytes / 1e6:,.1f} MB, {result.seconds:.1f} s{rate}{note}"
    )


# -- list, verify --------------------------------------------------------------------------------------------------------


@main.command("list")
@config_option
@_day_options
@click.option("--no-store", is_flag=True, help="Do not ask the store which days it has.")
@json_option
@with_archive
def list_(
    archive: Archive, report: Report, day: date | None, first: date | None, last: date | None, no_store: bool
) -> None:
    """List archived days: generations, rows, bytes, sealed, verified when; and days that only the store has."""
    from .source import open_shards

    first, last = _span(day, first, last)
    state = archive.state()
    rows = []
    held: dict[date, set[str]] = {}
    if not no_store:
        for shard in open_shards(report.settings.stores()):
            for found in shard.markers(TELEMETRY):
                held.setdefault(found, set()).add(shard.name)
            shard.close()
    for table in BY_DAY:
        generations = archive.generations(table)
        for found, manifest in archive.manifests(table):
            if (first and found < first) or (last and found > last):
                continue
            entry: dict[str, Any] = {"table": table, "day": found.isoformat(), "generations": len(generations[found])}
            if isinstance(manifest, SkywaveError):
                entry |= {"status": "broken", "problem": str(manifest)}
                report.exit_code = EXIT_DATA
            else:
                verified = archive.verified(manifest, state)
                entry |= {
                    "status": "sealed" if manifest.sealed else "unsealed", "rows": manifest.rows,
                    "bytes": manifest.total_bytes, "files": len(manifest.files), "shards": sorted(manifest.shards),
                    "digest": str(manifest.digest), "verified": verified and {"level": verified[0], "at": verified[1]},
                    "created": manifest.created,
                }  # fmt: skip
            if table == TELEMETRY.name and not no_store:
                entry["in_store"] = found in held
            rows.append(entry)
        for found in archive.orphans(table):
            rows.append({"table": table, "day": found.isoformat(), "status": "broken", "problem": "no manifest"})
            report.exit_code = EXIT_DATA
    archived = archive.generations(TELEMETRY.name)
    gaps = [d.isoformat() for d in sorted(held) if d not in archived and d < utc_today()]
    if gaps:
        report.oldest_open = date.fromisoformat(gaps[0])
    report.document = {"days": rows, "not_archived": gaps}
    if not report.as_json:
        _print_list(rows, gaps)


def _print_list(rows: list[dict[str, Any]], gaps: list[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for name in BY_DAY:
        chosen = [row for row in rows if row["table"] == name]
        if not chosen:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        for column in ("day", "status", "gen", "rows", "MB", "files", "verified", "in store"):
            right = column in ("gen", "rows", "MB", "files")
            table.add_column(column, justify="right" if right else "left", no_wrap=column != "verified")
        for row in chosen:
            if row["status"] == "broken":
                table.add_row(row["day"], "[red]broken[/]", "", "", "", "", row["problem"], "")
                continue
            verified = row["verified"]
            table.add_row(
                row["day"], row["status"], str(row["generations"]), f"{row['rows']:,}", f"{row['bytes'] / 1e6:,.1f}",
                str(row["files"]),
                f"{verified['level']} {verified['at'][:10]}" if verified else "never",
                "" if "in_store" not in row else "yes" if row["in_store"] else "no",
            )  # fmt: skip
        Console().print(table)
    if gaps:
        click.echo(f"not archived yet: {', '.join(gaps)}")


@main.command()
@config_option
@_day_options
@click.option("--level", default="checksum", show_default=True, type=click.Choice(["list", "checksum", "rows"]),
              help="How deep: what is there, every byte, or every row.")  # fmt: skip
@click.option("--subset", callback=_subset, help="Part n of t, like 3/7: on seven nights, each day's turn comes once.")
@json_option
@with_archive
def verify(
    archive: Archive, report: Report, day: date | None, first: date | None, last: date | None, level: str,
    subset: tuple[int, int] | None,
) -> None:  # fmt: skip
    """Compare the archive with its manifests; exit code 1 if a day is not what it was.

    What was found good is noted; `expire` needs days verified at level rows.
    """
    from .accounts import verify_accounts
    from .export import remember
    from .verify import LEVELS
    from .verify import verify as check

    first, last = _span(day, first, last)
    checked = good = 0
    findings, marks = [], {}
    state = archive.state()
    with _bar(report, f"verify {level}", None, "bytes") as progress:
        for item in check(archive, level, first, last, subset, progress):
            checked += 1
            good += item.good
            findings += item.findings
            for finding in item.findings:
                report.line(f"{finding.table} {finding.day} {finding.level} {finding.file}: {finding.problem}")
            if item.manifest is None:
                continue
            report.rows += item.manifest.rows
            report.bytes += item.manifest.total_bytes
            key = f"{item.table}/{item.day}"
            before = archive.verified(item.manifest, state)
            if item.good and (before is None or LEVELS.index(level) >= LEVELS.index(before[0])):
                marks[key] = {"generation": item.manifest.generation, "level": level, "at": utc_now()}
                if level == "rows" and item.table == TELEMETRY.name:
                    report.newest_verified = item.day
            elif not item.good:
                marks[key] = {"generation": 0, "level": "list", "at": utc_now()}
    problems = verify_accounts(archive)
    for problem in problems:
        report.line(problem)
    if marks:
        try:
            with Workspace(archive.target, report.settings.export.lock_ttl) as work:
                remember(archive, work, marks, "verified")
        except SkywaveError as error:
            report.problem(error, "the result could not be noted: ")
    if good < checked or problems:
        report.exit_code = EXIT_DATA
    report.line(f"{good} of {checked} days are good at level {level}")
    report.document |= {
        "level": level, "days": checked, "good": good, "findings": [f.as_json() for f in findings], "accounts": problems,
    }  # fmt: skip


# -- restore, drill --------------------------------------------------------------------------------------------------------


@main.command()
@config_option
@_day_options
@click.option("--client", "client_id", type=click.IntRange(1), help="Only this client's readings.")
@click.option("--key", help="Only this data_key.")
@click.option("--from-time", "since", callback=_time, help="Only readings created at or after this time (UTC).")
@click.option("--to-time", "until", callback=_time, help="Only readings created before this time (UTC).")
@click.option("--into", "urls", multiple=True, required=True,
              help="Target: clickhouse://user@host:port/database or embedded:FOLDER; several for several shards.")  # fmt: skip
@click.option("--merge", is_flag=True, help="Add what is missing to days that the target has already.")
@dry_run_option
@json_option
@with_archive
def restore(
    archive: Archive, report: Report, day: date | None, first: date | None, last: date | None, client_id: int | None,
    key: str | None, since: int | None, until: int | None, urls: tuple[str, ...], merge: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Refill a store from the archive. Run it again after an interruption: it goes on and doubles nothing.

    Tables that the target lacks are made. Each day is staged, compared by digest with the manifest, and moved into place at
    once. Keep the servers stopped until it has ended. A damaged file is left out and named; the rest is restored.
    """
    from .accounts import restore_accounts
    from .restore import DayRestored, Restorer, Selection, chosen_days, parse_url

    first, last = _span(day, first, last)
    if since is not None and until is not None and until <= since:
        raise click.UsageError("--to-time is not after --from-time")
    selection = Selection(client_id, key.encode(errors="surrogateescape") if key is not None else None, since, until)
    targets = [parse_url(url) for url in urls]
    tables = list(BY_DAY.values()) if selection.everything else [TELEMETRY]
    if dry_run:
        planned = []
        for table in tables:
            for wanted, manifest in chosen_days(archive, table, first, last):
                if isinstance(manifest, SkywaveError):
                    report.problem(manifest)
                else:
                    files = [file for file in manifest.files if selection.concerns(file)]
                    item = {"table": table.name, "day": wanted.isoformat(), "files": len(files),
                            "rows_at_most": sum(file.rows for file in files)}  # fmt: skip
                    planned.append(item)
                    report.line(
                        f"would restore {table.name} {wanted}: {len(files)} files, at most {item['rows_at_most']:,} rows"
                    )
        report.document |= {"days": planned}
        return
    results: list[DayRestored] = []
    with _bar(report, "restore", None, "rows") as progress:
        restorer = Restorer(archive, targets, selection, merge, progress)
        restorer.prepare()
        for table in tables:
            for wanted, manifest in chosen_days(archive, table, first, last):
                began = time.monotonic()
                try:
                    if isinstance(manifest, SkywaveError):
                        raise manifest
                    result = restorer.restore(table, manifest)
                except SkywaveError as error:
                    if error.exit_code not in (EXIT_DATA, 2):
                        raise
                    report.problem(error, f"{table.name} {wanted}: ")
                    result = DayRestored(table.name, wanted, "failed", problems=[str(error)])
                else:
                    for problem in result.problems:
                        report.problem(_Damaged(problem))
                result.seconds = round(time.monotonic() - began, 2)
                results.append(result)
                report.rows += result.rows
                report.line(f"{table.name} {wanted}: {result.outcome}, {result.rows:,} rows, {result.seconds:.1f} s")
    accounts: dict[str, int] = {}
    if selection.everything:
        for store in restorer.stores:
            accounts = restore_accounts(archive, store)
    restorer.close()
    if day and not results:
        report.problem(_Damaged(f"{day} is not in the archive"))
    report.line(f"{sum(result.rows for result in results):,} rows restored")
    report.document |= {"days": [result.as_json() for result in results], "accounts": accounts}


class _Damaged(SkywaveError):
    exit_code = EXIT_DATA


@main.command()
@config_option
@click.option("--day", callback=_day, help="This day instead of a random one.")
@json_option
@with_archive
def drill(archive: Archive, report: Report, day: date | None) -> None:
    """Restore a random archived day into a throw-away database, compare it, and drop it again."""
    from .drill import drill as run

    store = next(iter(report.settings.stores().values()))
    with _bar(report, "drill", None, "rows") as progress:
        result = run(archive, store, day, progress)
    report.rows = result.rows
    report.document = result.as_json()
    report.exit_code = 0 if result.passed else EXIT_DATA
    for problem in result.problems:
        report.line(problem)
    outcome = "the restored day is the archived one" if result.passed else "THE RESTORED DAY IS NOT THE ARCHIVED ONE"
    report.line(f"{result.day}: {result.rows:,} rows, digest {result.digest}: {outcome}")


# -- prune, expire, check ----------------------------------------------------------------------------------------------------


@main.command()
@config_option
@click.option("--generations", type=click.IntRange(1), help="Keep as many generations of each day; remove older ones.")
@click.option("--delete-data-before", "before", callback=_day, help="Remove every day before this one.")
@click.option("--day", "named", multiple=True, callback=_day,
              help="Allow to remove this day although the store does not hold it; may be given several times.")  # fmt: skip
@click.option("--confirm", is_flag=True, help="Do it; without this, only the plan is shown.")
@json_option
@with_archive
def prune(
    archive: Archive,
    report: Report,
    generations: int | None,
    before: date | None,
    named: tuple[date, ...],
    confirm: bool,
) -> None:
    """Remove superseded generations, or old days. Shows its plan, and acts only with --confirm.

    What is removed lies in the archive's trash for export.trash_days. A day that the store no longer holds is removed only
    if it is named.
    """
    from .prune import empty_trash, plan_days, plan_generations
    from .prune import prune as carry_out
    from .source import open_shards

    if (generations is None) == (before is None):
        raise click.UsageError("give either --generations N or --delete-data-before DAY")
    if named and before is None:
        raise click.UsageError("--day goes with --delete-data-before")
    if before and before > utc_today():
        raise click.UsageError(f"{before} has not come yet")
    if generations is not None:
        removals = plan_generations(archive, generations)
    else:
        assert before is not None
        held: dict[str, set[date]] | None = {name: set() for name in BY_DAY}
        try:
            for shard in open_shards(report.settings.stores()):
                for name, table in BY_DAY.items():
                    assert held is not None
                    held[name] |= set(shard.markers(table))
                shard.close()
        except SkywaveError as error:
            click.echo(f"The store does not answer ({error}): every day counts as held by the archive alone.", err=True)
            held = None
        removals = plan_days(archive, before, held, named)
    for removal in removals:
        what = "the whole day" if removal.whole_day else f"generations {', '.join(map(str, removal.generations))}"
        verb = "keep" if removal.refused else "remove"
        report.line(
            f"{verb} {removal.table} {removal.day}: {what}, {len(removal.files)} files, {removal.bytes / 1e6:,.1f} MB"
            + (f"; {removal.refused}" if removal.refused else "")
        )
    if any(removal.refused for removal in removals):
        report.exit_code = EXIT_DATA
    emptied = 0
    if confirm:
        with Workspace(archive.target, report.settings.export.lock_ttl) as work:
            carry_out(archive, work, removals)
            emptied = empty_trash(archive, work, report.settings.export.trash_days)
    report.bytes = sum(removal.bytes for removal in removals if not removal.refused)
    done = "removed" if confirm else "would remove"
    report.line(
        f"{done} {report.bytes / 1e6:,.1f} MB" + ("" if confirm or not removals else "; add --confirm to do it")
    )
    report.document |= {"confirmed": confirm, "days": [r.as_json() for r in removals], "trash_emptied": emptied}


@main.command()
@config_option
@click.option("--older-than", "age", required=True, callback=_age, help="Age of a day, like 90d.")
@dry_run_option
@json_option
@with_archive
def expire(archive: Archive, report: Report, age: timedelta, dry_run: bool) -> None:
    """Drop old days from the store, each only if the archive provably has all of it.

    A day is dropped when its archive is sealed, verified at level rows, and has the store's count and digest at that moment.
    Its ranges are kept in the table `expired`, so that the audit and resent batches count them as stored. Days that cannot
    be dropped are kept and say why; exit code 1 then.
    """
    from .expire import expire as run
    from .source import open_shards

    shards = open_shards(report.settings.stores())
    with Workspace(archive.target, report.settings.export.lock_ttl):
        results = run(archive, shards, utc_today() - age, dry_run)
    for shard in shards:
        shard.close()
    for result in results:
        report.line(f"{result.day}: {result.outcome}, {result.rows:,} rows{f'; {result.why}' if result.why else ''}")
        report.rows += result.rows if result.outcome == "dropped" else 0
        if result.outcome == "kept":
            report.exit_code = EXIT_DATA
    if not results:
        report.line("the store has no day that old")
    report.document = {"days": [result.as_json() for result in results]}


@main.command()
@config_option
@json_option
@with_archive
def check(archive: Archive, report: Report) -> None:
    """Preflight: target, safe mode, quota, clock, lock, and every shard of the store; exit code 1 if a night would fail."""
    from .check import check as run

    del archive
    found = run(report.settings)
    for item in found:
        report.line(f"{'ok  ' if item.good else 'FAIL'} {item.name}: {item.detail}")
    report.exit_code = 0 if all(item.good for item in found) else EXIT_DATA
    report.document = {"checks": [item.as_json() for item in found]}
