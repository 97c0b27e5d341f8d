# shellcheck shell=dash
# What the module's scripts share: where things are, whether plaintapd runs, how it is started and stopped. Sourced, with
# MODDIR set. The processes themselves say what runs: there is no file that could be out of date.

# All that outlives an update of the module; uninstall.sh removes it.
state=/data/adb/plaintap
config=$state/plaintapd.conf
agent=$MODDIR/plaintapd
# How many seconds plaintapd has to take its probes away.
patience=15

# tell MESSAGE: to whoever looks, and to logcat.
tell() {
  echo "$1"
  log -t plaintap -p i "$1" 2>/dev/null
}

# chosen: whether the config file says what to capture. Without such a line plaintapd would capture everything.
chosen() { grep -Eq '^[[:space:]]*--(package|uid|pid|comm)([[:space:]]+|=)[[:space:]]*[^![:space:]]' "$config" 2>/dev/null; }

# called ARGUMENT: the processes that have it among theirs.
called() { grep -lsxzF -e "$1" /proc/[0-9]*/cmdline | cut -d / -f 3; }
# supervisors, agents: the process ids of ours, and of nobody who edits or lists our files.
supervisors() {
  local pid
  for pid in $(called "$MODDIR/supervise.sh"); do
    case $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") in
      *"sh $MODDIR/supervise.sh ") echo "$pid" ;;
    esac
  done
}
agents() {
  local pid
  for pid in $(called "$agent"); do
    case $(readlink "/proc/$pid/exe") in
      # An update replaces the file under the running program.
      "$agent" | "$agent (deleted)") echo "$pid" ;;
    esac
  done
}

running() { [ -n "$(supervisors)$(agents)" ]; }

# start: false, with the reason told, if it must not.
start() {
  if running; then
    tell "plaintapd runs already"
  elif [ ! -r "$config" ]; then
    tell "$config is missing: install the module again"
    return 1
  elif ! chosen; then
    tell "plaintapd stays off: $config names nothing to capture; add a line such as --package org.example.app"
    return 1
  else
    # A session of its own: it must outlive the app whose button was pressed.
    setsid sh "$MODDIR/supervise.sh" </dev/null >/dev/null 2>&1 &
    tell "plaintapd starts; logcat -s plaintapd shows its log"
  fi
}

# ended SECONDS: waits for the end of all of ours.
ended() {
  local left=$(($1 * 5))
  while running; do
    [ $left -gt 0 ] || return 1
    left=$((left - 1))
    sleep 0.2
  done
}

# stop: the supervisor ends plaintapd; what does not end by itself is killed.
stop() {
  local pid
  for pid in $(supervisors) $(agents); do
    kill "$pid" 2>/dev/null
  done
  ended $patience && return
  for pid in $(supervisors) $(agents); do
    kill -KILL "$pid" 2>/dev/null
  done
  ended $patience
}
