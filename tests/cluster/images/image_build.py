"""Builds images from files of this machine, without a container engine.

A Python image holds the environment at the same paths as on this machine, because an environment is not relocatable.
All files in an image belong to root and are readable by all, because a pod runs as another user with a read-only root.
Their owners and modes on this machine do not matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.cluster.command import run, run_or_none
from tests.cluster.images import elf
from tests.cluster.images.archive import Layer, write_image
from tests.cluster.images.python_environment import PythonEnvironment, inspect_environment
from tests.cluster.local.prerequisites import static_busybox

USER_ID = 10001
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_OMITTED_FROM_STDLIB = {
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
"""Parts of the standard library that no pod of ours imports, at any depth. Environments are copied whole."""
_OMITTED_PATTERNS = ("config-3*", "lib-dynload/_tkinter*")
"""Files for linking Python into other programs, and a module that needs the libraries of a window system."""
_LOADER_DIRECTORIES = {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
"""Where the loader looks without LD_LIBRARY_PATH."""


def pause_image(out: Path, tag: str, program: Path) -> Path:
    """The image of a pod's first container, which holds the pod's namespaces: one static program."""
    layer = Layer()
    layer.add_file("/pause", program)
    return write_image(out, tag, layer, entrypoint=["/pause"], user="65535")


def python_image(
    out: Path,
    tag: str,
    python: Path,
    *,
    extra: Mapping[str, Path] | None = None,
    env: Mapping[str, str] | None = None,
) -> Path:
    """An image of a Python environment.

    Directories that the environment links to are copied too.

    Args:
        python: The directory of a virtual environment, or the path of an interpreter, which then has no packages.
        extra: Path in the image -> file or directory of this machine.
    """
    environment = inspect_environment(python)
    layer = Layer()
    _add_base(layer)
    _compile(environment)
    _add_python(layer, environment)
    for directory in environment.linked:
        _add_tree(layer, directory, str(directory))
    for target, source in (extra or {}).items():
        if source.is_dir():
            _add_tree(layer, source, target)
        else:
            layer.add_file(target, source)
    library_directories = _add_libraries(layer)
    variables = {
        "PATH": f"{environment.executable.parent}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SSL_CERT_FILE": str(CERTIFICATES),
    }
    if library_directories:
        variables["LD_LIBRARY_PATH"] = ":".join(library_directories)
    return write_image(
        out,
        tag,
        layer,
        entrypoint=[str(environment.executable)],
        env={**variables, **(env or {})},
        user=f"{USER_ID}:{USER_ID}",
    )


def _add_base(layer: Layer) -> None:
    """Add what programs expect of a system: a shell, users, certificates and a /tmp.

    Directories such as /bin and /lib are links into /usr if they are links on this machine, so libraries keep their
    paths.
    """
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path("/", name).is_symlink():
            layer.add_link(f"/{name}", os.readlink(Path("/", name)))
    busybox = static_busybox()
    if busybox is None:
        raise FileNotFoundError("install busybox-static: images use its shell")
    layer.add_file("/bin/busybox", busybox)
    for applet in run(busybox, "--list").split():
        if applet != "busybox":
            layer.add_link(f"/bin/{applet}", "busybox")
    layer.add_content(
        "/etc/passwd",
        f"root:x:0:0:root:/root:/bin/sh\naurora:x:{USER_ID}:{USER_ID}:aurora:/home/aurora:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )
    layer.add_content("/etc/group", f"root:x:0:\naurora:x:{USER_ID}:\nnogroup:x:65534:\n")
    layer.add_content("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    layer.add_file(str(CERTIFICATES), CERTIFICATES.resolve())
    layer.add_directory("/tmp", 0o1777)  # noqa: S108
    for path in ("/home/aurora", "/root", "/var/tmp", "/run"):  # noqa: S108
        layer.add_directory(path)


def _compile(environment: PythonEnvironment) -> None:
    """Compile modules that are not compiled yet: a pod cannot write to its image and would compile at every start."""
    if environment.is_venv:
        directories = [environment.site, *environment.linked]
        run_or_none(environment.executable, "-m", "compileall", "-q", *directories, timeout_seconds=900)


def _add_python(layer: Layer, environment: PythonEnvironment) -> None:
    for directory in environment.stdlib:
        omitted = {path.name for pattern in _OMITTED_PATTERNS for path in directory.glob(pattern)}
        for path in _walk(directory, omit=_OMITTED_FROM_STDLIB | omitted):
            _add_path(layer, path, str(path), directory)
    if environment.is_venv:
        _add_tree(layer, environment.prefix, str(environment.prefix))
    *links, program = environment.executable_chain()
    for link in links:
        layer.add_link(str(link), os.readlink(link))
    layer.add_file(str(program), program)


def _add_tree(layer: Layer, source: Path, target: str) -> None:
    layer.add_directory(target)
    for path in _walk(source):
        _add_path(layer, path, os.path.join(target, path.relative_to(source)), source)


def _add_path(layer: Layer, path: Path, target: str, tree: Path) -> None:
    """Add one path. A link stays a link only if it leads to a path within `tree`. Otherwise its target is copied."""
    if path.is_symlink():
        destination = os.readlink(path)
        stays_inside = path.resolve().is_relative_to(tree.resolve()) and not os.path.isabs(destination)
        if stays_inside:
            layer.add_link(target, destination)
            return
        if path.is_dir():
            _add_tree(layer, path.resolve(), target)
            return
    if path.is_dir():
        layer.add_directory(target)
    elif path.is_file():
        layer.add_file(target, path)


def _walk(top: Path, omit: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    """Every path below `top`, without following links. Entries named in `omit` are left out, with their content."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if entry.name in omit:
            continue
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), omit)


def _add_libraries(layer: Layer) -> list[str]:
    """Add every library that files of the image need and that the image lacks.

    Returns:
        The directories of added libraries in which the loader does not look by itself.
    """
    present = layer.files()
    loaded_at_run_time = elf.system_library("libgcc_s.so.1")  # the C library loads it when a thread is cancelled
    required = elf.required_libraries(present.values()) | ({loaded_at_run_time} if loaded_at_run_time else set())
    unusual_directories = set()
    for library in sorted(required):
        if str(library) not in present:
            layer.add_file(str(library), library)
            directory = str(library.parent)
            if directory not in _LOADER_DIRECTORIES and not directory.startswith(("/lib/", "/usr/lib/")):
                unusual_directories.add(directory)
    return sorted(unusual_directories)
