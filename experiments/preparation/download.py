"""Downloads files of known size and SHA-256; an interrupted download resumes."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping

import requests
from absl import logging

from experiments.preparation import archives
from resnet_jax.errors import RunError
from resnet_jax.runs import storage
from resnet_jax.runs.progress import Bars

_ATTEMPTS = 5  # in a row that receive nothing
_BLOCK = 1 << 18  # bytes
_TIMEOUT = 60  # seconds without an answer
_TRY_AGAIN = (requests.codes.request_timeout, requests.codes.too_many_requests)
_LOG_EVERY = 30  # seconds, where no bar is drawn


@dataclasses.dataclass(frozen=True)
class Published:
    """A file as its publisher describes it."""

    url: str
    size: int  # bytes
    sha256: str


def fetch(files: Mapping[str, Published], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Downloads files into `folder`, unless they are there; returns their paths by name.

    Raises:
      RunError: a server cannot be reached or sends another file, or the disk is full.
    """
    paths = {name: folder / name for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Bars() as bars:
            for name, file in files.items():
                _Download(file, paths[name], bars).run()
    except OSError as e:
        raise RunError(
            f"{folder} cannot be written: {storage.reason(e)}; the same command resumes."
        ) from e
    return paths


class _Download:
    def __init__(self, file: Published, path: pathlib.Path, bars: Bars):
        self._file, self._path, self._bars = file, path, bars
        self._part = path.with_name(f"{path.name}.part")
        self._task = bars.add_task(path.name, total=file.size, figures="")
        self._logged = time.monotonic()

    def run(self) -> None:
        """Downloads the rest of the file and checks it."""
        if self._path.is_file() and self._path.stat().st_size == self._file.size:
            self._check(self._path)
            return
        failures = 0
        while (had := self._received()) < self._file.size:
            is_final, reason = False, "the server stopped sending"
            try:
                self._request(had)
            except requests.RequestException as e:
                is_final, reason = _is_final(e), _reason(e)
            failures = 0 if self._received() > had else failures + 1
            if is_final or failures == _ATTEMPTS:
                raise RunError(
                    f"{self._file.url} cannot be downloaded ({reason}); the same command resumes, "
                    "or give a copy with --from."
                )
            if self._received() < self._file.size:
                logging.info("%s: %s; trying again.", self._path.name, reason)
                time.sleep(2.0**failures - 1)
        self._check(self._part)
        self._part.replace(self._path)

    def _received(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _request(self, had: int) -> None:
        """Appends to the part what the server sends from byte `had` on."""
        headers = {"Range": f"bytes={had}-", "Accept-Encoding": "identity"}
        with requests.get(self._file.url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            first = had if resumed else 0
            if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {had}-"):
                raise requests.RequestException("the server sent another range of bytes")
            if not resumed:
                self._part.unlink(missing_ok=True)
            with open(self._part, "ab") as part:
                received = first
                for block in answer.iter_content(_BLOCK):
                    received += len(block)
                    if received > self._file.size:
                        part.close()
                        self._refuse(self._part, f"more than {self._file.size:,} bytes")
                    part.write(block)
                    self._show(received)

    def _show(self, received: int) -> None:
        self._bars.update(self._task, completed=received)
        self._bars.draw()
        if self._bars.disable and time.monotonic() - self._logged > _LOG_EVERY:
            self._logged = time.monotonic()
            share = received / self._file.size
            logging.info(
                "%s: %.0f %% of %d MB.", self._path.name, 100 * share, self._file.size >> 20
            )

    def _check(self, path: pathlib.Path) -> None:
        digest = archives.sha256(path)
        if digest != self._file.sha256:
            self._refuse(path, f"SHA-256 {digest} instead of {self._file.sha256}")
        self._show(self._file.size)

    def _refuse(self, path: pathlib.Path, found: str) -> None:
        path.unlink()
        raise RunError(
            f"{self._file.url} is not the published file: it has {found}; the download was deleted."
        )


def _is_final(error: requests.RequestException) -> bool:
    """Whether another attempt would be refused as well: the file is absent, or not for us."""
    if error.response is None or error.response.status_code in _TRY_AGAIN:
        return False
    return 400 <= error.response.status_code < 500


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    cause: BaseException = error
    while isinstance(cause, requests.RequestException) and cause.args:
        inner = getattr(cause.args[0], "reason", cause.args[0])
        if not isinstance(inner, BaseException):
            break
        cause = inner
    return str(cause).split("\n")[0].rstrip(".") or type(error).__name__
