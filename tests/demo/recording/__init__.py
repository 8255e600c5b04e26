"""Records the demo as an asciinema cast, a text file of what a terminal got and when, for docs/results.

``python3 -m tests.demo.recording FILE.cast`` runs `make demo` in a terminal of its own and writes the cast. ``python -m
tests.demo.recording.pictures FILE.cast`` draws two pictures of the cast's live view.

The package has its own recorder, because `asciinema` on PyPI is of 2023 and under the GPL, and would record every
redraw of the live view: megabytes. Invariant: nothing is added to what the demo wrote, and no time is changed.
"""
