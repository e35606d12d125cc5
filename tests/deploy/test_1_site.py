"""From bare hosts to a fleet: on trial, for real, and again without a change."""

import re

from lab import EDGES, wait_for


def changed(output: str) -> dict[str, int]:
    return {host: int(count) for host, count in re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", output, re.M)}


def test_a_trial_run_on_empty_hosts_says_what_it_would_do_and_does_nothing(lab):
    lab.playbook("site.yml", "--check", "-e", "authority=new", name="site.yml --check on empty hosts")
    assert lab.run("core1", "ls /opt /etc/skywave 2>/dev/null", check=False).strip() in ("", "/opt:")


def test_bare_hosts_become_a_fleet(lab):
    lab.converge()
    for host in EDGES:
        wait_for(lambda host=host: lab.status(host).get("acked_readings"), 30, f"{host} delivers")


def test_a_second_run_changes_nothing(converged):
    counts = changed(converged.playbook("site.yml", name="site.yml, second run"))
    assert counts and not any(counts.values()), counts


def test_the_fleet_is_healthy(converged):
    output = converged.playbook("health.yml")
    assert "missing 0, doubled 0" in output
    assert "WRONG" not in output.split("TASK [Show how the fleet is]")[1].split("TASK")[0]
    name = converged.host("edge1")
    output = converged.playbook("health.yml", "--limit", name, name="health.yml of one host")
    assert re.search(rf"{name} +ok", output), "one host is told of as well"


def test_another_home_folder_makes_no_authority_and_changes_no_host(converged, tmp_path):
    trusted = converged.run("edge1", "cat /etc/skywave/credentials/ca.crt")
    output = converged.playbook("site.yml", "--check", check=False, home=tmp_path, name="site.yml, another home")
    assert "There is no authority" in output and "Prepare every host" not in output
    assert not (tmp_path / ".skywave").exists()
    output = converged.playbook(
        "site.yml", "-e", "authority=new", check=False, home=tmp_path, name="site.yml, a second authority"
    )
    assert "trusts another authority" in output and "Prepare every host" not in output
    assert not (tmp_path / ".skywave").exists()
    assert converged.run("edge1", "cat /etc/skywave/credentials/ca.crt") == trusted


def test_a_name_as_an_address_is_refused(converged):
    arguments = ("--check", "--limit", f"{converged.host('edge2')},localhost", "-e", "fleet_address=edge2.example.org")
    output = converged.playbook("site.yml", *arguments, check=False, name="site.yml, a name as an address")
    assert "must be an IPv4 address" in output


def test_a_run_that_leaves_out_the_controller_says_so_at_once(converged):
    output = converged.playbook(
        "site.yml", "--limit", converged.host("edge1"), check=False, name="site.yml, a bad limit"
    )
    assert "--limit 'NAME,localhost'" in output and "Prepare every host" not in output
