"""The client against proto/vectors, and against what is broken."""

import json
import unittest
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from client import line
from ecaptureq_pb2 import LogEntry

HERE = Path(__file__).parent
VECTORS = sorted((HERE / "../../proto/vectors").glob("*.bin"))
EXPECTED = dict(text.split(" ", 1) for text in (HERE / "../vectors.txt").read_text().splitlines())


class Vectors(unittest.TestCase):
    def test_every_field_is_decoded(self):
        for path in VECTORS:
            decoded = MessageToDict(
                LogEntry.FromString(path.read_bytes()),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            # A field of a "oneof" has presence; the log type and seq are always there.
            wanted = {
                "log_type": "LOG_TYPE_HEARTBEAT",
                "seq": "0",
                **json.loads(path.with_suffix(".json").read_text()),
            }
            self.assertEqual(decoded, wanted, path.name)

    def test_every_vector_is_printed_as_expected(self):
        self.assertEqual({path.stem: line(path.read_bytes()) for path in VECTORS}, EXPECTED)

    def test_no_cut_or_changed_message_crashes(self):
        for path in VECTORS:
            message = path.read_bytes()
            for length in range(len(message)):
                self.assertTrue(line(message[:length]).isprintable())
                changed = bytearray(message)
                changed[length] ^= 0xFF
                self.assertTrue(line(bytes(changed)).isprintable())


if __name__ == "__main__":
    unittest.main()
