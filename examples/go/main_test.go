// The client against proto/vectors, and against what is broken.
package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"plaintap.example/client/ecaptureq"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func vectors(t *testing.T) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("../../proto/vectors/*.bin")
	if err != nil || len(paths) == 0 {
		t.Fatal("no vectors", err)
	}
	vectors := map[string][]byte{}
	for _, path := range paths {
		vectors[strings.TrimSuffix(path, ".bin")] = read(t, path)
	}
	return vectors
}

func TestEveryFieldIsDecoded(t *testing.T) {
	for path, message := range vectors(t) {
		decoded, wanted := &ecaptureq.LogEntry{}, &ecaptureq.LogEntry{}
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(message, decoded); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := protojson.Unmarshal(read(t, path+".json"), wanted); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if !proto.Equal(decoded, wanted) {
			t.Errorf("%s: %v, not %v", path, decoded, wanted)
		}
	}
}

func TestEveryVectorIsPrintedAsExpected(t *testing.T) {
	all := vectors(t)
	lines := strings.Split(strings.TrimSuffix(string(read(t, "../vectors.txt")), "\n"), "\n")
	if len(lines) != len(all) {
		t.Errorf("%d lines of %d vectors", len(lines), len(all))
	}
	for _, text := range lines {
		vector, wanted, _ := strings.Cut(text, " ")
		if got := line(all["../../proto/vectors/"+vector]); got != wanted {
			t.Errorf("%s: %q, not %q", vector, got, wanted)
		}
	}
}

func TestNoCutOrChangedMessageCrashes(t *testing.T) {
	for path, message := range vectors(t) {
		for length := range message {
			changed := append([]byte{}, message...)
			changed[length] ^= 0xff
			for _, broken := range [][]byte{message[:length], changed} {
				if text := line(broken); strings.ContainsAny(text, "\n\x1b") {
					t.Errorf("%s: %q", path, text)
				}
			}
		}
	}
}
