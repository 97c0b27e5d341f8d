#!/system/bin/sh
# shellcheck shell=dash
# Keeps plaintapd running, and its log in logcat. Ends when it is told to (SIGTERM), when plaintapd was, or when starting
# it again would be in vain.
MODDIR=${0%/*}
# shellcheck source=android/magisk/plaintap.sh
. "$MODDIR/plaintap.sh"

# Seconds before the next start: doubled with each, up to the longest; a run as long as that counts as a good one.
shortest=1 longest=60

# to_logcat: what plaintapd says besides its log, which it hands to logd itself; where there is no logd, that too.
to_logcat() {
  local line priority
  while IFS= read -r line; do
    case $line in
      *Z\ ERR\ *) priority=e ;;
      *Z\ WRN\ *) priority=w ;;
      *Z\ INF\ *) priority=i ;;
      *Z\ DBG\ * | *Z\ TRC\ *) priority=d ;;
      # Why it can't run.
      *) log -t plaintapd -p e "$line" && continue ;;
    esac
    [ -S /dev/socket/logdw ] || log -t plaintapd -p $priority "$line"
  done
}

now() { cut -d . -f 1 /proc/uptime; }

# finish PID: waits for its end; its exit code. A signal to us interrupts a wait.
finish() {
  local code
  while :; do
    wait "$1"
    code=$?
    kill -0 "$1" 2>/dev/null || return $code
  done
}

pid='' asked=''
# shellcheck disable=SC2317,SC2329 # the trap calls it
on_term() {
  asked=yes
  [ -z "$pid" ] || kill "$pid" 2>/dev/null
}
trap on_term TERM INT HUP

# A pipe without a name once both ends are open. A full /data has no room for one: what plaintapd logs, it hands to logd itself.
pipe=$state/log.$$
if mkfifo -m 600 "$pipe"; then
  to_logcat <"$pipe" &
  exec 3>"$pipe"
  rm -f "$pipe"
else
  tell "$pipe can't be made (is /data full?): only what plaintapd logs itself is in logcat"
  exec 3>/dev/null
fi

# What a supervisor that was killed left behind holds the port.
for pid in $(agents); do
  kill "$pid" 2>/dev/null
done
pid=''

delay=$shortest
while [ -z "$asked" ]; do
  began=$(now)
  "$agent" --config "$config" </dev/null >/dev/null 2>&3 3>&- &
  pid=$!
  # Told to end before there was a process to pass it on to.
  [ -z "$asked" ] || kill "$pid" 2>/dev/null
  finish "$pid"
  code=$?
  pid=''
  [ -z "$asked" ] || break
  case $code in
    0) tell "plaintapd was ended, and is not started again" && break ;;
    2 | 3 | 4 | 6)
      tell "plaintapd can't run (exit code $code; logcat -s plaintapd says why): mend $config, then press Action"
      break
      ;;
  esac
  [ $(($(now) - began)) -lt $longest ] || delay=$shortest
  tell "plaintapd ended with exit code $code; it starts again in $delay s"
  sleep $delay &
  pid=$!
  finish "$pid"
  pid=''
  delay=$((delay * 2 < longest ? delay * 2 : longest))
done
