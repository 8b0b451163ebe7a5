"""Compares the units that the module for NixOS makes with those in deploy/: what protects a service there must be here.

units.py EVALUATED DEPLOY: EVALUATED is what tests/deploy/nixos.nix gives, as JSON.
"""
import json
import pathlib
import re
import sys

# What differs on purpose: paths of the store, variables by an option, and users that the package of Debian makes.
OWN = {"ExecStart", "EnvironmentFile", "Environment"}


def of_unit(text):
    """Settings of [Service] and [Unit], each with its words."""
    found = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if match := re.match(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).extend(match[2].split())
    return found


def words(value):
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(word) for word in (value if isinstance(value, list) else [value])]


evaluated = json.load(open(sys.argv[1]))
deploy = pathlib.Path(sys.argv[2])
failures = []
if evaluated["nothing"].get("systemd"):
    failures.append("a module that is not enabled makes units")
for name in ["distd-server", "distd-peer", "distd-agent"]:
    unit = evaluated["plain"]["systemd"]["services"][name]
    config = {key: words(value) for key, value in unit["serviceConfig"].items()}
    wanted = of_unit((deploy / f"{name}.service").read_text())
    for key, value in wanted.items():
        if key in {"Description", "Wants", "After", "WantedBy", "StartLimitIntervalSec"} | OWN:
            continue
        if config.get(key) != value:
            failures.append(f"{name}: {key} is {config.get(key)}, and {value} in deploy/{name}.service")
    for key in config.keys() - wanted.keys():
        failures.append(f"{name}: {key} is not in deploy/{name}.service")
    if unit["environment"].get("MALLOC_ARENA_MAX") != "2" or unit["startLimitIntervalSec"] != 0:
        failures.append(f"{name}: environment or limit of starts")
full = evaluated["full"]["systemd"]["services"]
device = full["distd-agent"]
if device["environment"].get("DISTD_PARENT") != "a:1,b:2" or "enroll --token-file" not in device["preStart"]:
    failures.append("distd-agent: parents or enrolment")
if "--token-file %d/join-token" not in full["distd-peer"]["serviceConfig"]["ExecStart"]:
    failures.append("distd-peer: the join token")
firewall = evaluated["full"]["networking"]["firewall"]
if not firewall["allowedUDPPorts"]:
    failures.append("the firewall")
for failure in failures:
    print(failure, file=sys.stderr)
print(f"3 units compared: {len(failures)} differences")
sys.exit(1 if failures else 0)
