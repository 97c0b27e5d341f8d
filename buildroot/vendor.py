"""Leaves what no Linux build compiles out of a vendored source tree.

    vendor.py SOURCES CARGO.LOCK

Nine tenths of what `cargo vendor` fetches are import libraries for Windows. Cargo must still find those crates, as the
lock file names them: each keeps its manifest and gets an empty library. Its list of files is made to fit; its own
checksum, which the lock file holds, stays, so that cargo still sees that it is the crate that was asked for. Crates that
are compiled are left as they were published, every file.
"""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

TARGETS = [f"{cpu}-unknown-linux-{libc}" for cpu in ("aarch64", "x86_64") for libc in ("gnu", "musl")]


def compiled(sources: pathlib.Path) -> set[tuple[str, str]]:
    """Name and version of each crate that a build for one of TARGETS takes."""
    found = set()
    for target in TARGETS:
        command = ["cargo", "metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", target]
        told = json.loads(subprocess.run(command, cwd=sources, check=True, stdout=subprocess.PIPE).stdout)
        wanted = {node["id"] for node in told["resolve"]["nodes"]}
        found |= {(one["name"], one["version"]) for one in told["packages"] if one["id"] in wanted}
    return found


def hollow(crate: pathlib.Path) -> None:
    """Makes an empty library of the crate in this folder."""
    checksum = json.loads((crate / ".cargo-checksum.json").read_text())["package"]
    manifest = (crate / "Cargo.toml").read_bytes()
    shutil.rmtree(crate)
    (crate / "src").mkdir(parents=True)
    files = {"Cargo.toml": manifest, "src/lib.rs": b""}
    for name, content in files.items():
        (crate / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (crate / ".cargo-checksum.json").write_text(json.dumps({"files": sums, "package": checksum}))


def locked(path: pathlib.Path) -> set[str]:
    """What a lock file says of each crate of others: name, version and checksum."""
    return set(re.findall(r'name = "[^"]+"\nversion = "[^"]+"\nsource = "[^"]+"\nchecksum = "[^"]+"', path.read_text()))


def main() -> None:
    sources, lock = map(pathlib.Path, sys.argv[1:])
    new = locked(sources / "Cargo.lock") - locked(lock)
    if new:
        sys.exit(f"buildroot/vendor.py: not as Cargo.lock has it: {sorted(new)[0]}")
    keep = compiled(sources)
    for crate in sorted((sources / "VENDOR").iterdir()):
        text = (crate / "Cargo.toml").read_text()
        package = text[text.index("[package]") :]
        name, version = (re.search(rf'(?m)^{key} = "([^"]+)"', package)[1] for key in ("name", "version"))
        if (name, version) not in keep:
            hollow(crate)


if __name__ == "__main__":
    main()
