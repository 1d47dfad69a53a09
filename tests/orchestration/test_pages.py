"""What flow runs show, as Markdown and tables."""

from diptych.orchestration.pages import metrics_table, mlflow_links, run_lines, throttled, validation_summary, verdicts

VALIDATION = {
    "images": {"total": 3000, "accepted": 2999, "quarantined": 1},
    "captions": {"total": 3, "accepted": 3, "quarantined": 0},
    "expectations": [
        {"table": "images", "expectation": "unique", "column": "image_id", "success": True, "failed": 0},
    ],
}


def test_the_validation_summary_counts_what_was_accepted():
    text = validation_summary(VALIDATION)

    assert "| images | 3,000 | 2,999 | 1 |" in text
    assert text.endswith("All expectations hold.")


def test_the_validation_summary_names_what_does_not_hold():
    failed = {"table": "captions", "expectation": "not null", "column": None, "success": False, "failed": 2}

    text = validation_summary({**VALIDATION, "expectations": [failed]})

    assert text.endswith("* captions: not null (table), 2 rows")


def test_the_metrics_are_a_row_a_ranking_and_direction():
    figures = {"recall@1": 1.0}
    metrics = {"towers": {"i2t": figures, "t2i": figures, "rsum": 2.0}, "note": "x"}

    table = metrics_table(metrics)

    assert [(row["ranking"], row["direction"], row["recall@1"], row["rsum"]) for row in table] == [
        ("towers", "i2t", 1.0, 2.0),
        ("towers", "t2i", 1.0, 2.0),
    ]


def test_a_verdict_is_a_line_with_its_gain():
    gain = {"rsum": 12.345, "low": 10.0, "high": 14.0}
    ladder = {"verdicts": [{"claim": "It helps", "answer": "yes", "over": "nothing", "gain": gain}]}

    assert verdicts(ladder) == '* It helps: **yes**, by +12.3 RSUM (+10.0 to +14.0) over "nothing"'


def test_a_run_is_told_in_sentences():
    happened = {
        "data": "present",
        "inbox": ["drop may is refused: it is broken"],
        "why": ["Nothing has changed."],
        "stages": {"validate": "ran", "train": "reused"},
        "version": {"name": "mine", "version": "3", "created": True},
        "decision": {"outcome": "promoted", "why": "RSUM +2.0", "champion": "3"},
    }

    assert run_lines(happened) == [
        "data/ is present",
        "drop may is refused: it is broken",
        "Nothing has changed.",
        "ran: validate",
        "mine version 3: new; promoted RSUM +2.0",
        "champion: 3",
    ]


def test_links_lead_to_a_server_without_its_password_and_nowhere_from_a_file():
    version = {"name": "mine", "version": "3", "run_id": "r", "experiment_id": "7"}

    assert mlflow_links("sqlite:////x/mlflow.db", version) == {}
    assert mlflow_links("http://me:secret@host:5000/", version) == {
        "mine version 3": "http://host:5000/#/models/mine/versions/3",
        "MLflow run": "http://host:5000/#/experiments/7/runs/r",
    }


def test_of_a_progress_bar_one_state_is_shown_now_and_then():
    lines: list[str] = []
    log = throttled(lines.append)

    for line in ["start", "train: 10%|█", "train: 20%|██", "epoch 1", "train: 30%|███"]:
        log(line)

    assert lines == ["start", "train: 10%|█", "epoch 1"]
