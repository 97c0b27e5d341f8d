// Prints what plaintapd sends: one line a message.
//
//	go run . [URL]      default: ws://127.0.0.1:28257/
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coder/websocket"
	"google.golang.org/protobuf/proto"

	"plaintap.example/client/ecaptureq"
)

// An event's payload is at most 16 KiB; this is far more than any message needs.
const maxMessage = 1 << 20

var (
	protocols  = []string{"?", "http1-request", "http2-request", "http1-response", "http2-response", "websocket"}
	directions = []string{"?", "read", "written"}
)

// printable is text that harms no terminal: ASCII as it is, \xHH for every other byte and the backslash.
func printable[T string | []byte](data T) string {
	var text strings.Builder
	for _, b := range []byte(data) {
		if b >= ' ' && b <= '~' && b != '\\' {
			text.WriteByte(b)
		} else {
			fmt.Fprintf(&text, `\x%02x`, b)
		}
	}
	return text.String()
}

// name is the number's name, or the number where a newer agent knows more of them.
func name(names []string, number int64) string {
	if number >= 0 && number < int64(len(names)) {
		return names[number]
	}
	return strconv.FormatInt(number, 10)
}

// line is what is printed for one binary message.
func line(message []byte) string {
	entry := &ecaptureq.LogEntry{}
	if err := proto.Unmarshal(message, entry); err != nil {
		return fmt.Sprintf("undecodable bytes=%d", len(message))
	}
	event, beat, log := entry.GetEventPayload(), entry.GetHeartbeatPayload(), entry.GetRunLog()
	switch entry.LogType {
	case ecaptureq.LogType_LOG_TYPE_EVENT:
		if event != nil {
			return fmt.Sprintf("event seq=%d %s[%d/%d] %s %s:%d->%s:%d %s connection=%d offset=%d lost_before=%d %s",
				entry.Seq, printable(event.Pname), event.Pid, event.Tid, name(directions, int64(event.Direction)),
				printable(event.SrcIp), event.SrcPort, printable(event.DstIp), event.DstPort,
				name(protocols, int64(event.Type)), event.ConnectionId, event.StreamOffset, event.LostBefore,
				printable(event.Payload))
		}
	case ecaptureq.LogType_LOG_TYPE_HEARTBEAT:
		if beat != nil {
			return fmt.Sprintf("heartbeat count=%d run=%s last_seq=%d lost_events=%d missed_messages=%d",
				beat.Count, printable(beat.RunId), beat.LastSeq, beat.LostEvents, beat.MissedMessages)
		}
	case ecaptureq.LogType_LOG_TYPE_PROCESS_LOG:
		if _, ok := entry.Payload.(*ecaptureq.LogEntry_RunLog); ok {
			return fmt.Sprintf("log seq=%d %s", entry.Seq, printable(log))
		}
	}
	return fmt.Sprintf("unknown log_type=%d seq=%d", entry.LogType, entry.Seq)
}

// follow prints all that comes, until the agent ends. Another close is an error: 4008, for one, is "too slow".
func follow(ctx context.Context, url string) error {
	socket, _, err := websocket.Dial(ctx, url, nil)
	if err != nil {
		return err
	}
	defer socket.CloseNow()
	socket.SetReadLimit(maxMessage)
	for {
		kind, message, err := socket.Read(ctx)
		switch websocket.CloseStatus(err) {
		case websocket.StatusNormalClosure, websocket.StatusGoingAway:
			return nil
		}
		if err != nil {
			return err
		}
		if kind == websocket.MessageBinary {
			if _, err := fmt.Println(line(message)); err != nil {
				return err
			}
		}
	}
}

func main() {
	url := "ws://127.0.0.1:28257/"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	if err := follow(context.Background(), url); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}
