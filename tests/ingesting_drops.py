"""Ingesting drops as a run does, and what the ledger then holds."""

import json

from diptych.config import Params
from diptych.inbox.ingesting import ingest_drops

NOT_AN_IMAGE = [("broken.png", b"not an image", ["a broken thing"])]


def take(workspace, inbox="inbox"):
    return ingest_drops(workspace, Params(), inbox, lambda line: None)


def ledger(workspace):
    return json.loads((workspace.local / "inbox.json").read_text())


def refused(workspace):
    (taken,) = take(workspace)
    assert taken.outcome == "refused"
    assert [entry["outcome"] for entry in ledger(workspace)] == ["refused"]
    return taken.reason
