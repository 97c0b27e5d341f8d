#!/usr/bin/env bash
# Runs a command on a real arm64 kernel, in a virtual machine of its own; ends as the command does.
#
#   bash tests/vm/run.sh 5.10|6.1|6.12 [OPTION]... -- COMMAND [ARGUMENT]...
#     --cpu CPU               another CPU than neoverse-n1; max has pointer authentication and BTI
#     --file FILE=PATH        puts FILE into the guest at PATH, with its mode; may be repeated
#     --timeout SECONDS       for all of it, from switching on; 120 if not given
#     --memory MIB            1024 if not given
#     --port HERE=THERE       has port HERE of this computer's loopback lead to the guest's port THERE; may be repeated
#     --boot TEXT             goes on the kernel's command line
#     --monitor SOCKET        has the emulator take commands there (QMP)
#
#   bash tests/vm/run.sh 5.10 --file dist/plaintapd-aarch64=/usr/bin/plaintapd -- plaintapd --version
#
# The guest is a busybox with both TLS libraries, in memory; the command is root there, and its console is our standard
# output. Exit codes: the command's own, else 124 it took too long, 125 the machine did not start, its kernel panicked
# or it ended on its own, which one line on standard error tells apart. 2: wrong usage.
set -euo pipefail
here=$PWD
# shellcheck source=tests/vm/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cpu=neoverse-n1 timeout=120 memory=1024 files=() monitor=() boot='' ports=
kernel=${1:-}
case $kernel in
  -h | --help) usage 0 ;;
  '' | -*) usage 2 >&2 ;;
esac
[[ " ${kernels[*]} " == *" $kernel "* ]] || die "no kernel '$kernel': one of ${kernels[*]}" 2
shift
while (($#)) && [[ $1 != -- ]]; do
  (($# > 1)) || usage 2 >&2
  case $1 in
    --cpu) cpu=$2 ;;
    --timeout) timeout=$2 ;;
    --memory) memory=$2 ;;
    --boot) boot=$2 ;;
    --monitor) monitor=(-qmp "unix:$2,server=on,wait=off") ;;
    --file)
      [[ $2 == ?*=/?* ]] || die "'$2' is not FILE=/PATH/IN/GUEST" 2
      files+=("$2")
      ;;
    --port)
      [[ $2 =~ ^[0-9]+=[0-9]+$ ]] || die "'$2' is not PORT=PORT" 2
      ports+=",hostfwd=tcp:127.0.0.1:${2%=*}-:${2#*=}"
      ;;
    *) usage 2 >&2 ;;
  esac
  shift 2
done
(($# > 1)) || usage 2 >&2
shift

[[ -f $vm/guest/.complete && -f $vm/kernel-$kernel/.complete ]] || bash "$root/tests/vm/fetch.sh"

work=$(mktemp -d)
machine=
# shellcheck disable=SC2317 # the trap calls it
end() {
  # timeout(1) leads a process group of its own.
  if [[ -n $machine ]]; then
    kill -KILL -- "-$machine" && wait "$machine"
  fi 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# pack FOLDER: an archive of it, for the initramfs; the kernel takes several, one after the other.
pack() { (cd "$1" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0); }

mkdir -p "$work/extra/modules" "$work/extra/etc"
extra=$work/extra
cp "$vm/kernel-$kernel/modules/"* "$extra/modules/"
cp "$root/tests/vm/init" "$extra/init"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$extra/etc/passwd"
printf 'root:x:0:\nshell:x:2000:\n' >"$extra/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$extra/etc/hosts"
{
  printf '#!/bin/sh\nexec'
  printf ' %s' "${@@Q}"
  printf '\n'
} >"$extra/command"
chmod +x "$extra/command" "$extra/init"
for file in "${files[@]}"; do
  from=${file%%=/*} to=/${file#*=/}
  [[ $from == /* ]] || from=$here/$from
  [[ -f $from ]] || die "$from is missing" 2
  mkdir -p "$extra$(dirname "$to")"
  cp -L --preserve=mode "$from" "$extra$to"
done
# A file's folder may be a link in the guest's tree (/bin); a real one would take its place.
for folder in bin sbin lib; do
  [[ ! -d $extra/$folder ]] || die "give /usr/$folder/… in place of /$folder/…" 2
done
{
  pack "$vm/guest/tree"
  pack "$extra"
} >"$work/initramfs"

mark=plaintap-vm-$(od -An -N6 -tx1 /dev/urandom | tr -d ' \n')
mkfifo "$work/console"
timeout --kill-after=5 "$timeout" qemu-system-aarch64 -machine virt -cpu "$cpu" -smp 2 -m "$memory" \
  -accel tcg,thread=multi -nodefaults -display none -serial stdio "${monitor[@]}" -no-reboot \
  -kernel "$vm/kernel-$kernel/vmlinuz" -initrd "$work/initramfs" \
  -append "console=ttyAMA0 rdinit=/init quiet panic=-1 $boot MARK=$mark" \
  -netdev "user,id=n0,restrict=on$ports" -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci \
  </dev/null >"$work/console" 2>&1 &
machine=$!

# Prints the console line by line, up to the command's end, and keeps from it what ends this run.
up=no status='' panic=''
while IFS= read -r line || [[ -n $line ]]; do
  [[ -z $status ]] || continue
  line=${line%$'\r'}
  case $line in
    "$mark up") up=yes && continue ;;
    *"$mark exit "*)
      status=${line##*"$mark exit "}
      line=${line%"$mark exit "*}
      [[ -n $line ]] || continue
      ;;
    *"Kernel panic - not syncing: "*) panic=${line#*not syncing: } ;;
  esac
  printf '%s\n' "$line"
done <"$work/console"

ended=0
wait "$machine" || ended=$?
machine=
name="kernel $kernel on $cpu"
[[ -z $status ]] || exit "$status"
[[ -z $panic ]] || die "$name panicked: $panic" 125
if ((ended == 124 || ended == 137)); then
  [[ $up == yes ]] || die "$name did not start within $timeout s" 125
  die "$name: the command took longer than $timeout s" 124
fi
[[ $up == yes ]] || die "$name did not start (qemu ended with $ended)" 125
die "$name: the machine ended before the command did (qemu ended with $ended)" 125
