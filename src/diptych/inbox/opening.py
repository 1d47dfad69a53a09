"""Opening of the inbox at an address."""

from __future__ import annotations

from diptych.inbox.drops import S3, Inbox
from diptych.inbox.folder import FolderInbox
from diptych.inbox.s3 import S3Inbox
from diptych.project.workspace import Workspace


def open_inbox(workspace: Workspace, address: str) -> Inbox:
    """Return the inbox at `address`: a folder (a relative path starts at the project), or s3://bucket/prefix.

    Raises:
        DiptychError: there is no such folder, or s3fs is not installed.
    """
    if address.startswith(S3):
        return S3Inbox(address, workspace.local / "inbox")
    return FolderInbox(workspace.root / address)
