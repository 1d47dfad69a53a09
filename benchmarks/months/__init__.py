"""Parts of year.py: the drops, the services, and the checks of the outcome."""
