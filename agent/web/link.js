// The WebSocket to the agent: comes back after a cut, where it left off.

/** The query that asks for what comes next: `known` has `run` and `after`. */
export function queryOf(known, token) {
  const query = new URLSearchParams(known.run ? { after: known.after, run: known.run } : { backlog: "all" });
  if (token) query.set("token", token);
  return `?${query}`;
}

/** Keeps a connection to `base`. Calls `message(bytes)` and `state(text, open)`; `known` is the caller's. */
export function connect(base, token, known, message, state) {
  let failures = 0;
  const open = () => {
    const socket = new WebSocket(base + queryOf(known, token));
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
