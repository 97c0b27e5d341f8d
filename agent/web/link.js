// The WebSocket to the agent: comes back after a cut, where it left off.

/** The query that asks for what comes next. `known` has `run` and `after`; `plain` asks for nothing special, for a server
 * that refused to be asked. */
export function queryOf(known, token, plain) {
  const query = new URLSearchParams();
  if (!plain) {
    if (known.run) {
      query.set("after", known.after);
      query.set("run", known.run);
    } else {
      query.set("backlog", "all");
    }
  }
  if (token) query.set("token", token);
  const text = query.toString();
  return text && `?${text}`;
}

/** Keeps a connection to `base`. Calls `message(bytes)` and `state(text, open)`; `known` is the caller's. */
export function connect(base, token, known, message, state) {
  let failures = 0;
  const open = () => {
    // A server without queries may refuse them: every other try goes without.
    const socket = new WebSocket(base + queryOf(known, token, failures % 2 === 1));
    socket.binaryType = "arraybuffer";
    let opened = false;
    socket.onopen = () => {
      opened = true;
      failures = 0;
      state("connected", true);
    };
    socket.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer) message(new Uint8Array(data));
    };
    socket.onclose = () => {
      if (!opened) failures += 1;
      const wait = Math.min(10, 2 ** Math.min(failures, 4) / 2);
      state(`no connection to the agent; trying again in ${wait} s`, false);
      setTimeout(open, wait * 1000);
    };
  };
  open();
}
