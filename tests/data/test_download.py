"""Interrupted, damaged and simultaneous downloads leave no partial file."""

import gzip
import hashlib
import http.server
import multiprocessing
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyrovae.data import download
from pyrovae.data.download import checked, fetch

CONTENT = bytes(range(256)) * 2000
SHA1 = hashlib.sha1(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server that answers with a list of contents, and repeats the last one."""

    answers: list[bytes]
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # the name is that of the base class
        answer = self.server.answers[min(self.server.requests, len(self.server.answers) - 1)]
        self.server.requests += 1
        if not answer:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(gzip.compress(CONTENT, mtime=0))))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.answers = [gzip.compress(CONTENT, mtime=0)]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(root: Path, server: Server, urls: int = 1) -> bytes:
    addresses = [f"http://127.0.0.1:{server.server_port}/{mirror}/x.bin.gz" for mirror in range(urls)]
    return fetch(root, ("set", "."), "x.bin", addresses, partial(checked, expected=SHA1))


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    assert get(tmp_path, server) == get(tmp_path, server) == CONTENT
    assert server.requests == 1
    assert files(tmp_path) == ["set/x.bin.gz"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["x.bin.gz"]


@pytest.mark.parametrize("length", [0, 1, 100, -1])
@pytest.mark.parametrize("name", ["set/x.bin.gz", "x.bin.gz", "set/x.bin"])
def test_a_torn_file_is_downloaded_anew(name: str, length: int, server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    whole = server.answers[0] if name.endswith("gz") else CONTENT
    (tmp_path / name).write_bytes(whole[:length])
    assert get(tmp_path, server) == get(tmp_path, server) == CONTENT
    assert server.requests == 1


def test_an_intact_file_is_used_beside_a_torn_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.bin").write_bytes(CONTENT[:10])
    (tmp_path / "x.bin").write_bytes(CONTENT)
    assert get(tmp_path, server) == CONTENT
    assert server.requests == 0


@pytest.mark.parametrize("answer", [b"", b"short", gzip.compress(b"another content", mtime=0)])
def test_a_damaged_download_leaves_nothing(answer: bytes, server: Server, tmp_path: Path) -> None:
    server.answers = [answer]
    with pytest.raises((FileNotFoundError, ValueError), match=r"x.bin"):
        get(tmp_path, server)
    assert files(tmp_path) == []


def test_the_next_address_is_tried_after_a_damaged_download(server: Server, tmp_path: Path) -> None:
    server.answers = [b"", server.answers[0][:-4], server.answers[0]]
    assert get(tmp_path, server, urls=3) == CONTENT
    assert server.requests == 3


def test_a_damaged_file_is_kept_if_the_download_fails(server: Server, tmp_path: Path) -> None:
    server.answers = [b""]
    (tmp_path / "x.bin").write_bytes(b"of someone else")
    with pytest.raises(ValueError, match=r"x.bin has the wrong content.* A new download failed \(.*404.*Delete the"):
        get(tmp_path, server)
    assert (tmp_path / "x.bin").read_bytes() == b"of someone else"


def test_an_interrupted_download_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(url: str, folder: str, filename: str) -> None:
        (Path(folder) / filename).write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "download_url", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path, server)
    assert files(tmp_path) == []
    assert get(tmp_path, server) == CONTENT


def test_a_file_that_is_too_large_is_not_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"x.bin.gz holds more than"):
        get(tmp_path, server)
    assert files(tmp_path) == []


def _load(root: Path, url: str, start: Any, results: Any) -> None:
    start.wait()
    try:
        results.put(fetch(root, ("set",), "x.bin", [url], partial(checked, expected=SHA1)) == CONTENT)
    except Exception as error:
        results.put(repr(error))


def test_processes_may_download_at_once(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    url = f"http://127.0.0.1:{server.server_port}/x.bin.gz"
    processes = [context.Process(target=_load, args=(tmp_path, url, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    assert [results.get(timeout=60) for _ in processes] == [True] * 4
    for process in processes:
        process.join()
    assert files(tmp_path) == ["set/x.bin.gz"]
