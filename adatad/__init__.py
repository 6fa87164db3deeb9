"""AdaTAD: end-to-end temporal action detection in long videos, trained in little memory."""

__version__ = "0.1.0"
