"""diptych: from captioned images to a registered, evaluated, reproducible retrieval model."""

__version__ = "0.1.0"
