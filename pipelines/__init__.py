"""One file per model family: its specs and its few functions. Files named _x.py are shared."""
