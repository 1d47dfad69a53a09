"""S3 whose content outlasts its process: moto's server, which repeats at its start all requests that it has recorded.

The recording is /data/requests.jsonl. Once everything is repeated, /run/ready exists and port 9000 is open.
"""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

READY = Path("/run/ready")
RECORDING = Path("/data/requests.jsonl")
ENDS = {signal.SIGTERM, signal.SIGINT}
# Read when moto is imported.
os.environ["MOTO_RECORDER_FILEPATH"] = str(RECORDING)

from moto.moto_api import recorder  # noqa: E402
from moto.moto_api._internal.recorder import models  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

# With a buffer for the largest request, each is recorded by one write, so that those of two threads do not mix.
models.open = partial(open, buffering=2**28)


def keep_changes() -> None:
    """Remove the requests that only read from the recording, and one that a kill has cut off."""
    *lines, _ = RECORDING.read_text(encoding="utf-8").split("\n")
    changes = [line + "\n" for line in lines if json.loads(line)["method"] not in ("GET", "HEAD")]
    new = RECORDING.with_suffix(".new")
    new.write_text("".join(changes), encoding="utf-8")
    new.replace(RECORDING)


def main() -> None:
    """Serve until a signal ends the process."""
    # Before any thread starts, which would take them from `sigwait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    READY.unlink(missing_ok=True)
    RECORDING.touch()
    keep_changes()
    # Nobody else may write in between. Both servers have the same content, which is the process's.
    first = ThreadedMotoServer("127.0.0.1", 9001, verbose=False)
    first.start()
    recorder.replay_recording("http://127.0.0.1:9001")
    first.stop()
    recorder.start_recording()
    ThreadedMotoServer("0.0.0.0", 9000, verbose=False).start()
    READY.touch()
    signal.sigwait(ENDS)


if __name__ == "__main__":
    main()
