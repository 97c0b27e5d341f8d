#!/usr/bin/env python3
"""What the programs of a release are made of.

    python3 ci/sbom.py sbom PROGRAM UNITS... -- [LIBRARY]...   a CycloneDX 1.6 bill of materials, as JSON, on standard output
    python3 ci/sbom.py licences PROGRAM UNITS...               the licence texts of all crates in PROGRAM, each text once

UNITS is what cargo said it builds (`cargo build --unit-graph`), Rust's own libraries with it. LIBRARY is what no crate brings and is
linked in all the same, as 'musl 1.2.5 MIT': its name, its version, its licence. The same sources give the same bytes: there is no
time and no random number in it.
"""

import hashlib
import json
import sys
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 9562's, for URLs
REGISTRY = "registry+"
LICENCE_FILES = ("license", "licence", "copying", "copyright", "notice", "unlicense")
# Crates under the MIT licence that come without its text, nor does any other of their repository.
COPYRIGHTS = {"iced-x86": "Copyright (C) 2018-present iced project and contributors"}


@dataclass(frozen=True, order=True)
class Crate:
    """A crate that is linked into a program, by what its Cargo.toml says."""

    name: str
    version: str
    licence: str
    repository: str
    folder: Path

    def licence_texts(self) -> list[str]:
        """The texts that it comes with."""
        files = (path for path in self.folder.iterdir() if path.is_file() and path.name.lower().startswith(LICENCE_FILES))
        return [path.read_text(errors="replace").strip() for path in sorted(files)]


def units(path: str) -> Iterator[dict]:
    """The units of a program that are in it: neither build scripts, nor macros, nor what these need."""
    for unit in json.loads(Path(path).read_text())["units"]:
        if unit["platform"] and unit["mode"] == "build":
            yield unit


def crate_of(unit: dict) -> Crate:
    """The crate that a unit is of."""
    folder = Path(unit["target"]["src_path"]).parent
    while not (folder / "Cargo.toml").exists():
        folder = folder.parent
    package = tomllib.loads((folder / "Cargo.toml").read_text())["package"]
    licence = package.get("license", "").replace("/", " OR ")
    return Crate(package["name"], package["version"], licence, package.get("repository", ""), folder)


def linked(paths: list[str]) -> list[Crate]:
    """All crates of others that are in a program, in order of name and version."""
    return sorted({crate_of(unit) for path in paths for unit in units(path) if unit["pkg_id"].startswith(REGISTRY)})


def checksums(paths: list[str]) -> dict[tuple[str, str], str]:
    """What the lock files say of crates, by name and version: ours, and that of Rust's own libraries."""
    folders = {parent for path in paths for unit in units(path) for parent in Path(unit["target"]["src_path"]).parents}
    locks = [folder / "Cargo.lock" for folder in sorted(folders) if (folder / "Cargo.lock").exists()]
    packages = [package for lock in locks for package in tomllib.loads(lock.read_text())["package"]]
    return {(package["name"], package["version"]): package["checksum"] for package in packages if "checksum" in package}


def sbom(program: str, paths: list[str], libraries: list[str]) -> dict:
    """The bill of materials."""
    sums = checksums(paths)
    # As path+file:///…/agent#plaintapd@0.1.0.
    (root,) = {unit["pkg_id"] for unit in units(paths[0]) if unit["target"]["kind"] == ["bin"] and unit["target"]["name"] == program}
    (target,) = {unit["platform"] for unit in units(paths[0])}
    ours = tomllib.loads(Path("Cargo.toml").read_text())["workspace"]["package"]["license"]

    def component(kind: str, scheme: str, name: str, version: str, licence: str) -> dict:
        purl = f"pkg:{scheme}/{name}@{version}"
        part = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
        if licence:
            part["licenses"] = [{"expression": licence}]
        if checksum := sums.get((name, version)):
            part["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return part

    components = [component("library", "cargo", crate.name, crate.version, crate.licence) for crate in linked(paths)]
    components += [component("library", "generic", *library.split(" ", 2)) for library in libraries]
    digest = hashlib.sha256(json.dumps([program, target, components]).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digest)}",
        "version": 1,
        "metadata": {
            "component": component("application", "cargo", program, root.rpartition("@")[2], ours),
            "properties": [{"name": "target", "value": target}],
        },
        "components": components,
    }


def licences(program: str, paths: list[str]) -> str:
    """All licence texts, with the crates that each is of. An error where there is none for a crate."""
    crates = linked(paths)
    texts: dict[str, list[str]] = {}
    for crate in crates:
        own = crate.licence_texts()
        if not own and crate.repository:
            own = [text for other in crates if other.repository == crate.repository for text in other.licence_texts()]
        if not own and crate.name in COPYRIGHTS:
            lines = Path("LICENSE-MIT").read_text().strip().splitlines()
            own = ["\n".join(COPYRIGHTS[crate.name] if line.startswith("Copyright") else line for line in lines)]
        if not own:
            raise ValueError(f"{crate.name} {crate.version} ({crate.licence}), which is in {program}, comes without its licence's text")
        for text in own:
            texts.setdefault(text, []).append(f"{crate.name} {crate.version} ({crate.licence})")
    parts = ["\n".join(dict.fromkeys(names)) + "\n\n" + text for text, names in texts.items()]
    return f"What {program} is built from, beside its own sources.\n\n" + f"\n\n{'=' * 80}\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["sbom", program, *others] if "--" in others[1:]:
            end = others.index("--")
            print(json.dumps(sbom(program, others[:end], others[end + 1 :]), indent=1))
        case ["licences", program, *paths] if paths:
            print(licences(program, paths), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
