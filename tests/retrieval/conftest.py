"""The gallery small enough to follow by hand."""

from tiny_gallery import make_split, model, querybank, split

__all__ = ["make_split", "model", "querybank", "split"]
