# shellcheck shell=dash
# Sourced by the installers of Magisk, KernelSU and APatch when the module's files are in MODPATH: refuses devices that
# plaintapd can't work on, and makes the config file if there is none.
# shellcheck disable=SC2154 # the installer sets ARCH, BOOTMODE and MODPATH

[ "$ARCH" = arm64 ] || abort "! This device's CPU is $ARCH: plaintap's module is for arm64 only"

# 5.10 is the first kernel with all that plaintapd needs (ring buffers among it), and Android's first common one.
kernel=$(uname -r)
minor=${kernel#*.}
minor=${minor%%[!0-9]*}
if [ "${kernel%%.*}" -lt 5 ] || { [ "${kernel%%.*}" -eq 5 ] && [ "$minor" -lt 10 ]; }; then
  abort "! This device's kernel is $kernel: plaintapd needs 5.10 or newer"
fi

set_perm "$MODPATH/plaintapd" 0 0 0755
version=$("$MODPATH/plaintapd" --version 2>&1) || abort "! plaintapd does not run on this device: $version"
ui_print "- $version, kernel $kernel"
# A recovery's kernel, which may be another one, is no place to look.
if [ "$BOOTMODE" = true ]; then
  findings=$("$MODPATH/plaintapd" doctor 2>&1)
  code=$?
  reason=$(printf '%s\n' "$findings" | grep '^failure' | head -n 1)
  case $code in
    0) ui_print "- plaintapd doctor: this device is fit" ;;
    4) abort "! The kernel lacks something: $reason" ;;
    *) ui_print "- plaintapd doctor: $reason" ;;
  esac
fi

MODDIR=$MODPATH
# shellcheck source=android/magisk/plaintap.sh
. "$MODPATH/plaintap.sh"
mkdir -p "$state"
chmod 700 "$state"
if [ -e "$config" ]; then
  ui_print "- $config is left as it is"
else
  cp "$MODPATH/plaintapd.conf" "$config" || abort "! Can't write $config"
  chmod 600 "$config"
fi
if ! chosen; then
  ui_print "- plaintapd stays off until $config"
  ui_print "  names an app: add a line as --package org.example.app"
fi
ui_print "- It starts at each boot; Action beside the module"
ui_print "  starts and stops it too"
