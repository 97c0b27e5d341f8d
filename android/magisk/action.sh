#!/system/bin/sh
# The Action button beside the module: starts plaintapd, or stops it until the next press or boot.
MODDIR=${0%/*}
# shellcheck source=android/magisk/plaintap.sh
. "$MODDIR/plaintap.sh"

if running; then
  if stop; then
    tell "plaintapd is stopped"
  else
    tell "plaintapd does not end: reboot"
    exit 1
  fi
else
  start
fi
