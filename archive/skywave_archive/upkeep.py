"""Commands that look after an archive and make room: drill, prune, expire, check."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import date, timedelta
from typing import TYPE_CHECKING

import click

from skywave.errors import EXIT_DATA, SkywaveError
from skywave.process.times import utc_today
from skywave.process.visible import say

from .archive import Archive
from .options import config_option, dry_run_option, json_option, parse_age, parse_day
from .report import Report, bar, with_archive
from .tables import BY_DAY
from .workspace import Workspace, recover

if TYPE_CHECKING:
    from .manifest import Manifest


@click.command()
@config_option
@click.option("--day", callback=parse_day, help="This day instead of a random one.")
@json_option
@with_archive
def drill(archive: Archive, report: Report, day: date | None) -> None:
    """Restore a random archived day into a throw-away database, compare it, and drop it again."""
    from .drill import drill as run

    recover(archive.target, report.settings.export.lock_ttl)
    with bar(report, "drill", None, "rows") as progress:
        result = run(archive, report.settings.store, day, progress)
    report.rows = result.rows
    report.document = result.as_json()
    report.exit_code = 0 if result.passed else EXIT_DATA
    for problem in result.problems:
        report.line(problem)
    outcome = "the restored day is the archived one" if result.passed else "THE RESTORED DAY IS NOT THE ARCHIVED ONE"
    report.line(f"{result.day}: {result.rows:,} rows, digest {result.digest}: {outcome}")


@click.command()
@config_option
@click.option("--generations", type=click.IntRange(1), help="Keep as many generations of each day; remove older ones.")
@click.option("--delete-data-before", "before", callback=parse_day, help="Remove every day before this one.")
@click.option(
    "--day",
    "named",
    multiple=True,
    callback=parse_day,
    help="Allow to remove this day although the store does not hold it; may be given several times.",
)
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
    from .prune import empty_trash, keep_from, plan_days, plan_generations
    from .prune import prune as run

    if (generations is None) == (before is None):
        raise click.UsageError("give either --generations N or --delete-data-before DAY")
    if before and before > utc_today():
        raise click.UsageError(f"{before} has not come yet")
    emptied = 0
    with Workspace(archive.target, report.settings.export.lock_ttl) if confirm else nullcontext() as work:
        if before is None:
            assert generations is not None
            removals = plan_generations(archive, generations, named)
        else:
            removals = plan_days(archive, before, lambda manifest: _store_has(report, manifest), named)
        if work:
            if before:
                keep_from(archive, work, before)
            run(archive, work, removals)
            emptied = empty_trash(archive, work, report.settings.export.trash_days)
    for removal in removals:
        what = "the whole day" if removal.whole_day else f"generations {', '.join(map(str, removal.generations))}"
        verb = "keep" if removal.refused else "remove"
        report.line(
            f"{verb} {removal.table} {removal.day}: {what}, {len(removal.files)} files, {removal.bytes / 1e6:,.1f} MB"
            + (f"; {removal.refused}" if removal.refused else "")
        )
    if any(removal.refused for removal in removals):
        report.exit_code = EXIT_DATA
    report.bytes = sum(removal.bytes for removal in removals if not removal.refused)
    done = "removed" if confirm else "would remove"
    report.line(
        f"{done} {report.bytes / 1e6:,.1f} MB" + ("" if confirm or not removals else "; add --confirm to do it")
    )
    report.document |= {"confirmed": confirm, "days": [r.as_json() for r in removals], "trash_emptied": emptied}


def _store_has(report: Report, manifest: Manifest) -> bool:
    """True if the store holds exactly the rows of a manifest; False if it does not answer."""
    from .source import held_by, open_source

    try:
        with open_source(report.settings.store) as shards:
            return held_by(shards, BY_DAY[manifest.table], manifest.day) == manifest.held
    except SkywaveError as error:
        say(f"The store does not answer ({error}): {manifest.day} counts as held by the archive alone.", err=True)
        return False


@click.command()
@config_option
@click.option("--older-than", "age", required=True, callback=parse_age, help="Age of a day, like 90d.")
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
    from .fleet import check_fleet
    from .source import open_source

    with (
        open_source(report.settings.store) as shards,
        Workspace(archive.target, report.settings.export.lock_ttl) as work,
    ):
        check_fleet(archive, [shard.store for shard in shards])
        results = run(archive, work, shards, utc_today() - age, dry_run)
    for result in results:
        report.line(f"{result.day}: {result.outcome}, {result.rows:,} rows{f'; {result.why}' if result.why else ''}")
        report.rows += result.rows if result.outcome == "dropped" else 0
        if result.outcome == "kept":
            report.exit_code = EXIT_DATA
    if not results:
        report.line("the store has no day that old")
    report.document = {"days": [result.as_json() for result in results]}


@click.command()
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
