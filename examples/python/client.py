"""Prints what plaintapd sends: one line a message.

python client.py [URL]      default: ws://127.0.0.1:28257/
"""

import asyncio
import sys

import websockets
from google.protobuf.message import DecodeError

from ecaptureq_pb2 import LogEntry, LogType

PROTOCOLS = ["?", "http1-request", "http2-request", "http1-response", "http2-response", "websocket"]
DIRECTIONS = ["?", "read", "written"]


def printable(data):
    """Text that harms no terminal: ASCII as it is, \\xHH for every other byte and the backslash."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in data)


def name(names, number):
    """The number's name, or the number where a newer agent knows more of them."""
    return names[number] if 0 <= number < len(names) else str(number)


def line(message):
    """What is printed for one binary message."""
    try:
        entry = LogEntry.FromString(message)
    except DecodeError:
        return f"undecodable bytes={len(message)}"
    kind = entry.WhichOneof("payload")
    if entry.log_type == LogType.LOG_TYPE_EVENT and kind == "event_payload":
        event = entry.event_payload
        return (
            f"event seq={entry.seq} {printable(event.pname.encode())}[{event.pid}/{event.tid}] "
            f"{name(DIRECTIONS, event.direction)} {printable(event.src_ip.encode())}:{event.src_port}"
            f"->{printable(event.dst_ip.encode())}:{event.dst_port} {name(PROTOCOLS, event.type)} "
            f"connection={event.connection_id} offset={event.stream_offset} lost_before={event.lost_before} "
            f"{printable(event.payload)}"
        )
    if entry.log_type == LogType.LOG_TYPE_HEARTBEAT and kind == "heartbeat_payload":
        beat = entry.heartbeat_payload
        return (
            f"heartbeat count={beat.count} run={printable(beat.run_id.encode())} last_seq={beat.last_seq} "
            f"lost_events={beat.lost_events} missed_messages={beat.missed_messages}"
        )
    if entry.log_type == LogType.LOG_TYPE_PROCESS_LOG and kind == "run_log":
        return f"log seq={entry.seq} {printable(entry.run_log.encode())}"
    return f"unknown log_type={entry.log_type} seq={entry.seq}"


async def main(url):
    """Prints all that comes, until the agent ends the connection."""
    async with websockets.connect(url, compression=None) as socket:
        async for message in socket:
            print(line(message), flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:2] or ["ws://127.0.0.1:28257/"]))
    except (OSError, websockets.WebSocketException) as error:
        sys.exit(f"client.py: {error}")
    except KeyboardInterrupt:
        pass
