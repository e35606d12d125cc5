"""The alert rules: each fires when it should and not before, names what exists, and stands in docs/operate.md."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.parts import which

from skywave.care.findings import STALLS
from skywave.client.agent import FIGURES as CLIENT
from skywave.server.service import FIGURES as SERVER

ROOT = Path(__file__).parents[2]
RULES = ROOT / "ansible/prometheus/rules.yml"
PAGE = (ROOT / "docs/operate.md").read_text()
ALERTS = {
    name: (expr, severity, action)
    for name, expr, severity, action in re.findall(
        r"- alert: (\w+)\n\s+expr: (.*?)\n\s+(?:for: \w+\n\s+)?labels: {severity: (\w+)}.*?action: \"(.*?)\"\n",
        RULES.read_text(),
        re.DOTALL,
    )
}
AGAIN = "10 300 " * 20
# By alert: after how many steps it fires, a sick series, a well one, a value a step: "0x9" is ten times 0.
MINUTES = {
    "SkywaveDown": (6, 'up{job="skywave-client"}', "0x99", "1x99"),
    "SkywaveRestarts": (35, "skywave_client_uptime_seconds", AGAIN, "0+60x99"),
    "SkywaveStalled": (3, 'skywave_server_stalled_seconds{cause="store of shard s1"}', "11+60x99", "11 71 stale"),
    "SkywaveClientOffline": (16, 'skywave_server_client_online{client_id="1"}', "0x99", "0x5 1x99"),
    "SkywaveReadingsWait": (11, 'skywave_server_client_oldest_unacked_seconds{client_id="1"}', "130+60x99", "100x99"),
    "SkywaveOutboxFills": (16, "skywave_client_time_to_full_seconds", "80000x99", "90000x99"),
    "SkywaveSensorDown": (11, 'skywave_client_sensor_connected{sensor="t"}', "0x99", "1x99"),
    "SkywaveSensorMalformed": (10, 'skywave_client_sensor_broken_frames_total{sensor="t"}', "0 1x99", "7x99"),
    "SkywaveSensorMissed": (10, 'skywave_client_sensor_missed_total{sensor="t"}', "0 5x99", "5x99"),
    "SkywaveRejected": (10, "skywave_server_rejected_total", "0 2x99", "2x99"),
    "SkywaveRejectedOverQuota": (10, "skywave_server_over_quota_total", "0 2x99", "2x99"),
    "SkywaveJsonLost": (10, "skywave_server_foreign_lost_total", "0 2x99", "2x99"),
    "SkywaveShardDown": (6, 'skywave_server_shard_ok{shard="s1"}', "0x99", "1x99"),
    "SkywaveArchiveFailed": (61, 'skywave_archive_last_exit_code{command="verify"}', "1x99", "0x99"),
    "SkywaveUnitFailed": (
        2, 'node_systemd_unit_state{name="skywave-renew.service", state="failed"}', "1x99", "0x99",
    ),
    "SkywaveFirewallDown": (
        2, 'node_systemd_unit_state{name="skywave-firewall.service", state="active"}', "0x99", "1x99",
    ),
    "SkywaveDiskFills": (16, 'node_filesystem_avail_bytes{mountpoint="/"}', "9x99", "11x99"),
    "SkywaveMemory": (10, "node_vmstat_oom_kill", "3 4x99", "4x99"),
    "SkywaveClock": (61, "node_timex_sync_status", "0x99", "1x99"),
}  # fmt: skip
HOURS = {
    "SkywaveArchiveLate": (
        38, 'skywave_archive_last_success_timestamp_seconds{command="export"}', "0x999", "0+3600x999",
    ),
    "SkywaveArchiveGap": (
        75, "skywave_archive_oldest_unarchived_day_timestamp_seconds", "0x999", "86400x999",
    ),
    "SkywaveDrillLate": (
        363, 'skywave_archive_last_success_timestamp_seconds{command="drill"}', "0x999", "0+3600x999",
    ),
}  # fmt: skip
BESIDE = {"SkywaveDiskFills": {"series": 'node_filesystem_size_bytes{mountpoint="/"}', "values": "100x99"}}


def scenario(alert: str, series: str, values: str, at: str, step: str, fires: bool) -> dict:
    asked = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": at,
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if fires else [],
    }
    beside = [BESIDE[alert]] if alert in BESIDE else []
    return {
        "interval": step,
        "input_series": [{"series": series, "values": values.strip()}, *beside],
        "promql_expr_test": [asked],
    }


def promtool(*arguments: str) -> None:
    result = subprocess.run([which("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_takes_the_rules():
    promtool("check", "rules", str(RULES))


@pytest.mark.parametrize(("cases", "unit"), [(MINUTES, "m"), (HOURS, "h")])
def test_each_alert_fires_when_it_should_and_not_before(cases, unit, tmp_path):
    tests = []
    for alert, (steps, series, sick, well) in cases.items():
        for values, after, fires in ((sick, steps, True), (sick, 0, False), (well, steps, False)):
            tests.append(scenario(alert, series, values, f"{after}{unit}", f"1{unit}", fires))
    file = tmp_path / "rules_test.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": f"1{unit}", "tests": tests}))
    promtool("test", "rules", str(file))


def test_no_alert_is_without_a_case():
    assert MINUTES.keys() | HOURS.keys() == ALERTS.keys()


def test_an_alert_names_figures_that_exist():
    source = (ROOT / "archive/skywave_archive/metrics.py").read_text()
    known = {f"skywave_archive_{name}" for name in re.findall(r'gauge\(\s*"(\w+)"', source)}
    known |= {figure.metric + ("_total" if figure.counter else "") for figure in (*CLIENT, *SERVER)}
    for alert, (expr, *_) in ALERTS.items():
        assert {*re.findall(r"\bskywave_\w+", expr)} <= known, alert


def test_each_alert_stands_in_the_documentation_with_what_to_do():
    rows = dict(re.findall(r"^\| `(Skywave\w+)` \| (.*) \|$", PAGE, re.M))
    assert rows.keys() == ALERTS.keys()
    for alert, (_, severity, action) in ALERTS.items():
        assert rows[alert] == f"{severity} | {action}", alert


def test_each_cause_of_a_stall_stands_in_the_documentation():
    table = PAGE.split("| process | `cause` |")[1].split("\n\n")[0]
    for cause in STALLS:
        assert f"`{cause}`" in table, cause
