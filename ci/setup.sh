#!/usr/bin/env bash
# Installs what is missing for a job, from Debian's packages; says nothing when all is there.
#
#   bash ci/setup.sh demo     for ci/demo.sh: cargo, a C compiler, AOSP's BoringSSL and its tool
#   bash ci/setup.sh device   for ci/build-device.sh: Debian's Rust with its library's sources, pip
#   bash ci/setup.sh test     for ci/test.sh: all of that, the tools that rebuild the eBPF objects, and a browser
#
# A cargo that is new enough (rustup's) is used as it is. Nothing is ever removed.
set -euo pipefail
# shellcheck source=ci/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
  exit "$1"
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 -o Acquire::http::Timeout=30 \
    -o DPkg::Lock::Timeout=120 "$@"
}

# Whether a fresh list of packages has been had in this run.
fresh=no
refresh() {
  [[ $fresh == no ]] || return 1
  fresh=yes
  say "setup: fetching the list of Debian's packages"
  apt update >"$log" 2>&1 || true
  grep -m 1 '^[EW]:' "$log" || true
}

# Which of these packages are not installed.
missing() {
  local package state
  for package; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=none
    [[ $state == installed ]] || printf '%s\n' "$package"
  done
}

# install WHY PACKAGE...: what is missing of them.
install() {
  local why=$1 packages
  shift
  mapfile -t packages < <(missing "$@")
  ((${#packages[@]})) || return 0
  upgrade "$why" "${packages[@]}"
}

# upgrade WHY PACKAGE...: their newest versions.
upgrade() {
  local why=$1
  shift
  ((EUID == 0)) || die "$* missing ($why): run bash ci/setup.sh $profile as root" 3
  say "setup: installing $* ($why)"
  apt-cache show --no-all-versions "$@" >"$log" 2>&1 || refresh || true
  # An old list names files that the mirror no longer has: once more with a fresh one.
  until apt install --no-install-recommends --no-remove "$@" >"$log" 2>&1; do
    refresh || die "apt-get can't install $*: $(reason)"
  done
}

# Why apt-get failed, in one line.
reason() {
  local inway
  inway=$(sed -n '/will be REMOVED:$/,/^[^ ]/{/^ /p}' "$log" | xargs)
  if [[ -n $inway ]]; then
    say "$inway would have to go: apt-get remove $inway, then try again"
  else
    grep -m 1 '^E:' "$log" || tail -n 1 "$log"
  fi
}

need_cargo() {
  use_cargo "$1" && return
  local packages=(cargo-web rustc-web) why
  [[ $1 == demo ]] || packages+=(rustfmt-web rust-web-clippy)
  why="no cargo of $(oldest_rust) or newer"
  [[ $1 == demo ]] || why+=" with rustfmt and clippy"
  install "$why" "${packages[@]}"
  use_cargo "$1" && return
  # Debian's release came with an older one than its updates have.
  refresh || true
  upgrade "$why, and the one installed is older" "${packages[@]}"
  use_cargo "$1" || die "Debian's cargo-web is older than $(oldest_rust): enable bookworm-updates and \
bookworm-security in apt's sources, or install a newer Rust from https://rustup.rs"
}

need_compiler() {
  command -v cc >/dev/null || install "the C compiler that links programs" gcc
  install "the C library's headers" libc6-dev
  install "certificates, to fetch crates" ca-certificates
}

# need_packages FOLDER WHY: what the folder's package-lock.json names, in its node_modules.
need_packages() {
  command -v node >/dev/null && command -v npm >/dev/null || install "node, for $2" nodejs npm
  local place=$root/$1
  cmp -s "$place/package-lock.json" "$place/node_modules/.of-lock.json" && return
  say "setup: installing what $1/package-lock.json names ($2)"
  # As the lock file says, with none of the packages' own scripts. Not `npm ci`, which wants the packages for other systems
  # in that file too.
  several_times npm install --prefix "$place" --no-save --ignore-scripts --no-audit --no-fund >"$log" 2>&1 ||
    die "npm can't install $1/package-lock.json: $(grep -im 1 '^npm err' "$log" || tail -n 1 "$log")"
  cp "$place/package-lock.json" "$place/node_modules/.of-lock.json"
}

# The page's tests: node, a browser, and the packages of the lock file.
need_browser() {
  need_packages tests/web "the page's tests"
  install "a browser, for the page's tests" chromium
}

# The reference clients' languages and their tools; Rust is there.
need_languages() {
  local why="the reference clients" here=$target/examples
  need_packages examples/javascript "$why"
  at_least "$(go env GOVERSION 2>/dev/null | sed -n 's/^go//p')" 1.19 || install "Go, for $why" golang-go
  if [[ ! -x $here/go/protoc-gen-go ]]; then
    say "setup: building protoc-gen-go, as examples/go/go.mod names it ($why)"
    # The clients' own modules too: their tests fetch nothing then.
    (cd "$root/examples/go" && several_times go mod download && GOBIN=$here/go GOFLAGS=-mod=readonly \
      go install google.golang.org/protobuf/cmd/protoc-gen-go) >"$log" 2>&1 ||
      die "go can't build protoc-gen-go: $(tail -n 1 "$log")"
  fi
  need_venv examples/python/requirements-dev.txt "$here/python" "$why"
}

# need_venv REQUIREMENTS FOLDER WHY: a virtual environment with what the file names, which is all that is needed.
need_venv() {
  local lock=$root/$1
  cmp -s "$lock" "$2/of-lock.txt" && return
  install "Python and its virtual environments, for $3" python3 python3-venv
  say "setup: installing what $1 names ($3)"
  rm -rf "$2"
  { /usr/bin/python3 -m venv "$2" && several_times "$2/bin/pip" install --quiet --no-deps --require-hashes -r "$lock"; } >"$log" 2>&1 ||
    die "pip can't install $1: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log")"
  cp "$lock" "$2/of-lock.txt"
}

# need_libraries REQUIREMENTS FOLDER WHY: the shared libraries in the wheels for aarch64 that the file names, unpacked.
need_libraries() {
  local lock=$root/$1 wheels=$2/wheels wheel
  cmp -s "$lock" "$2/of-lock.txt" && return
  install "Python's pip, for $3" python3 python3-venv
  say "setup: fetching what $1 names ($3)"
  rm -rf "$2"
  several_times "$target/copies/bin/pip" download --quiet --no-deps --only-binary :all: --require-hashes -r "$lock" -d "$wheels" \
    --platform manylinux2014_aarch64 --python-version 3.11 --implementation cp --abi cp311 --abi abi3 >"$log" 2>&1 ||
    die "pip can't fetch $1: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log")"
  for wheel in "$wheels"/*.whl; do
    /usr/bin/python3 -m zipfile -e "$wheel" "$2"
  done
  rm -r "$wheels"
  cp "$lock" "$2/of-lock.txt"
}

# need_artifacts LIST FOLDER WHY: the files of Maven's coordinates in the list, and what is packed in them, each in a folder.
need_artifacts() {
  local lock=$root/$1 coordinates sum file
  cmp -s "$lock" "$2/of-lock.txt" && return
  install "Java and Maven, for $3" default-jdk-headless maven
  say "setup: fetching what $1 names ($3)"
  rm -rf "$2"
  while read -r coordinates sum; do
    [[ $coordinates != '#' ]] || continue
    several_times mvn -B -ntp dependency:copy -Dartifact="$coordinates" -DoutputDirectory="$2/fetched" >"$log" 2>&1 ||
      die "mvn can't fetch $coordinates: $(grep -m 1 ERROR "$log" || tail -n 1 "$log")"
    file=$(find "$2/fetched" -type f)
    sha256sum --status -c <<<"$sum  $file" || die "$coordinates is not the file that $1 names"
    /usr/bin/python3 -m zipfile -e "$file" "$2/$(basename "$file")"
    mv "$file" "$2/$(basename "$file")/"
  done <"$lock"
  rmdir "$2/fetched"
  cp "$lock" "$2/of-lock.txt"
}

need_device() {
  local rust=(rustc-web cargo-web rust-web-src)
  install "Rust and its library's sources, to build for aarch64" "${rust[@]}"
  device_rust || upgrade "Rust's library's sources and its compiler differ in version" "${rust[@]}"
  device_rust || die "rustc-web, cargo-web and rust-web-src differ in version: apt-get install ${rust[*]}"
  install "to fetch zig, the linker for aarch64" python3 python3-pip
  install "to try the aarch64 program" qemu-user
}

[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# == 1)) || usage 2 >&2
command -v apt-get >/dev/null ||
  die "no apt-get here: this script knows Debian only; what it would install is named in it"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

profile=$1
case $profile in
  demo)
    need_compiler
    need_cargo demo
    install "AOSP's BoringSSL and its tool" android-boringssl android-libboringssl
    ;;
  device)
    need_compiler
    need_device
    ;;
  test)
    need_compiler
    need_device
    need_cargo test
    install "AOSP's BoringSSL and its tool, OpenSSL and ip, for the end-to-end tests" \
      android-boringssl android-libboringssl openssl iproute2
    install "programs that speak HTTP over OpenSSL, for the end-to-end tests" curl nghttp2-client nghttp2-server python3
    install "the adb client, for the tests with the real adbd" adb
    install "a NATS server, for the tests of plaintap relay" nats-server
    install "SELinux's compiler, for a policy of the tests' own" checkpolicy
    install "Wireshark's dissectors, which read recordings in the tests" tshark
    command -v c++ >/dev/null || install "the C++ compiler that libFuzzer needs" g++
    need_packages tests/programs "programs that the end-to-end tests talk through, and HAR's schema"
    need_browser
    need_languages
    need_venv tests/copies/requirements.txt "$target/copies" "tests with copies of TLS code that programs bring"
    need_libraries tests/copies/aarch64.txt "$target/copies-aarch64" "tests with such copies for another CPU"
    need_artifacts tests/copies/maven.txt "$target/copies-java" "tests with such copies that Java programs bring"
    install "to read and try what is installed on devices" make shellcheck systemd
    # Either of two packages, which exclude each other.
    command -v busybox >/dev/null || install "the shell that devices have" busybox-static
    install "to check what is compiled for devices only" rust-web-clippy
    install "to rebuild the eBPF objects" libstd-rust-web-dev-bpf llvm-22
    ;;
  *) usage 2 >&2 ;;
esac
