"""Downloads resume, and what a server sends is never taken for the published file by mistake."""

import contextlib
import dataclasses
import http.server
import re
import threading

import pytest

from experiments.preparation import download, published
from resnet_jax.errors import RunError
from tests import tiny
from tests.preparation import archives_of

SIZE = 3_000_000


@dataclasses.dataclass
class Behaviour:
    """How the server answers; `requests` collects the first byte of each request."""

    folder: object
    cut_after: int | None = None  # bytes per answer, then the connection is closed
    without_ranges: bool = False
    wrong_range: bool = False
    silent_after: int | None = None  # requests that are answered; later ones get nothing
    status: int = 0
    requests: list = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        how = self.server.behaviour
        (first,) = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"]).groups()
        how.requests.append(int(first))
        path = how.folder / self.path.lstrip("/")
        if how.status or not path.is_file():
            self.send_error(how.status or 404)
            return
        content = path.read_bytes()
        start = 0 if how.without_ranges else int(first)
        body = content[start:]
        self.send_response(200 if how.without_ranges else 206)
        if not how.without_ranges:
            shown = start + 1 if how.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if how.silent_after is not None and len(how.requests) > how.silent_after:
            body = b""
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            self.wfile.write(body[: how.cut_after])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of one folder; returns its behaviour and the description of its files."""
    monkeypatch.setattr(download.time, "sleep", lambda seconds: waited.append(seconds))
    waited = []
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "set.bin").write_bytes(bytes(range(256)) * (SIZE // 256))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.behaviour = Behaviour(folder)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{httpd.server_port}"
    httpd.behaviour.url, httpd.behaviour.waited = url, waited
    yield httpd.behaviour, archives_of.described(folder, url)
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def content(server):
    return (server[0].folder / "set.bin").read_bytes()


def test_a_file_is_downloaded_once(server, tmp_path):
    how, files = server
    paths = download.fetch(files, tmp_path / "got")
    assert paths == {"set.bin": tmp_path / "got" / "set.bin"}
    assert paths["set.bin"].read_bytes() == content(server)
    assert how.requests == [0]
    assert download.fetch(files, tmp_path / "got") == paths
    assert how.requests == [0]
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["set.bin"]


def test_a_cut_connection_resumes_where_it_was(server, tmp_path):
    how, files = server
    how.cut_after = 1_100_000
    paths = download.fetch(files, tmp_path / "got")
    assert paths["set.bin"].read_bytes() == content(server)
    assert len(how.requests) == 3
    assert how.requests[0] == 0
    assert how.requests[1] <= 1_100_000 < how.requests[2]  # whole blocks are kept
    assert how.waited == [0.0, 0.0]


def test_a_killed_download_resumes_where_it_was(server, tmp_path):
    how, files = server
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "set.bin.part").write_bytes(content(server)[:1_234_567])
    paths = download.fetch(files, tmp_path / "got")
    assert how.requests == [1_234_567]
    assert paths["set.bin"].read_bytes() == content(server)


def test_a_server_without_ranges_starts_again(server, tmp_path):
    how, files = server
    how.without_ranges = True
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "set.bin.part").write_bytes(b"x" * 1000)
    paths = download.fetch(files, tmp_path / "got")
    assert how.requests == [1000]
    assert paths["set.bin"].read_bytes() == content(server)


def test_a_part_of_another_file_is_deleted(server, tmp_path):
    _, files = server
    part = tmp_path / "got" / "set.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    with pytest.raises(RunError, match=r"is not the published file: it has SHA-256 .* instead of"):
        download.fetch(files, part.parent)
    assert list(part.parent.iterdir()) == []
    assert download.fetch(files, part.parent)["set.bin"].read_bytes() == content(server)


@pytest.mark.parametrize(
    ("alter", "found"),
    [
        (lambda content: content[:-1] + b"x", "SHA-256 "),
        (lambda content: content * 2, f"more than {SIZE // 256 * 256:,} bytes"),
    ],
)
def test_an_altered_file_is_deleted(alter, found, server, tmp_path):
    how, files = server
    (how.folder / "set.bin").write_bytes(alter(content(server)))
    with pytest.raises(RunError) as refused:
        download.fetch(files, tmp_path / "got")
    text = str(refused.value)
    assert text.startswith(f"{how.url}/set.bin is not the published file: it has {found}")
    assert text.endswith("; the download was deleted.")
    assert list((tmp_path / "got").iterdir()) == []


def test_a_file_that_is_too_short_is_not_taken(server, tmp_path):
    how, files = server
    (how.folder / "set.bin").write_bytes(content(server)[:-10])
    with pytest.raises(RunError, match=r"the server stopped sending|416"):
        download.fetch(files, tmp_path / "got")
    assert not (tmp_path / "got" / "set.bin").exists()


def test_a_damaged_earlier_download_is_deleted(server, tmp_path):
    _, files = server
    path = tmp_path / "got" / "set.bin"
    path.parent.mkdir()
    path.write_bytes(content(server)[:-1] + b"x")
    with pytest.raises(RunError, match="is not the published file"):
        download.fetch(files, path.parent)
    assert not path.exists()


def test_a_silent_server_is_given_up(server, tmp_path):
    how, files = server
    how.silent_after, how.cut_after = 1, 1_100_000
    with pytest.raises(
        RunError, match=r"cannot be downloaded .*; the same command resumes, or give"
    ):
        download.fetch(files, tmp_path / "got")
    assert how.waited == [0.0, 1.0, 3.0, 7.0, 15.0]
    part = tmp_path / "got" / "set.bin.part"
    assert 0 < part.stat().st_size == how.requests[-1] <= 1_100_000
    how.silent_after, how.cut_after = None, None
    assert download.fetch(files, part.parent)["set.bin"].read_bytes() == content(server)


@pytest.mark.parametrize(
    ("change", "sentence", "requests"),
    [
        ({"status": 404}, "404 Not Found", 1),
        ({"status": 403}, "403 Forbidden", 1),
        ({"status": 429}, "429 Too Many Requests", 5),
        ({"status": 503}, "503 Service Unavailable", 5),
        ({"wrong_range": True}, "the server sent another range of bytes", 5),
    ],
)
def test_a_refusal_is_one_sentence(change, sentence, requests, server, tmp_path):
    how, files = server
    for name, value in change.items():
        setattr(how, name, value)
    with pytest.raises(RunError) as refused:
        download.fetch(files, tmp_path / "got")
    assert str(refused.value) == (
        f"{how.url}/set.bin cannot be downloaded ({sentence}); the same command resumes, or give a "
        "copy with --from."
    )
    assert len(how.requests) == requests


def test_an_unreachable_server_is_one_sentence(server, tmp_path):
    files = archives_of.described(server[0].folder, "http://127.0.0.1:1")
    with pytest.raises(RunError) as refused:
        download.fetch(files, tmp_path / "got")
    text = str(refused.value)
    assert text.startswith("http://127.0.0.1:1/set.bin cannot be downloaded (")
    assert "Connection refused" in text
    assert "object at 0x" not in text


def test_a_disk_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "got").write_text("a file")
    with pytest.raises(RunError, match="got cannot be written: File exists; the same command"):
        download.fetch(server[1], tmp_path / "got")


def test_the_program_downloads_from_a_mirror_in_one_sentence(server, tmp_path):
    how, _ = server
    how.status = 404
    done = tiny.program(
        "experiments.prepare", "mnist", f"--out={tmp_path / 'out'}", f"--mirror={how.url}"
    )
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    file = next(iter(published.files("mnist", None)))
    assert sentence == (
        f"error: {how.url}/{file} cannot be downloaded (404 Not Found); the same command resumes, "
        "or give a copy with --from."
    )
    assert how.requests == [0]
