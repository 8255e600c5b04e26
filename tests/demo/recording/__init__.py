"""Records the demo as an asciinema cast, a text file of what a terminal got and when, for docs/results.

``python3 -m tests.demo.recording FILE.cast`` runs `make demo` in a terminal of its own and writes the cast. ``python -m
tests.demo.recording.pictures FILE.cast`` draws two pictures of the cast's live view.

The package has its own recorder, because PyPI's `asciinema` dates from 2023, has the GPL, and would record every redraw
of the live view: megabytes. Invariant: the recorder leaves redraws out and masks text (masking.py). It adds nothing
else to what the demo wrote, and changes no time.
"""
