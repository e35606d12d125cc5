"""What the archive has, day by day, and what only the store has."""

from __future__ import annotations

from datetime import date
from typing import Any

from skywave.errors import SkywaveError, StoreUnavailable
from skywave.process.times import utc_today
from skywave.process.visible import say

from .archive import Archive, within
from .manifest import Manifest
from .night import is_done, is_pruned, is_the_day_s
from .source import SourceShard, held_by
from .tables import BY_DAY, TELEMETRY, Table


def listing(
    archive: Archive, shards: list[SourceShard] | None, first: date | None, last: date | None
) -> tuple[list[dict[str, Any]], list[date]]:
    """One entry a day, and the closed days that the store has and the archive has not. Without ``shards``, the store is not
    looked at. ``store`` of an entry: ``same``, ``changed`` (the rows are not those archived, and no export looked since),
    ``gone``, or None if unknown.
    """
    state = archive.state()
    rows: list[dict[str, Any]] = []
    gaps: list[date] = []
    for name, table in BY_DAY.items():
        markers = {shard.name: shard.markers(table) for shard in shards or ()}
        generations = archive.generations(name)
        for day, manifest in archive.manifests(name):
            if not within(day, first, last):
                continue
            entry: dict[str, Any] = {"table": name, "day": day.isoformat(), "generations": len(generations[day])}
            if isinstance(manifest, SkywaveError):
                rows.append({**entry, "status": "broken", "problem": str(manifest)})
                continue
            verified = archive.verified(manifest, state)
            entry |= {
                "status": "sealed" if manifest.sealed else "unsealed",
                "rows": manifest.rows,
                "bytes": manifest.total_bytes,
                "files": len(manifest.files),
                "shards": sorted(manifest.shards),
                "digest": str(manifest.digest),
                "verified": verified and {"level": verified[0], "at": verified[1]},
                "created": manifest.created,
                "store": None,
            }
            if shards is not None:
                now = {shard: found[day] for shard, found in markers.items() if day in found}
                mark = state["markers"].get(f"{name}/{day}", {})
                entry["store"] = _compared(shards, table, manifest, mark, now)
            rows.append(entry)
        rows += [
            {"table": name, "day": day.isoformat(), "status": "broken", "problem": "no manifest"}
            for day in archive.orphans(name)
            if within(day, first, last)
        ]
        if shards is not None and name == TELEMETRY.name:
            held = {day for found in markers.values() for day in found}
            kept_from = archive.kept_from()
            for day in sorted(held - generations.keys()):
                now = {shard: found[day] for shard, found in markers.items() if day in found}
                mark = state["markers"].get(f"{name}/{day}", {})
                if day < utc_today() and (day >= kept_from or not is_pruned(mark, shards, table, day, now)):
                    gaps.append(day)
    return rows, gaps


def _compared(
    shards: list[SourceShard], table: Table, manifest: Manifest, mark: dict[str, Any], now: dict[str, str]
) -> str | None:
    """What the shards, with these markers, have of an archived day; None if they cannot tell."""
    if not now:
        return "gone" if manifest.rows else "same"
    try:
        same = is_done(mark, manifest.generation, now) or held_by(shards, table, manifest.day) == manifest.held
    except StoreUnavailable as error:
        if not is_the_day_s(error, [shard.store for shard in shards]):
            raise
        return None
    return "same" if same else "changed"


def print_listing(rows: list[dict[str, Any]], gaps: list[date]) -> None:
    """The same for people."""
    from rich import box
    from rich.console import Console

    from skywave.commands.view import Sheet, shown

    console = Console()
    for name in BY_DAY:
        table = Sheet(box=box.SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        for column in ("day", "status", "gen", "rows", "MB", "files", "verified", "in store"):
            right = column in ("gen", "rows", "MB", "files")
            table.add_column(column, justify="right" if right else "left", no_wrap=column != "verified")
        for row in (row for row in rows if row["table"] == name):
            if row["status"] == "broken":
                table.add_row(row["day"], shown("broken", "red"), "", "", "", "", row["problem"], "")
                continue
            verified = row["verified"]
            table.add_row(
                row["day"],
                row["status"],
                str(row["generations"]),
                f"{row['rows']:,}",
                f"{row['bytes'] / 1e6:,.1f}",
                str(row["files"]),
                f"{verified['level']} {verified['at'][:10]}" if verified else "never",
                row["store"] or "",
            )
        if table.row_count:
            console.print(table)
    if gaps:
        say(f"not archived yet: {', '.join(map(str, gaps))}")
