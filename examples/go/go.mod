module plaintap.example/client

go 1.19

require (
	github.com/coder/websocket v1.8.13
	google.golang.org/protobuf v1.33.0
)
