"""Advice: a params.yaml for a dataset, with the reason of each choice, and a measurement of a few alternatives."""
