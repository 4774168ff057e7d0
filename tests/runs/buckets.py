"""Local servers that emulate Amazon's and Google's buckets."""

import contextlib
import functools
import http.server
import json
import os
import threading
import urllib.request

import boto3
import fsspec
import gcp_storage_emulator as google
import gcp_storage_emulator.exceptions
import gcp_storage_emulator.handlers.objects
import gcp_storage_emulator.server
import gcp_storage_emulator.storage
import moto.server
import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def served(kind):
    """Serves an empty bucket to this process and its children.

    Args:
      kind: "s3" or "gs".

    Yields:
      The URL of a folder in the bucket.
    """
    before = dict(os.environ)
    client = fsspec.get_filesystem_class(kind)
    client.clear_instance_cache()  # otherwise it uses the server of an earlier test
    try:
        with (_s3 if kind == "s3" else _gs)():
            yield f"{kind}://{BUCKET}/runs"
    finally:
        client.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _s3():
    server = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # Its buckets are kept in this process, so remove those of an earlier server.
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"))
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield
    server.stop()


@contextlib.contextmanager
def _gs():
    storage = google.storage.Storage(use_memory_fs=True)
    google.handlers.buckets.create_bucket(BUCKET, storage)
    handler = functools.partial(_Handler, storage)
    with (
        pytest.MonkeyPatch.context() as patched,
        _Server(("127.0.0.1", 0), handler) as server,
    ):
        patched.setattr(google.server, "_read_data", _read_data)
        patched.setattr(google.server.Router, "handle", _handle_in_turn)
        patched.setattr(google.handlers.objects, "_multipart_upload", _upload)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{server.server_port}"
        yield
        server.shutdown()


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # by default 5: a client that opens more at once waits for minutes


class _Handler(google.server.RequestHandler):
    """The emulator's handler, with several requests per connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


_handle, _turn = google.server.Router.handle, threading.Lock()


def _handle_in_turn(router, method):
    """Answers one request at a time, since the emulator is not thread-safe."""
    with _turn:
        _handle(router, method)


_upload_always = google.handlers.objects._multipart_upload


def _upload(request, response, storage):
    """Stores an object; the emulator ignores the condition that it must not exist yet."""
    if request.query.get("ifGenerationMatch") == ["0"]:
        name = request.data["meta"]["name"]
        with contextlib.suppress(google.exceptions.NotFound):
            storage.get_file_obj(request.params["bucket_name"], name)
            response.status = http.HTTPStatus.PRECONDITION_FAILED
            return None
    return _upload_always(request, response, storage)


_read_any_data = google.server._read_data


def _read_data(handler, query):
    """Reads an upload as bytes; the emulator would parse it as an e-mail and change line ends."""
    kind = handler.headers.get("Content-Type", "")
    if not kind.startswith("multipart/related"):
        return _read_any_data(handler, query)
    boundary = b"--" + kind.split("boundary=")[1].strip('"').encode()
    _, about, file, _ = google.server._read_raw_data(handler).split(boundary)
    about, file = (part.split(b"\n\n", 1)[1].removesuffix(b"\n") for part in (about, file))
    return {"meta": json.loads(about), "content": file, "content-type": ""}
