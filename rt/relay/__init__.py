"""The relay: speech over a WebSocket, many streams at once. The protocol is in PROTOCOL.md beside this file."""
