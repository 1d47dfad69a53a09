"""Files from the web: a download continues where it was interrupted, and is in its place only when it is verified."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.errors import DiptychError, first_line
from diptych.files import file_sha256
from diptych.progress import progress

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

RETRIES = 4
"""Number of further attempts to be answered, after 0, 2, 4 and 8 seconds."""
_BUSY = (429, 500, 502, 503, 504)
_TIMEOUT = 60.0
_CHUNK = 1 << 16
"""Number of bytes that an interruption costs at most."""


def download(url: str, target: Path, size: int, sha256: str) -> None:
    """Download the file at `url`, of `size` bytes, under a temporary name, and rename it if it has the SHA-256.

    Raises:
        DiptychError: the server cannot be reached, or has no such file or one of another size. What was received stays
            for the next call. Or the SHA-256 differs, and the file is removed.
    """
    part = part_of(target)
    reached = bytes_at(part)
    with _session() as session:
        while bytes_at(part) != size:
            reached = _continue(session, url, part, size, reached)
    _tag_path(part).unlink(missing_ok=True)
    log.info("checking the SHA-256 of %s", target.name)
    if (digest := file_sha256(part)) != sha256:
        part.unlink()
        raise DiptychError(
            f"{target.name} from {url} has the SHA-256 {digest}, not {sha256}, and was removed. Run the command again. "
            "If that gives the same, a proxy alters the file, or its publisher has changed it: report it then."
        )
    part.replace(target)


def part_of(target: Path) -> Path:
    """Return the path of what an interrupted call leaves of the file or folder `target`."""
    return target.with_name(f".{target.name}.part")


def bytes_at(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def _session() -> requests.Session:
    """Return a session that asks again where a server cannot be reached or is busy."""
    import requests
    from urllib3.util import Retry

    session = requests.Session()
    # A compressed answer could not be continued.
    session.headers["Accept-Encoding"] = "identity"
    # A server may ask for hours, in which nothing would be said.
    retries = Retry(
        RETRIES, backoff_factor=1, status_forcelist=_BUSY, raise_on_status=False, respect_retry_after_header=False
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retries))
    return session


def _continue(session: requests.Session, url: str, part: Path, size: int, reached: int) -> int:
    """Receive more of the file, and return the most bytes of it that were ever here, before this call `reached`.

    Raises:
        DiptychError: the transfer was interrupted with no more bytes than that.
    """
    import requests

    try:
        _receive(session, url, part, size)
    except (requests.RequestException, ValueError) as error:  # addresses and lengths that make no sense
        if bytes_at(part) <= reached:
            raise DiptychError(
                f"{url} cannot be downloaded: {first_line(error)}. Check the network (HTTPS_PROXY names a proxy), and "
                "run the command again: it continues where this one ended."
            ) from None
        log.warning("%s was interrupted after %s bytes; it continues", url, f"{bytes_at(part):,}")
    return max(reached, bytes_at(part))


def _receive(session: requests.Session, url: str, part: Path, size: int) -> None:
    """Append to `part` what it lacks; write it anew, or remove it, if the server cannot continue it."""
    length, tag = bytes_at(part), _read_tag(part)
    headers = {"Range": f"bytes={length}-"} if length else {}
    if length and tag:
        headers["If-Range"] = tag
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        start, total = _extent(response)
        # A server may know Range and ignore If-Range.
        changed = response.status_code == 206 and (start != length or _validator(response) not in ("", tag))
        if length and (changed or response.status_code == 416):
            part.unlink()
            return
        if response.status_code in _BUSY:
            raise DiptychError(f"{url}: the server answers {response.status_code} {response.reason}. Try again later.")
        if changed or response.status_code not in (200, 206):
            raise _unexpected(f"{url}: the server answers {response.status_code} {response.reason}")
        if total not in (size, None):
            raise _unexpected(f"{url} has {total:,} bytes, not {size:,}")
        if length and not start and total is None:
            raise _unexpected(f"{url}: the server sends something of unknown length in place of the rest")
        _write(response, part, start, size)


def _write(response: requests.Response, part: Path, start: int, size: int) -> None:
    """Write the body of the answer, which begins at the byte `start` of the file."""
    import requests

    name = part.name.removeprefix(".").removesuffix(".part")
    bar = progress(None, f"downloading {name}", unit="B", total=size, initial=start, unit_scale=True)
    if not start:
        part.unlink(missing_ok=True)
    with part.open("ab") as file, bar:
        if not start:
            _tag_path(part).write_text(_validator(response), encoding="utf-8")
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > size:
                raise _unexpected(f"{response.url} has more than {size:,} bytes")
        if file.tell() < size:
            raise requests.ConnectionError("the server ended the transfer early")


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Return where in the file the answer begins, and the size of the file if the server states it."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _validator(response: requests.Response) -> str:
    """Return what If-Range takes: a strong ETag, else the date of the last change; empty where there is neither."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _unexpected(problem: str) -> DiptychError:
    return DiptychError(
        f"{problem}. The publisher has moved or changed the file, or a proxy answers in its place. Open the address in "
        "a browser, and report it if the file is not there."
    )


def _tag_path(part: Path) -> Path:
    return part.with_suffix(".tag")


def _read_tag(part: Path) -> str:
    path = _tag_path(part)
    return path.read_text(encoding="utf-8") if path.exists() else ""
