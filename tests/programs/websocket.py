"""Both ends of a WebSocket over TLS, with permessage-deflate: one thread serves, the other asks.

usage: websocket.py CERTIFICATE KEY; begins when a line comes, prints `done`.
"""
import socket
import ssl
import struct
import sys
import threading
import zlib

REQUEST = (b"GET /chat HTTP/1.1\r\nHost: elsewhere\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
           b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
RESPONSE = (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")


def frame(first, payload, mask=None):
    head = bytes([first, len(payload) | (0x80 if mask else 0)]) + (mask or b"")
    return head + bytes(byte ^ mask[at % 4] if mask else byte for at, byte in enumerate(payload))


def deflated(deflate, text):
    return (deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def read(stream, length):
    data = b""
    while len(data) < length:
        piece = stream.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def serve(listener, context):
    stream = context.wrap_socket(listener.accept()[0], server_side=True)
    read(stream, len(REQUEST))
    stream.sendall(RESPONSE)
    deflate = zlib.compressobj(wbits=-15)
    whole = deflated(deflate, b"a message in 3 fragments")
    stream.sendall(frame(0x41, whole[:5]))
    stream.sendall(frame(0x89, b"there") + frame(0x00, whole[5:6]))
    stream.sendall(frame(0x80, whole[6:]))
    try:
        while stream.recv(1000):
            pass
    except OSError:
        pass


def ask(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="ws.example.org")
    stream.sendall(REQUEST)
    read(stream, len(RESPONSE))
    deflate, mask = zlib.compressobj(wbits=-15), b"\x11\x22\x33\x44"
    for text in [b'{"said": ["hello", "hello", "hello"]}  ', b"again: hello hello hello"]:
        stream.sendall(frame(0xc1, deflated(deflate, text), mask))
    # Until all that the server has to say is there: four frames with headers of two bytes.
    length = len(deflated(zlib.compressobj(wbits=-15), b"a message in 3 fragments"))
    read(stream, 4 * 2 + length + len(b"there"))
    stream.sendall(frame(0x88, struct.pack(">H", 1000) + b"done", mask))
    stream.close()


sys.stdin.readline()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
server = threading.Thread(target=serve, args=(listener, context))
server.start()
ask(listener.getsockname()[1])
server.join()
print("done", flush=True)
