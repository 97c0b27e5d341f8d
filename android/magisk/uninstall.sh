#!/system/bin/sh
# Leaves nothing: no process, and no file outside of the module's folder, which goes by itself.
MODDIR=${0%/*}
# shellcheck source=android/magisk/plaintap.sh
. "$MODDIR/plaintap.sh"

stop
rm -rf "$state"
