"""Episodes until so many faults were injected: ``python -m faults.soak --faults 1000`` (``make soak FAULTS=1000``).

Each episode has a seed of its own and is kept in the results file, so that an interrupted soak goes on where it stopped.
An episode that failed is kept as such and is not repeated: run it alone with ``--seed`` to look at it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

from faults import episode
from faults.cluster_faults import CLUSTER, ClusterWorld
from faults.faults import CATALOGUE
from faults.world import World

FAULTS_AN_EPISODE = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000, help="how many in all")
    parser.add_argument("--results", type=Path, default=Path("build/soak.json"))
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="run this episode alone; its result goes to standard output")
    parser.add_argument("--cluster", action="store_true", help="on a ClickHouse cluster with two brokers")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _one(arguments.seed, arguments.cluster)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
    while _total(results) < arguments.faults:
        seed = max([r["seed"] for r in results], default=arguments.first_seed - 1) + 1
        log = arguments.results.with_suffix(f".{seed}.log")
        with log.open("w") as out:
            more = ["--cluster"] if arguments.cluster else []
            command = [sys.executable, "-m", "faults.soak", "--seed", str(seed), *more]
            ended = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
        last = (log.read_text().splitlines() or [""])[-1]
        result = json.loads(last) if last.startswith("{") else {"seed": seed, "faults": {}, "stuck": last}
        results.append(result)
        arguments.results.write_text("[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")
        verdict = "clean" if ended.returncode == 0 else result.get("stuck") or result["verdict"]["wrong"]
        print(f"seed {seed}: {_total([result])} faults, {verdict}; {_total(results)} of {arguments.faults}", flush=True)
    print(table(results))
    return 1 if any(_bad(result) for result in results) else 0


def _one(seed: int, cluster: bool) -> int:
    world, catalogue = (ClusterWorld, CLUSTER) if cluster else (World, CATALOGUE)
    try:
        result = episode.run(seed, FAULTS_AN_EPISODE // (2 if cluster else 1), None, world, catalogue).as_json()
    except Exception as error:
        traceback.print_exc()
        result = {"seed": seed, "faults": {}, "stuck": f"{type(error).__name__}: {str(error)[:500]}"}
    print(json.dumps(result))
    return 1 if _bad(result) else 0


def _bad(result: dict) -> bool:
    return bool(result.get("stuck") or result["verdict"]["wrong"])


def _total(results: list[dict]) -> int:
    return sum(sum(result["faults"].values()) for result in results)


def table(results: list[dict]) -> str:
    """The results as Markdown: by episode, and faults by kind."""
    whole = [result for result in results if not result.get("stuck")]
    names = ("sent", "stored", "tails", "destroyed", "dropped")
    lines = [
        f"| seed | faults | {' | '.join(names)} | lost, doubled, invented or misjudged | seconds |",
        "|---" * 9 + "|",
    ]
    for result in results:
        if result.get("stuck"):
            lines.append(f"| {result['seed']} | stuck: {result['stuck']} |")
            continue
        verdict = result["verdict"]
        figures = " | ".join(f"{verdict[name]:,}" for name in names)
        wrong = "; ".join(verdict["wrong"]) or "0"
        lines.append(f"| {result['seed']} | {_total([result])} | {figures} | {wrong} | {result['seconds']:.0f} |")
    sums = " | ".join(f"{sum(r['verdict'][name] for r in whole):,}" for name in names)
    wrong = sum(len(r["verdict"]["wrong"]) for r in whole)
    lines.append(f"| all | {_total(results)} | {sums} | {wrong} | {sum(r['seconds'] for r in whole):.0f} |")
    kinds: Counter[str] = Counter()
    for result in whole:
        kinds.update(result["faults"])
    lines += ["", "| fault | times |", "|---|---|", *(f"| {kind} | {n} |" for kind, n in sorted(kinds.items()))]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
