#!/usr/bin/env bash
# Fetches what the virtual machines are made of, into target/vm/: Debian's arm64 kernels and a small arm64 system.
#
#   bash tests/vm/fetch.sh     does nothing, quickly, when all is there
#
# The emulator and the cross compiler are installed on this machine, if missing. Everything for the guests comes through
# an apt configuration of its own, which knows nothing of this machine's packages but trusts the same keys, and is only
# unpacked. Each part is made aside and renamed when it is whole, so it is safe to interrupt this.
set -euo pipefail
# shellcheck source=tests/vm/lib.sh
source "$(dirname "$0")/lib.sh"

host_packages=(qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross cpio xz-utils debian-archive-keyring)
# Android 14's BoringSSL and its tool, OpenSSL 3 and its tool, the real adbd; their libraries come along.
guest_packages=(busybox-static android-libboringssl android-boringssl libssl3t64 openssl adbd)
guest_release=trixie
# Where the kernels come from: Debian's last three releases. Their own updates first, as far as they are still served.
suites=(bullseye bullseye-security bookworm trixie)
# In the order in which they load; what a kernel has built in, it lacks here. veth: networks of a test's own.
modules=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net
  rng-core virtio-rng inet_diag tcp_diag veth)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# What the parts are made from: another text here fetches them anew.
guest_wanted="$guest_release ${guest_packages[*]}"
kernel_wanted="${modules[*]}"

install_on_host() {
  local package packages=()
  for package in "${host_packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || packages+=("$package")
  done
  ((${#packages[@]})) || return 0
  ((EUID == 0)) || die "${packages[*]} missing: run bash tests/vm/fetch.sh as root" 3
  say "installing ${packages[*]}"
  local install=(apt-get -q -y -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120)
  export DEBIAN_FRONTEND=noninteractive
  # An old list names files that the mirror no longer has: once more with a fresh one.
  "${install[@]}" install --no-install-recommends --no-remove "${packages[@]}" >"$log" 2>&1 ||
    { "${install[@]}" update && "${install[@]}" install --no-install-recommends --no-remove "${packages[@]}"; } >"$log" 2>&1 ||
    die "apt-get can't install ${packages[*]}: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
}

# mirror NAME: this machine's mirror of Debian's archive NAME, else the one that every Debian starts with.
mirror() {
  local uri
  # shellcheck disable=SC2016 # $(SITE) is apt's own
  uri=$(apt-get indextargets --no-release-info --format '$(SITE)' 'Created-By: Packages' 2>/dev/null |
    sed 's|/*$||' | grep -m 1 "/$1\$") || uri=http://deb.debian.org/$1
  printf '%s\n' "$uri"
}

# Makes the guests' apt configuration, in a folder that goes when this script ends.
configure() {
  local archive suite
  [[ -r $keyring ]] || die "$keyring is missing: apt-get install debian-archive-keyring"
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/etc/preferences.d"
  : >"$apt/status"
  for suite in "${suites[@]}"; do
    archive=debian
    [[ $suite != *-security ]] || archive=debian-security
    printf 'deb [arch=arm64 signed-by=%s] %s %s main\n' "$keyring" "$(mirror $archive)" "$suite"
  done >"$apt/sources.list"
  {
    # How this machine reaches its mirrors, proxies included.
    apt-config dump Acquire
    cat <<END
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc "$apt/etc";
Dir::Etc::Parts "/dev/null";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
END
  } >"$apt/apt.conf"
  say "fetching the lists of Debian's arm64 packages (27 MB)"
  # One suite that is gone need not matter: what is missing then is named by what needs it.
  guest_apt apt-get -q update >"$log" 2>&1 || say "$(grep -m 1 '^[EW]:' "$log" || echo "apt-get update failed")"
}

guest_apt() { APT_CONFIG=$apt/apt.conf "$@"; }

# complete NAME WANTED: puts target/vm/NAME.new in its place.
complete() {
  printf '%s\n' "$2" >"$vm/$1.new/.complete"
  rm -rf "${vm:?}/$1"
  mv "$vm/$1.new" "$vm/$1"
}

fetch_guest() {
  local deb new=$vm/guest.new
  say "fetching ${guest_packages[*]} of $guest_release (8 MB)"
  guest_apt apt-get -q -y install --download-only --no-install-recommends -t "$guest_release" "${guest_packages[@]}" \
    >"$log" 2>&1 || die "apt-get can't fetch the guests' packages: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
  rm -rf "$new"
  mkdir -p "$new/tree"
  # Debian's folders moved to /usr before this release.
  mkdir -p "$new/tree/usr/"{bin,sbin,lib}
  ln -s usr/bin usr/sbin usr/lib "$new/tree/"
  for deb in "$apt"/cache/archives/*.deb; do
    dpkg --fsys-tarfile "$deb" | tar -x -C "$new/tree" --keep-directory-symlink
  done
  rm -rf "$new"/tree/usr/share/{doc,man,locale,lintian,bash-completion,gdb,gcc} "$new"/tree/usr/lib/*/{gconv,perl*,ossl-modules}
  complete guest "$guest_wanted"
}

# fetch_kernel SERIES: the newest version of it that a mirror has.
fetch_kernel() {
  local series=$1 new=$vm/kernel-$1.new version image deb module file
  rm -rf "$new"
  mkdir -p "$new/modules" "$new/deb"
  while read -r version; do
    image=$(guest_apt apt-cache show "linux-image-cloud-arm64=$version" |
      sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p')
    say "fetching $image (17 to 28 MB)"
    (cd "$new/deb" && guest_apt apt-get -q download "$image") >"$log" 2>&1 && break
    # A mirror may list a version that it no longer serves.
    say "$(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
  done < <(guest_apt apt-cache madison linux-image-cloud-arm64 | awk -F ' *[|] *' '{ print $2 }' |
    grep "^${series//./\\.}\." | sort -Vru)
  deb=$(find "$new/deb" -name '*.deb')
  [[ -n $deb ]] || die "no mirror serves a cloud-arm64 kernel $series"
  mkdir "$new/tree"
  dpkg --fsys-tarfile "$deb" | tar -x -C "$new/tree"
  mv "$new/tree/boot/"vmlinuz-* "$new/vmlinuz"
  mv "$new/tree/boot/"config-* "$new/config"
  for module in "${modules[@]}"; do
    file=$(find "$new/tree" -name "$module.ko*" -print -quit)
    [[ -n $file ]] || continue
    case $file in
      *.xz) xz -dc "$file" >"$new/modules/$module.ko" ;;
      *.ko) cp "$file" "$new/modules/$module.ko" ;;
      *) die "$(basename "$file"): packed in a way that this script doesn't know" ;;
    esac
    printf '%s\n' "$module" >>"$new/modules/order"
  done
  rm -rf "$new/tree" "$new/deb"
  complete "kernel-$series" "$kernel_wanted"
}

[[ ${1:-} != -h && ${1:-} != --help ]] || usage 0
(($# == 0)) || usage 2 >&2
command -v apt-get >/dev/null || die "no apt-get here: this script knows Debian only"
mkdir -p "$vm"
exec 9>"$vm/lock"
flock -w 600 9 || die "another fetch.sh has been at work for ten minutes"
log=$vm/fetch.log
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT

install_on_host
missing=()
fetched guest "$guest_wanted" || missing+=(guest)
for kernel in "${kernels[@]}"; do
  fetched "kernel-$kernel" "$kernel_wanted" || missing+=("$kernel")
done
((${#missing[@]})) || exit 0
configure
for part in "${missing[@]}"; do
  if [[ $part == guest ]]; then fetch_guest; else fetch_kernel "$part"; fi
done
