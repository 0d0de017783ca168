"""whaleid: from a competition's photographs to ranked guesses of who is in them."""

__version__ = "0.1.0"
