"""A TCP proxy on the loopback between one site and the coordinator, that does to the connection what networks do."""

import asyncio
import contextlib
import socket
import struct
import threading
import time

PIECE = 16 * 2**10


class Link:
    """``address`` leads to ``target`` (HOST:PORT) as long as the link is up. Set the attributes at any time."""

    def __init__(self, target):
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.hole = False
        """Nothing goes through, and nobody is told."""
        self.rate = None
        """Bytes a second from the site."""
        self.delay = 0.0
        """Seconds that each piece waits."""
        self.cuts = []
        """Reset the connections once so many bytes came from the site, each once."""
        self.up = self.down = 0
        """Bytes that came from the site, and went to it."""
        self.accepted = []
        """When connections came, on the monotonic clock."""
        self._up_again = 0.0
        self._open = set()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), daemon=True)
        self._thread.start()
        ready.wait()

    async def _run(self, ready):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # A small window: what the proxy has not read yet, the site has not sent.
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PIECE)
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        server = await asyncio.start_server(self._connected, sock=listening, limit=PIECE)
        orders = await asyncio.start_server(self._ordered, "127.0.0.1", 0)
        self.orders = "{}:{}".format(*orders.sockets[0].getsockname())
        ready.set()
        await self._stop.wait()
        for each in (server, orders):
            each.close()
        self._reset()
        self._loop.set_exception_handler(
            lambda _loop, _context: None
        )  # streams report being cancelled as an error
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def cut(self, seconds=0.0):
        """Reset every connection, and any that comes within ``seconds``."""
        done = threading.Event()

        def cut():
            self._up_again = time.monotonic() + seconds
            self._reset()
            done.set()

        self._loop.call_soon_threadsafe(cut)
        done.wait()

    def _reset(self):
        for writer in self._open:
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)  # RST and not FIN
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        self._open.clear()

    async def _ordered(self, reader, writer):
        """A process may cut its own link: a line with the seconds, answered when it is done."""
        self._up_again = time.monotonic() + float(await reader.readline())
        self._reset()
        writer.write(b"done\n")
        await writer.drain()
        writer.close()

    async def _connected(self, reader, writer):
        self.accepted.append(time.monotonic())
        self._open.add(writer)
        if time.monotonic() < self._up_again:
            self._reset()
            return
        try:
            there, back = await asyncio.open_connection(self._host, self._port, limit=PIECE)
        except OSError:
            writer.close()
            return
        self._open.add(back)
        await asyncio.gather(self._pump(reader, back, up=True), self._pump(there, writer, up=False))

    async def _pump(self, reader, writer, *, up):
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                if up and self.cuts and self.up >= self.cuts[0]:
                    del self.cuts[0]
                    self._reset()
                    return
                if self.delay:
                    await asyncio.sleep(self.delay)
                if up and self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                while self.hole:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        self._open.discard(writer)
        writer.close()


def cut_from_within(orders, seconds):
    """Called by the site's own process: have its link cut now."""
    host, _, port = orders.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{seconds}\n".encode())
        connection.recv(5)
