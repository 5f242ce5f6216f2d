"""Connections that come together are accepted together."""

from __future__ import annotations

import socket

import trio

from llmux.server.accepting import ACCEPTED, BatchListener


async def test_what_has_come_is_accepted_in_one_round() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2 * ACCEPTED)
    async with BatchListener(listening) as listener:
        address = listening.getsockname()
        clients = [socket.create_connection(address) for _ in range(ACCEPTED + 5)]
        streams = [await listener.accept()]
        with trio.testing.assert_no_checkpoints():
            streams += [await listener.accept() for _ in range(ACCEPTED - 1)]
        with trio.testing.assert_checkpoints():  # others get their turn
            streams.append(await listener.accept())
        with trio.fail_after(20):
            for _ in range(4):
                streams.append(await listener.accept())
            # Each is a connection that works, in the order in which they came.
            for number, (client, stream) in enumerate(zip(clients, streams, strict=True)):
                client.sendall(b"%d" % number)
                assert await stream.receive_some() == b"%d" % number
                await stream.send_all(b"ok")
                assert client.recv(2) == b"ok"
                client.close()
                await stream.aclose()
        with trio.move_on_after(0.01) as waiting:
            await listener.accept()
        assert waiting.cancelled_caught


async def test_the_sockets_options_are_those_of_trios_streams() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    async with BatchListener(listening) as listener:
        clients = [socket.create_connection(listening.getsockname()) for _ in range(2)]
        for client in clients:
            async with await listener.accept() as stream:
                assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.close()
