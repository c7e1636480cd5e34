"""What is to be settled before anything is printed."""

import io
import sys


def print_anything() -> None:
    """Print characters that the terminal does not have as ``?`` instead of failing; files are UTF-8 and keep them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
