"""Files in S3, or in another store with its protocol.

AWS_ENDPOINT_URL and the other usual variables name the server and the user.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diptych.errors import DiptychError

S3 = "s3://"
_LOCAL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS}


def file_system(what: str) -> Any:
    """Return the `S3FileSystem`, which lists anew each time; `what` is what needs it.

    Raises:
        DiptychError: s3fs is not installed.
    """
    try:
        from s3fs import S3FileSystem  # type: ignore[import-untyped]
    except ImportError:
        raise DiptychError(f"{what} in S3 needs s3fs: install diptych with its extra `stack`.") from None
    # Each run has to see what is there now.
    return S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@contextmanager
def errors_explained(what: str) -> Iterator[None]:
    """Raise a `DiptychError` that names `what` for errors of the store, but not for those of the local disk."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        if isinstance(error, OSError) and error.errno in _LOCAL_DISK and error.filename:
            raise
        raise DiptychError(
            f"{what} cannot be read: {error}. Check its name, AWS_ENDPOINT_URL and the credentials."
        ) from None
