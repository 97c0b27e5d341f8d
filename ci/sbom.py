#!/usr/bin/env python3
"""What the programs of a release are made of.

    python3 ci/sbom.py sbom PROGRAM TARGET [LIBRARY]...   a CycloneDX 1.6 bill of materials, as JSON, on standard output
    python3 ci/sbom.py licences PROGRAM TARGET...         the licence texts of all crates in PROGRAM, each text once

LIBRARY is what no crate brings and is linked in all the same, as 'musl 1.2.5 MIT': its name, its version, its licence. The same sources give the same bytes: there is no time and no random number in it.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's, for URLs
LICENCE_FILES = ("license", "licence", "copying", "copyright", "notice", "unlicense")


def crates(program: str, target: str) -> tuple[dict, list[dict]]:
    """The program's own crate, and all that are linked into it for `target`, in order of name and version."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    (root,) = [package for package in packages.values() if package["name"] == program and package["source"] is None]
    wanted, used = [root["id"]], set()
    while wanted:
        one = wanted.pop()
        if one in used:
            continue
        used.add(one)
        for dependency in nodes[one]["deps"]:
            # Neither build scripts' nor tests' dependencies are in the program.
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                wanted.append(dependency["pkg"])
    linked = [packages[one] for one in used if one != root["id"]]
    return root, sorted(linked, key=lambda package: (package["name"], package["version"]))


def sbom(program: str, target: str, libraries: list[str]) -> dict:
    """The bill of materials."""
    lock = tomllib.loads(Path("Cargo.lock").read_text())
    sums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    root, linked = crates(program, target)

    def component(package: dict, kind: str) -> dict:
        name, version = package["name"], package["version"]
        purl = f"pkg:cargo/{name}@{version}"
        part = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
        if package["license"]:
            part["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if checksum := sums.get((name, version)):
            part["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return part

    components = [component(package, "library") for package in linked]
    for library in libraries:
        name, version, licence = library.split(" ", 2)
        purl = f"pkg:generic/{name}@{version}"
        part = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        components.append(part | {"licenses": [{"expression": licence}]})
    digest = hashlib.sha256(json.dumps([program, target, components]).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "component": component(root, "application"),
            "properties": [{"name": "target", "value": target}],
        },
        "components": components,
    }


def licences(program: str, targets: list[str]) -> str:
    """All licence texts, with the crates that each is of."""
    packages = {(one["name"], one["version"]): one for target in targets for one in crates(program, target)[1]}
    texts: dict[str, list[str]] = {}
    for (name, version), package in sorted(packages.items()):
        folder = Path(package["manifest_path"]).parent
        if package["source"] is None:
            continue
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(LICENCE_FILES))
        label = f"{name} {version} ({package['license']})"
        for path in files:
            texts.setdefault(path.read_text(errors="replace").strip(), []).append(label)
        if not files:
            texts.setdefault("No licence text comes with it.", []).append(label)
    parts = ["\n".join(dict.fromkeys(names)) + "\n\n" + text for text, names in texts.items()]
    return f"What {program} is built from, beside its own sources.\n\n" + f"\n\n{'=' * 80}\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["sbom", program, target, *libraries]:
            print(json.dumps(sbom(program, target, libraries), indent=1))
        case ["licences", program, *targets] if targets:
            print(licences(program, targets), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
