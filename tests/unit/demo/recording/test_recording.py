"""The recorder's command writes a small cast without anything of the machine, and pictures can be drawn of it."""

from __future__ import annotations

import getpass
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.live import Live

from tests.demo.recording import pictures
from tests.demo.recording.__main__ import HEIGHT, WIDTH, main, make_cast
from tests.demo.recording.cast import Cast
from tests.demo.recording.masking import Mask
from tests.demo.recording.terminal import Chunk
from tests.demo.show.live_view import live_view
from tests.demo.show.show_state import ShowState
from tests.demo.stages import ROOT
from tests.unit.demo.show.states import long_state, resource, state_after, traffic

MEASURING = {"active": {"version": 0}, "candidate": {"version": 1, "phase": "Validating"}}
ROLLED = {"active": {"version": 1}, "candidate": {"version": 1, "phase": "Validated"}}
MASK = Mask(ROOT)


def live_chunks(*states: ShowState) -> list[Chunk]:
    """What the demo writes to a terminal while it has these states, one every ten seconds, and its results."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=WIDTH, height=HEIGHT, highlight=False)
    chunks = [Chunk(0.0, b"[00:00] preparing\r\n")]

    def take() -> None:
        chunks.append(Chunk(10.0 * len(chunks), stream.getvalue().replace("\n", "\r\n").encode()))
        stream.seek(0)
        stream.truncate()

    with Live(console=console, auto_refresh=False) as live:
        for state in states:
            console.print("[00:10] a line above the view", markup=False)
            live.update(live_view(state, 600.0, WIDTH), refresh=True)
            take()
    print("results", file=stream)
    take()
    return chunks


def test_the_command_records_a_program_without_paths_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "demo.failed.cast"
    program = f"import os; print('report:', os.getcwd() + '/build/report.html', {str(Path.home() / 'x')!r}); exit(3)"
    began = int(time.time())
    assert main([str(tmp_path / "demo.cast")], command=(sys.executable, "-c", program)) == 3
    header, *events = [json.loads(line) for line in file.read_text().splitlines()]
    assert began <= header.pop("timestamp") <= time.time()
    assert header == {
        "version": 2,
        "width": 120,
        "height": 36,
        "idle_time_limit": 0.5,
        "command": "make demo",
        "title": "make demo",
    }
    assert [(kind, text) for _, kind, text in events] == [("o", "report: build/report.html …\r\n")]
    for private in (ROOT, Path.home(), tempfile.gettempdir()):
        assert str(private) not in file.read_text()
    assert "exit status 3" in capsys.readouterr().out


def test_a_demo_that_failed_does_not_replace_the_recording_of_one_that_succeeded(tmp_path: Path) -> None:
    file = tmp_path / "demo.cast"
    assert main([str(file)], command=("/bin/sh", "-c", "echo good")) == 0
    good = file.read_text()
    assert main([str(file)], command=("/bin/sh", "-c", "echo bad; exit 1")) == 1
    assert file.read_text() == good
    assert "bad" in (tmp_path / "demo.failed.cast").read_text()


def test_a_user_without_a_name_is_recorded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", no_name)
    assert main([str(tmp_path / "demo.cast")], command=("/bin/sh", "-c", "echo good")) == 0
    assert "good" in (tmp_path / "demo.cast").read_text()


@pytest.mark.parametrize("name", ["", "no/such/folder/demo.cast"])
def test_a_file_that_cannot_be_written_is_refused_before_the_demo_runs(name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path / name)], command=("/no/such/program",))


def test_the_recorder_needs_no_package() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.demo.recording.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, cwd="/")


def test_a_long_demo_is_a_small_file() -> None:
    states = [long_state(13)] * 2
    first, redraw, end = live_chunks(*states)[1:]
    redraw = Chunk(0.0, redraw.data.replace(b"[00:10] a line above the view\r\n", b""))
    redraws = [Chunk(0.5 * number, redraw.data) for number in range(2 * 60 * 17)]
    cast = make_cast([first, *redraws, Chunk(17 * 60.0, end.data)], 0, MASK)
    assert 100_000 < len(cast.to_lines().encode()) < 1_000_000


def test_a_cast_is_read_as_it_was_written() -> None:
    cast = make_cast(live_chunks(state_after((resource(**MEASURING), traffic(60.0, 900, 20)))), 1_790_000_000, MASK)
    assert Cast.from_lines(cast.to_lines()) == cast
    with pytest.raises(ValueError, match="version 2"):
        Cast.from_lines('{"version": 1}')


def test_pictures_show_the_view_while_the_gate_measures_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = [(resource(**fields), traffic(60.0, 900, 20)) for fields in ({}, MEASURING, ROLLED)]
    states = [state_after(*looks[: number + 1]) for number in range(len(looks))]
    file = tmp_path / "demo.cast"
    file.write_text(make_cast(live_chunks(*states), 0, MASK).to_lines())
    assert pictures.main([str(file)]) == 0
    shown = {name: (tmp_path / f"demo-{name}.svg").read_text() for name in ("measuring", "end")}
    for svg in shown.values():
        words = " ".join(ElementTree.fromstring(svg).itertext()).replace("\xa0", " ")  # noqa: S314 - our own file
        assert "Aurora demo, 10 min" in words
        assert "a line above the view" not in words
        assert "results" not in words
        assert "url(" not in svg.replace("url(#", ""), "a picture in a page cannot fetch fonts"
    assert "measuring version 1" in shown["measuring"].replace("&#160;", " ")
    assert "training: step 0" in shown["end"].replace("&#160;", " ")
    assert capsys.readouterr().out.count("wrote") == 2


def test_a_demo_that_ended_early_has_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "demo.cast"
    file.write_text(make_cast([Chunk(0.0, b"[00:00] preparing\r\n")], 0, MASK).to_lines())
    assert pictures.main([str(file)]) == 0
    assert capsys.readouterr().out.count("did not come so far") == 2
    assert list(tmp_path.glob("*.svg")) == []
