"""From a pin to files on disk: fetch from the configured package index, verify, unpack."""

from sparkwright.sources.fetch import fetch
from sparkwright.sources.unpack import unpack

__all__ = ["fetch", "unpack"]
