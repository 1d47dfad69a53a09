"""The systems that throughput.py and time_to_recall.py compare: a process for each, which prints one JSON line."""
