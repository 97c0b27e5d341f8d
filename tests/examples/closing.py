"""A server for the clients' tests: ws://127.0.0.1:PORT/CODE sends a line and closes with CODE, or cuts (0). Prints PORT."""

import asyncio
from pathlib import Path

from websockets.asyncio.server import serve

MESSAGE = (Path(__file__).parent / "../../proto/vectors/process_log.bin").read_bytes()


async def close(socket):
    """Sends one message, then ends as the path says."""
    await socket.send(MESSAGE)
    code = int(socket.request.path.strip("/"))
    if code:
        await socket.close(code, "the reason")
    else:
        # Behind what the client was sent: the ping's answer comes after it.
        await (await socket.ping())
        socket.transport.abort()


async def main():
    """Serves until it is killed."""
    async with serve(close, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


asyncio.run(main())
