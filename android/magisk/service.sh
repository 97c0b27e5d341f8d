#!/system/bin/sh
# Runs at each boot, beside it (late_start service).
MODDIR=${0%/*}
# shellcheck source=android/magisk/plaintap.sh
. "$MODDIR/plaintap.sh"

# Apps and their list are there only then.
until [ "$(getprop sys.boot_completed)" = 1 ]; do
  sleep 1
done
start
