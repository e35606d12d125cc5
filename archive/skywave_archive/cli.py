"""The command line: ``skywave-archive …``."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from datetime import date
from typing import TYPE_CHECKING

import click

from skywave import __version__
from skywave.commands.group import ErrorGroup
from skywave.errors import EXIT_DATA, EXIT_TRY_LATER, SkywaveError
from skywave.process.service import setup_logging
from skywave.process.times import utc_now, utc_today

from .archive import Archive
from .options import (
    config_option,
    day_options,
    dry_run_option,
    first_and_last,
    json_option,
    parse_subset,
    parse_time,
    parse_url,
)
from .report import Report, bar, with_archive
from .tables import BY_DAY, TELEMETRY
from .upkeep import check, drill, expire, prune
from .workspace import Workspace, recover

if TYPE_CHECKING:
    from .export import DayResult


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)


# -- export --------------------------------------------------------------------------------------------------------------


@main.command()
@config_option
@day_options
@click.option("--all-closed", is_flag=True, help="Every closed day with rows not yet archived; the default.")
@click.option("--open-day", is_flag=True, help="Today so far, marked unsealed; tomorrow's export completes it.")
@click.option(
    "--anew", is_flag=True, help="With --day: put aside what the archive has of the day, and export it whole."
)
@click.option("--same-fleet", is_flag=True, help="The store, a new one say, and the archive belong to the same fleet.")
@dry_run_option
@json_option
@with_archive
def export(
    archive: Archive,
    report: Report,
    day: date | None,
    first: date | None,
    last: date | None,
    all_closed: bool,
    open_day: bool,
    anew: bool,
    same_fleet: bool,
    dry_run: bool,
) -> None:
    """Export closed days, oldest first; whatever was exported before is left as it is.

    Rows that came late for an archived day become an additional file. A day is published only when all shards were read
    and what was written is what they hold. Run it again at any time: it goes on where it was ended.
    """
    from .accounts import export_accounts
    from .fleet import check_fleet, join
    from .night import export_days, plan
    from .source import open_source

    if ((all_closed or open_day) and (day or first or last)) or (all_closed and open_day):
        raise click.UsageError("give one of --day, --from/--to, --all-closed and --open-day")
    if anew and not day:
        raise click.UsageError("--anew needs --day")
    first, last = first_and_last(day, first, last)
    today = utc_today()
    if (first and first > today) or (last and last > today):
        raise click.UsageError(f"that day has not come yet; today is {today} (UTC)")
    if open_day:
        first = last = today
    # An alert on the nightly run must not be silenced by any other one.
    report.command = "" if dry_run else "export-open-day" if open_day else "export-days" if first or last else "export"
    with open_source(report.settings.store) as shards:
        stores = [shard.store for shard in shards]
        if dry_run:
            plans = [plan(archive, shards, table, first, last) for table in BY_DAY.values()]
            if not same_fleet:
                check_fleet(archive, stores)
            days = [{"table": each.table.name, "day": day.isoformat()} for each in plans for day in each.days]
            for item in days:
                report.line(f"would look at {item['table']} {item['day']}")
            report.line(f"{len(days)} days")
            report.document = {"days": days}
            return
        results: list[DayResult] = []
        with (
            Workspace(archive.target, report.settings.export.lock_ttl) as work,
            bar(report, "export", None, "rows") as progress,
        ):
            plans = [plan(archive, shards, table, first, last) for table in BY_DAY.values()]
            join(archive, work, stores, same_fleet)
            for todo in plans:
                for result in export_days(archive, work, shards, todo, report.settings.export, progress, anew):
                    results.append(result)
                    if result.error:
                        report.problem(result.error, f"{result.table} {result.day}: ")
                    else:
                        report.line(_export_line(result))
            accounts, damaged = export_accounts(archive, work, shards)
            for problem in damaged:
                report.problem(problem)
    waiting = [result.day for result in results if result.outcome in ("failed", "unsealed")]
    report.oldest_open = min(waiting, default=None)
    if any(result.outcome == "unsealed" for result in results):
        report.exit_code = report.exit_code or EXIT_TRY_LATER
    report.rows = sum(result.new_rows for result in results)
    report.bytes = sum(result.bytes for result in results)
    if not results:
        report.line("nothing new")
    report.document |= {"days": [result.as_json() for result in results], "accounts": accounts}


def _export_line(result: DayResult) -> str:
    rate = f" at {result.new_rows / result.seconds / 1e6:.2f} M rows/s" if result.seconds and result.new_rows else ""
    note = f"; {result.note}" if result.note else ""
    return (
        f"{result.table} {result.day}: {result.outcome}, {result.rows:,} rows ({result.new_rows:,} new),"
        f" {result.bytes / 1e6:,.1f} MB, {result.seconds:.1f} s{rate}{note}"
    )


# -- list, verify --------------------------------------------------------------------------------------------------------


@main.command("list")
@config_option
@day_options
@click.option("--no-store", is_flag=True, help="Do not ask the store which days it has.")
@json_option
@with_archive
def list_(
    archive: Archive, report: Report, day: date | None, first: date | None, last: date | None, no_store: bool
) -> None:
    """List archived days: generations, rows, bytes, sealed, verified when; and days that only the store has."""
    from .errors import AnotherFleet
    from .fleet import check_fleet
    from .listing import listing, print_listing
    from .source import open_source

    first, last = first_and_last(day, first, last)
    with nullcontext(None) if no_store else open_source(report.settings.store) as shards:
        try:
            if shards is not None:
                check_fleet(archive, [shard.store for shard in shards])
        except AnotherFleet as error:
            report.problem(error, "the store is not compared: ")
            shards = None
        rows, gaps = listing(archive, shards, first, last)
    if any(row["status"] == "broken" for row in rows):
        report.exit_code = EXIT_DATA
    report.oldest_open = gaps[0] if gaps else None
    report.document = {"days": rows, "not_archived": [gap.isoformat() for gap in gaps]}
    if not rows and not gaps:
        report.line(f"{archive.target.where}: the archive has no day{' in that time' if first or last else ''}")
    elif not report.as_json:
        print_listing(rows, gaps)


@main.command()
@config_option
@day_options
@click.option(
    "--level",
    default="checksum",
    show_default=True,
    type=click.Choice(["list", "checksum", "rows"]),
    help="How deep: what is there, every byte, or every row.",
)
@click.option(
    "--subset",
    callback=parse_subset,
    help="Part n of t, like 3/7: on seven nights, each day's turn comes once. today/7 counts the nights by itself.",
)
@json_option
@with_archive
def verify(
    archive: Archive,
    report: Report,
    day: date | None,
    first: date | None,
    last: date | None,
    level: str,
    subset: tuple[int, int] | None,
) -> None:
    """Compare the archive with its manifests; exit code 1 if a day is not what it was.

    What was found good is noted; `expire` needs days verified at level rows.
    """
    from .accounts import verify_accounts
    from .errors import NothingThere
    from .night import remember
    from .verify import LEVELS
    from .verify import verify as run

    first, last = first_and_last(day, first, last)
    recover(archive.target, report.settings.export.lock_ttl)
    checked = good = 0
    findings, marks = [], {}
    state = archive.state()
    with bar(report, f"verify {level}", None, "bytes") as progress:
        for item in run(archive, level, first, last, subset, progress):
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
                marks[key] = {"manifest": item.manifest.identity, "level": level, "at": utc_now()}
                if level == "rows" and item.table == TELEMETRY.name:
                    report.newest_verified = item.day
            elif not item.good:
                marks[key] = {"manifest": "", "level": "list", "at": utc_now()}
    problems = verify_accounts(archive)
    for problem in problems:
        report.line(str(problem))
    if marks:
        try:
            with Workspace(archive.target, report.settings.export.lock_ttl) as work:
                remember(archive, work, marks, "verified")
        except SkywaveError as error:
            report.problem(error, "the result could not be noted: ")
    if not checked and not (first or last or subset):
        report.problem(NothingThere(f"{archive.target.where}: the archive has no day", "Check target.path."))
    if good < checked or problems:
        report.exit_code = EXIT_DATA
    report.line(f"{good} of {checked} days are good at level {level}")
    report.document |= {
        "level": level,
        "days": checked,
        "good": good,
        "findings": [f.as_json() for f in findings],
        "accounts": [str(problem) for problem in problems],
    }


# -- restore, drill --------------------------------------------------------------------------------------------------------


@main.command()
@config_option
@day_options
@click.option("--client", "client_id", type=click.IntRange(1), help="Only this client's readings.")
@click.option("--key", help="Only this data_key.")
@click.option("--from-time", "since", callback=parse_time, help="Only readings created at or after this time (UTC).")
@click.option("--to-time", "until", callback=parse_time, help="Only readings created before this time (UTC).")
@click.option(
    "--into",
    "urls",
    multiple=True,
    required=True,
    help="Target: clickhouse://user@host:port/database (several for several servers), embedded:FOLDER, or"
    " config:FILE for the [store] of a server's configuration, which may be a cluster.",
)
@click.option("--merge", is_flag=True, help="Add what is missing to days that the target has already.")
@click.option("--same-fleet", is_flag=True, help="The target belongs to this archive's fleet, whatever it says itself.")
@dry_run_option
@json_option
@with_archive
def restore(
    archive: Archive,
    report: Report,
    day: date | None,
    first: date | None,
    last: date | None,
    client_id: int | None,
    key: str | None,
    since: int | None,
    until: int | None,
    urls: tuple[str, ...],
    merge: bool,
    same_fleet: bool,
    dry_run: bool,
) -> None:
    """Refill a store from the archive. Run it again after an interruption: it goes on and doubles nothing.

    Tables that the target lacks are made. Each day is staged, compared by digest with the manifest, and moved into place at
    once. Keep the servers stopped until it has ended. A damaged file is left out and named; the rest is restored.
    """
    from .accounts import restore_accounts
    from .errors import NothingThere
    from .fleet import join_restored
    from .restore import DayRestored, Restorer
    from .selection import Selection, chosen_days

    first, last = first_and_last(day, first, last)
    if since is not None and until is not None and until <= since:
        raise click.UsageError("--to-time is not after --from-time")
    selection = Selection(client_id, key.encode(errors="surrogateescape") if key is not None else None, since, until)
    targets = [parse_url(url) for url in urls]
    recover(archive.target, report.settings.export.lock_ttl)
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
    accounts: dict[str, int] = {}
    with (
        bar(report, "restore", None, "rows") as progress,
        Restorer(archive, targets, selection, merge, progress) as restorer,
    ):
        restorer.prepare()
        join_restored(archive, restorer.stores, selection.everything, same_fleet)
        for table in tables:
            for result in restorer.restore_days(table, first, last):
                results.append(result)
                for error in result.errors:
                    report.problem(error, f"{table.name} {result.day}: ")
                report.line(
                    f"{table.name} {result.day}: {result.outcome}, {result.rows:,} rows, {result.seconds:.1f} s"
                )
        if selection.everything:
            accounts, damaged = restore_accounts(archive, restorer.stores, restorer.owner)
            for problem in damaged:
                report.problem(problem)
        behind = restorer.replicas_behind()
    for why in behind:
        report.line(f"a replica has not everything yet, and fetches it by itself: {why}")
    report.rows = sum(result.rows for result in results)
    if not results:
        what = f"{day} is not in the archive" if day else "the archive has no such day"
        report.problem(
            NothingThere(f"{archive.target.where}: {what}", "See skywave-archive list, and check target.path.")
        )
    report.line(f"{report.rows:,} rows restored")
    report.document |= {
        "days": [result.as_json() for result in results],
        "accounts": accounts,
        "replicas_behind": behind,
    }


for command in (drill, prune, expire, check):
    main.add_command(command)
