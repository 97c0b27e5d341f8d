#!/usr/bin/env python3
"""Checks every crate that the product is built from against deny.toml: its licence, and where it comes from.

It reads the same allow lists as `cargo deny check licenses sources` does, and needs nothing but Python 3.11 and cargo.
"""

import json
import re
import subprocess
import sys
import tomllib


def allowed(expression: str, allow: set[str]) -> bool:
    """Whether an SPDX expression can be met with the licences in `allow`. AND binds closer than OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def one() -> bool:
        token = tokens.pop(0)
        if token == "(":
            value = either()
            if tokens.pop(0) != ")":
                raise ValueError(expression)
            return value
        if tokens[:1] == ["WITH"]:
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    def both() -> bool:
        value = one()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            value = one() and value
        return value

    def either() -> bool:
        value = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            value = both() or value
        return value

    value = either()
    if tokens:
        raise ValueError(expression)
    return value


def packages(targets: list[str]) -> list[dict]:
    """The crates that are built for any of `targets`; those for other systems are not even fetched."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    for target in targets:
        command += ["--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    used = {node["id"] for node in metadata["resolve"]["nodes"]}
    return [package for package in metadata["packages"] if package["id"] in used]


def main() -> int:
    with open("deny.toml", "rb") as file:
        rules = tomllib.load(file)
    licences = set(rules["licenses"]["allow"])
    exceptions = {one["crate"]: set(one["allow"]) for one in rules["licenses"].get("exceptions", [])}
    # None: a crate of this workspace.
    sources = {None} | {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    crates = packages(rules["graph"]["targets"])
    wrong = 0
    for crate in crates:
        name = f"{crate['name']} {crate['version']}"
        try:
            fine = allowed(crate["license"] or "none", licences | exceptions.get(crate["name"], set()))
        except (IndexError, ValueError):
            fine = False
        if not fine:
            print(f"{name}: licence {crate['license']!r} is not met by deny.toml's list", file=sys.stderr)
            wrong += 1
        if crate["source"] not in sources:
            print(f"{name}: {crate['source']} is not a source in deny.toml's list", file=sys.stderr)
            wrong += 1
    print(f"{len(crates)} crates, {wrong} problems")
    return 1 if wrong or not crates else 0


if __name__ == "__main__":
    sys.exit(main())
