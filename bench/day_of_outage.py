"""`make bench-outage`: a day without a server at 1000 readings a second, and how it is made up for.

Writes build/day_of_outage.json. The outbox is filled without waiting a day; from then on all is real. It takes some
minutes and 3 GB of disk.
"""

from __future__ import annotations

from report import write
from run import backlog, latency

DAY = 86_400_000

if __name__ == "__main__":
    backlog(latency(), DAY, watched_s=0)
    write("day_of_outage")
