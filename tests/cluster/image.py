"""Images made without a container engine, straight from files of this machine.

A Python image holds the environment at the very paths that it has here, because an environment is not relocatable. Its
files are root's and readable by all, whatever they are here: a pod runs as another user, on a read-only root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.cluster import elf
from tests.cluster.archive import Layer, write_image
from tests.cluster.command import attempt, run
from tests.cluster.prerequisites import busybox
from tests.cluster.python import Python, inspect

USER = 10001
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
}
"""Parts of a standard library that no pod of ours imports, at any depth. Environments are taken whole."""
_UNUSED = ("config-3*", "lib-dynload/_tkinter*")
"""What links Python into other programs, and what would bring a window system's libraries."""
_USUAL_PLACES = {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}


def pause_image(out: Path, tag: str, program: Path) -> Path:
    """The image of a pod's first container, which holds the pod's namespaces: one static program."""
    layer = Layer()
    layer.file("/pause", program)
    return write_image(out, tag, layer, entrypoint=["/pause"], user="65535")


def shell_image(out: Path, tag: str, *, entrypoint: Sequence[str] = (), command: Sequence[str] = ("/bin/sh",)) -> Path:
    """busybox alone, for pods whose programs come from the host by volumes or that are only a shell."""
    layer = Layer()
    _add_base(layer, mirror_links=False)
    return write_image(out, tag, layer, entrypoint=entrypoint, command=command, user=f"{USER}:{USER}")


def python_image(
    out: Path,
    tag: str,
    python: Path,
    *,
    site_dirs: Sequence[Path] = (),
    extra: Mapping[str, Path] | None = None,
    entrypoint: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    workdir: str = "/",
) -> Path:
    """An image of a virtual environment (its directory), or of a bare interpreter (its path) without any packages.

    Directories that the environment links to come along. `site_dirs` go to the same paths and on PYTHONPATH. `extra`
    maps paths in the image to files or directories here.
    Without an `entrypoint` the image runs its Python.
    """
    found = inspect(python)
    layer = Layer()
    _add_base(layer, mirror_links=True)
    site_dirs = [directory.absolute() for directory in site_dirs]
    _compile(found, site_dirs)
    _add_python(layer, found)
    for directory in (*found.linked, *site_dirs):
        _add_tree(layer, directory, str(directory))
    for target, source in (extra or {}).items():
        if source.is_dir():
            _add_tree(layer, source, target)
        else:
            layer.file(target, source)
    outside = _add_libraries(layer)
    variables = {
        "PATH": f"{found.executable.parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SSL_CERT_FILE": str(CERTIFICATES),
    }
    if site_dirs:
        variables["PYTHONPATH"] = ":".join(map(str, site_dirs))
    if outside:
        variables["LD_LIBRARY_PATH"] = ":".join(outside)
    return write_image(
        out,
        tag,
        layer,
        entrypoint=entrypoint or [str(found.executable)],
        command=command,
        env={**variables, **(env or {})},
        user=f"{USER}:{USER}",
        workdir=workdir,
    )


def _add_base(layer: Layer, mirror_links: bool) -> None:
    """A shell, users, certificates and a /tmp: what any program may expect of a system.

    With `mirror_links`, /bin and /lib are links into /usr where they are so here, as libraries keep their paths.
    """
    if mirror_links:
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if Path("/", name).is_symlink():
                layer.link(f"/{name}", os.readlink(Path("/", name)))
    box = busybox()
    if box is None:
        raise FileNotFoundError("install busybox-static: images take their shell from it")
    layer.file("/bin/busybox", box)
    for applet in run(box, "--list").split():
        if applet != "busybox":
            layer.link(f"/bin/{applet}", "busybox")
    layer.content(
        "/etc/passwd",
        f"root:x:0:0:root:/root:/bin/sh\naurora:x:{USER}:{USER}:aurora:/home/aurora:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )
    layer.content("/etc/group", f"root:x:0:\naurora:x:{USER}:\nnogroup:x:65534:\n")
    layer.content("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    layer.file(str(CERTIFICATES), CERTIFICATES.resolve())
    layer.directory("/tmp", 0o1777)  # noqa: S108
    for path in ("/home/aurora", "/root", "/var/tmp", "/run"):  # noqa: S108
        layer.directory(path)


def _compile(python: Python, site_dirs: Sequence[Path]) -> None:
    """Compile what has not been: a pod cannot write compiled code to its image, and would compile at every start."""
    directories = [python.site, *python.linked, *site_dirs] if python.is_venv else list(site_dirs)
    if directories:
        attempt(python.executable, "-m", "compileall", "-q", *directories, timeout=900)


def _add_python(layer: Layer, python: Python) -> None:
    for directory in python.stdlib:
        unused = {path.name for pattern in _UNUSED for path in directory.glob(pattern)}
        for path in _walk(directory, leave_out=_LEFT_OUT | unused):
            _add_path(layer, path, str(path), directory)
    if python.is_venv:
        _add_tree(layer, python.prefix, str(python.prefix))
    *links, program = python.executables()
    for link in links:
        layer.link(str(link), os.readlink(link))
    layer.file(str(program), program)


def _add_tree(layer: Layer, source: Path, target: str) -> None:
    layer.directory(target)
    for path in _walk(source):
        _add_path(layer, path, os.path.join(target, path.relative_to(source)), source)


def _add_path(layer: Layer, path: Path, target: str, tree: Path) -> None:
    """A link stays a link only if it leads to within its own tree; otherwise what it leads to is taken."""
    if path.is_symlink():
        destination = os.readlink(path)
        inside = path.resolve().is_relative_to(tree.resolve()) and not os.path.isabs(destination)
        if inside:
            layer.link(target, destination)
            return
        if path.is_dir():
            _add_tree(layer, path.resolve(), target)
            return
    if path.is_dir():
        layer.directory(target)
    elif path.is_file():
        layer.file(target, path)


def _walk(top: Path, leave_out: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    """Everything below `top`, links not followed, without what is named in `leave_out` and what is below it."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if entry.name in leave_out:
            continue
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), leave_out)


def _add_libraries(layer: Layer) -> list[str]:
    """Every library that anything in the image needs and that is not in it; returns unusual directories of them."""
    present = layer.files()
    unlisted = elf.library("libgcc_s.so.1")  # the C library loads it when a thread is cancelled
    needed = elf.closure(present.values()) | ({unlisted} if unlisted else set())
    outside = set()
    for library in sorted(needed):
        if str(library) not in present:
            layer.file(str(library), library)
            place = str(library.parent)
            if place not in _USUAL_PLACES and not place.startswith(("/lib/", "/usr/lib/")):
                outside.add(place)
    return sorted(outside)
