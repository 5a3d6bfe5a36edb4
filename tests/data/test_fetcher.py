"""Fetching: what is verified, replaced, refused, retried, and what is said when nothing helps."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from sciopt.data import DataError, Entry, FileState, cache_dir, fetch, fetcher, verify
from tests import data_helpers

CONTENT = b"one line of data\n" * 5000
ITEM = Entry(
    name="group/file.txt",
    url=None,
    source_url="https://example.org/source.pkl",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    licence="MIT",
    units="none",
    description="test file",
)


class Server(BaseHTTPRequestHandler):
    """Answers with the next of `answers`: whole, cut (half the announced bytes), wrong, or an error code."""

    answers: ClassVar[list[str | int]] = []
    requests: ClassVar[int] = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = {"whole": CONTENT, "cut": CONTENT[: len(CONTENT) // 2], "wrong": CONTENT[::-1]}[answer]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def item(tmp_path, monkeypatch) -> Entry:
    """A registry of one file, an empty cache, no mirror, no waiting."""
    monkeypatch.setattr(fetcher, "entry", lambda name: ITEM)
    monkeypatch.setenv("SCIOPT_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SCIOPT_DATA_MIRROR", raising=False)
    monkeypatch.delenv("SCIOPT_REQUIRE_DATA", raising=False)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return ITEM


@pytest.fixture
def serve(monkeypatch) -> Iterator[type[Server]]:
    """A server on this machine whose answers the test sets."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Server.requests = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/file.txt"
        monkeypatch.setattr(fetcher, "entry", lambda name: replace(ITEM, url=url))
        yield Server
        server.shutdown()
        thread.join()


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """A mirror that holds the file."""
    folder = tmp_path / "mirror"
    (folder / "group").mkdir(parents=True)
    (folder / ITEM.name).write_bytes(CONTENT)
    monkeypatch.setenv("SCIOPT_DATA_MIRROR", str(folder))
    return folder


def cached_files() -> list[str]:
    return sorted(str(path.relative_to(cache_dir())) for path in cache_dir().rglob("*") if path.is_file())


def test_download_is_verified_and_made_once(serve):
    serve.answers = ["whole"]
    path = fetch(ITEM.name)
    assert path == cache_dir() / ITEM.name
    assert path.read_bytes() == CONTENT
    assert fetch(ITEM.name) == path
    assert serve.requests == 1
    assert cached_files() == [ITEM.name]


def test_mirror_is_copied_and_verified(mirror):
    path = fetch(ITEM.name)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache_dir())
    assert path.stat().st_mode & 0o777 == 0o644  # others may read a shared cache


def test_cache_works_when_the_mirror_is_gone(mirror, monkeypatch):
    fetch(ITEM.name)
    (mirror / ITEM.name).unlink()
    assert fetch(ITEM.name).read_bytes() == CONTENT


@pytest.mark.parametrize("spoilt", [CONTENT[:-1], b"X" + CONTENT[1:], b""], ids=["short", "one byte", "empty"])
def test_corrupt_file_in_the_cache_is_seen_and_replaced(mirror, spoilt):
    path = fetch(ITEM.name)
    path.write_bytes(spoilt)
    assert verify(ITEM.name) is FileState.CORRUPT
    assert fetch(ITEM.name).read_bytes() == CONTENT
    assert verify(ITEM.name) is FileState.OK


def test_wrong_mirror_file_is_refused_and_not_kept(mirror):
    (mirror / ITEM.name).write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match=r"expected .*mirror.group.file.txt to have SHA-256 .*Replace the file in the"):
        fetch(ITEM.name)
    assert cached_files() == []


def test_mirror_that_is_no_folder_is_named(monkeypatch):
    monkeypatch.setenv("SCIOPT_DATA_MIRROR", "no/such/folder")
    with pytest.raises(
        DataError, match="expected `SCIOPT_DATA_MIRROR` to name a folder, got 'no/such/folder'. Correct"
    ):
        fetch(ITEM.name)


def test_file_that_the_mirror_lacks_is_downloaded(mirror, serve):
    (mirror / ITEM.name).unlink()
    serve.answers = ["whole"]
    assert fetch(ITEM.name).read_bytes() == CONTENT


@pytest.mark.parametrize("first", ["cut", "wrong", 503], ids=str)
def test_failed_download_is_tried_again(serve, first):
    serve.answers = [first, "whole"]
    assert fetch(ITEM.name).read_bytes() == CONTENT
    assert serve.requests == 2


@pytest.mark.parametrize("answer", ["cut", "wrong", 404], ids=str)
def test_hopeless_download_leaves_nothing_and_says_what_to_do(serve, answer):
    serve.answers = [answer] * 4
    with pytest.raises(DataError) as caught:
        fetch(ITEM.name)
    message = str(caught.value)
    assert "after 4 attempts" in message and serve.requests == 4
    assert "http://127.0.0.1" in message
    assert f"at {cache_dir() / ITEM.name}, or set `SCIOPT_DATA_MIRROR`" in message
    assert ITEM.sha256 in message
    assert cached_files() == []


def test_interrupted_copy_leaves_no_file(mirror, monkeypatch):
    def interrupted(source, target):
        Path(target).write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(fetcher.shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(ITEM.name)
    assert cached_files() == []


def test_file_without_an_address_says_where_it_comes_from():
    with pytest.raises(DataError, match="converted from https://example.org/source.pkl and has no public .* Place the"):
        fetch(ITEM.name)


def test_verify_reports_a_missing_file_and_looks_where_it_is_told(mirror):
    assert verify(ITEM.name) is FileState.MISSING
    assert verify(ITEM.name, mirror) is FileState.OK


def test_many_at_once_end_with_one_whole_file(mirror):
    barrier = threading.Barrier(8)

    def one(_: int) -> bytes:
        barrier.wait()
        return fetch(ITEM.name).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(8))) == {CONTENT}
    assert cached_files() == [ITEM.name]


def test_cache_that_is_a_file_is_named(mirror, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="expected `group/file.txt` from .* Place the file"):
        fetch(ITEM.name)


def test_default_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("SCIOPT_DATA_DIR")
    assert "sciopt" in cache_dir().parts


class TestRequireData:
    """The helper for other tests: skip without data, fail when skipping is forbidden or the mirror is wrong."""

    def test_gives_the_file(self, mirror):
        assert data_helpers.require_data(ITEM.name).read_bytes() == CONTENT

    def test_skips_with_a_reason(self):
        with pytest.raises(pytest.skip.Exception, match="set SCIOPT_DATA_MIRROR"):
            data_helpers.require_data(ITEM.name)

    def test_fails_where_skipping_is_forbidden(self, monkeypatch):
        monkeypatch.setenv("SCIOPT_REQUIRE_DATA", "1")
        with pytest.raises(pytest.fail.Exception, match="forbids to skip"):
            data_helpers.require_data(ITEM.name)

    def test_fails_on_a_wrong_mirror(self, mirror):
        (mirror / ITEM.name).write_bytes(b"")
        with pytest.raises(pytest.fail.Exception, match="Replace the file in the mirror"):
            data_helpers.require_data(ITEM.name)
