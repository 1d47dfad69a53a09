"""One decision at a time, whoever makes it and wherever; what the dead have left behind keeps nobody waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from mlflow import MlflowClient
from versions import make_version

from diptych.errors import DiptychError
from diptych.registry import claim as module
from diptych.registry.claim import PREFIX, claimed
from diptych.registry.registered_model import RegisteredModel

HOLD = """
import os, sys, time
from mlflow import MlflowClient
from diptych.registry.claim import claimed
from diptych.registry.registered_model import RegisteredModel
uri = sys.argv[1]
with claimed(RegisteredModel(MlflowClient(uri, uri), "diptych", uri), "holding"):
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def claims(model) -> dict[str, str]:
    tags = model.client.get_registered_model(model.name).tags
    return {key: text for key, text in tags.items() if key.startswith(PREFIX)}


def put(model, **changes: object) -> str:
    """A claim of another process; returns its key."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"purpose": "promotion of x", "host": socket.gethostname(), "pid": os.getpid(), "since": now, **changes}
    key = f"{PREFIX}0123456789abcdef"
    model.client.set_registered_model_tag(model.name, key, json.dumps(content))
    return key


def ago(**time_ago: float) -> str:
    return (datetime.now(UTC) - timedelta(**time_ago)).isoformat(timespec="seconds")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "CLAIM_TIMEOUT", 0.0)


def test_a_claim_stands_while_the_block_runs_and_no_longer(model):
    with claimed(model, "rollback"):
        (text,) = claims(model).values()
        assert (json.loads(text)["purpose"], json.loads(text)["pid"]) == ("rollback", os.getpid())
    assert claims(model) == {}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_claim_ends_with_a_block_that_fails(model, error):
    with pytest.raises(error), claimed(model, "rollback"):
        raise error
    assert claims(model) == {}


def test_the_claim_of_a_live_process_is_respected_and_named(model, impatient):
    put(model)

    said = r"Another process decides about diptych now: `promotion of x` \(process \d+ on "
    with pytest.raises(DiptychError, match=said), claimed(model, "rollback"):
        pytest.fail("two decide at once")
    assert list(claims(model)) == [f"{PREFIX}0123456789abcdef"]


def test_whoever_finds_another_claim_waits_until_it_is_gone(model, monkeypatch):
    key = put(model)
    monkeypatch.setattr(time, "sleep", lambda seconds: model.client.delete_registered_model_tag("diptych", key))

    with claimed(model, "rollback"):
        assert len(claims(model)) == 1


def test_the_claim_of_a_process_that_was_killed_is_taken_away(model, forks):
    holder = subprocess.Popen(forks.python("-c", HOLD, model.uri), stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    process = int(holder.stdout.readline())
    assert [json.loads(text)["pid"] for text in claims(model).values()] == [process]

    os.kill(process, signal.SIGKILL)
    assert holder.wait() == -signal.SIGKILL

    with claimed(model, "rollback"):
        assert len(claims(model)) == 1


def test_the_claim_of_another_host_is_respected_at_first(model, impatient):
    put(model, host="elsewhere", pid=2**22 + 1, since=ago(minutes=9))

    with pytest.raises(DiptychError, match="on elsewhere"), claimed(model, "rollback"):
        pass


def test_an_old_claim_of_another_host_is_taken_away(model, impatient):
    put(model, host="elsewhere", since=ago(minutes=11))

    with claimed(model, "rollback"):
        assert len(claims(model)) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "{}", '{"host": 1, "pid": "x", "since": 3}', '{"since": "2020-01-01"}']
)
def test_what_is_no_claim_is_taken_away(model, impatient, text):
    model.client.set_registered_model_tag(model.name, f"{PREFIX}x", text)

    with claimed(model, "rollback"):
        assert len(claims(model)) == 1


def test_a_claim_that_does_not_say_what_for_is_taken_away(model, impatient):
    now = datetime.now(UTC).isoformat()
    content = {"host": "elsewhere", "pid": 1, "since": now}
    model.client.set_registered_model_tag(model.name, f"{PREFIX}x", json.dumps(content))

    with claimed(model, "rollback"):
        assert len(claims(model)) == 1


@pytest.mark.parametrize("moment", ["set_registered_model_tag", "get_registered_model"])
def test_a_claim_that_was_interrupted_leaves_nothing(model, monkeypatch, moment):
    asked = getattr(MlflowClient, moment)

    def interrupted(*arguments, **options):
        asked(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, moment, interrupted)
        with pytest.raises(KeyboardInterrupt), claimed(model, "rollback"):
            pass

    assert claims(model) == {}


def test_a_model_that_is_not_there_cannot_be_claimed(model):
    other = RegisteredModel(model.client, "other", model.uri)

    with pytest.raises(DiptychError, match="No model is registered as 'other'"), claimed(other, "rollback"):
        pass


def test_of_many_that_decide_at_once_one_does_at_a_time(model, tmp_path):
    make_version(model, tmp_path)
    inside: list[int] = []
    most: list[int] = []

    def decide(number: int) -> None:
        client = MlflowClient(model.uri, model.uri)
        with claimed(RegisteredModel(client, model.name, model.uri), f"decision {number}"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 4
    assert claims(model) == {}
