"""Script that loads a package and scores a pair with it, in a process that imports nothing of the project.

python -I probe.py PACKAGE
"""

import json
import statistics
import sys
import time
from io import BytesIO

REPEATS = 9
ANSWER = "answer: "
"""Beginning of the line with the answer."""


def main() -> None:
    """Print the seconds to load the package and the milliseconds to score one pair."""
    started = time.perf_counter()
    import mlflow
    import pandas as pd
    from PIL import Image

    model = mlflow.pyfunc.load_model(sys.argv[1])
    loaded = time.perf_counter() - started
    buffer = BytesIO()
    Image.new("RGB", (320, 240), (200, 30, 30)).save(buffer, "JPEG")
    pair = pd.DataFrame({"image": [buffer.getvalue()], "text": ["a red square on the left of a blue circle"]})
    times = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        score = float(model.predict(pair)["score"][0])
        times.append(1000 * (time.perf_counter() - begun))
    if score != score:
        raise ValueError("the score of a pair is not a number")
    print(f"\n{ANSWER}{json.dumps({'load_s': loaded, 'pair_ms': statistics.median(times[1:])})}")


if __name__ == "__main__":
    main()
