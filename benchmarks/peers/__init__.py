"""The systems that throughput.py and time_to_recall.py put side by side: a process each, which prints one JSON line."""
