"""An S3 server, and a connection to it that breaks."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "bucket"
TIMEOUT, SHORT_TIMEOUT = 60, 3  # seconds that a request may take, and one of a connection that falls silent
OPTIONS = f"region=us-east-1&connect_timeout={TIMEOUT}&max_attempts=1"


ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


class S3Server:
    """A server on this machine."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        self.filesystem = fs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            region="us-east-1",
            endpoint_override=f"http://127.0.0.1:{self.port}",
            allow_bucket_creation=True,
        )
        self.filesystem.create_dir(BUCKET)

    def uri(self, folder: str, port: int = 0, timeout: int = TIMEOUT, more: str = "") -> str:
        endpoint = f"http://127.0.0.1:{port or self.port}"
        return f"s3://{BUCKET}/{folder}?endpoint_override={endpoint}&{OPTIONS}&request_timeout={timeout}{more}"

    def upload(self, directory: Path, folder: str) -> str:
        """Copies the files of a directory and its folders, hidden ones left out; returns their URI."""
        for file in directory.rglob("*"):
            name = file.relative_to(directory)
            if file.is_file() and not name.parts[0].startswith("."):
                with self.filesystem.open_output_stream(f"{BUCKET}/{folder}/{name}") as stream:
                    stream.write(file.read_bytes())
        return self.uri(folder)

    @contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Refuses every key for a while."""
        self._check_keys_after("0")
        try:
            yield
        finally:
            self._check_keys_after("inf")

    def _check_keys_after(self, requests_let_through: str) -> None:
        url = f"http://127.0.0.1:{self.port}/moto-api/reset-auth"
        assert requests.post(url, data=requests_let_through, timeout=10).ok

    def stop(self) -> None:
        self._server.stop()


class BrokenConnection:
    """Passes everything to a server and back until ``break_off``; then it cuts every answer, or falls silent."""

    def __init__(self, server: S3Server, silent: bool) -> None:
        self._server, self._silent, self._broken = server, silent, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def uri(self, folder: str) -> str:
        port = self._listener.getsockname()[1]
        return self._server.uri(folder, port, SHORT_TIMEOUT if self._silent else TIMEOUT)

    def break_off(self) -> None:
        self._broken.set()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server.port))
            for source, target, breaks in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pass_on, args=(source, target, breaks), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, breaks: bool) -> None:
        with suppress(OSError):
            while content := source.recv(2**16):
                if breaks and self._broken.is_set():
                    if self._silent:
                        time.sleep(TIMEOUT)
                    header, end, body = content.partition(b"\r\n\r\n")
                    if body:
                        target.sendall(header + end + body[: len(body) // 2])
                    break
                target.sendall(content)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
