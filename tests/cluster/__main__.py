"""`python -m tests.cluster prerequisites|up|down|status|load|build|kubectl|helm`: see README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from tests.cluster.cluster import Cluster
from tests.cluster.command import environment_without_proxies, print_progress
from tests.cluster.local.build import binaries
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.layout import default_name
from tests.cluster.local.prerequisites import ensure_prerequisites

FORWARDED_PROGRAMS = ("kubectl", "helm")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """This program's own arguments, and the arguments that follow kubectl or helm."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="A local Kubernetes cluster, without Docker."
    )
    parser.add_argument(
        "--name",
        default=default_name(),
        help="the cluster's name; clusters of other names can run beside it (default: CLUSTER_NAME, else aurora)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prerequisites", help="install what this machine lacks for a cluster, or say what to install")
    commands.add_parser("build", help="build Kubernetes if this machine has no build yet, and print the directory")
    commands.add_parser("up", help="start the cluster, or reuse the running one")
    down = commands.add_parser("down", help="stop the cluster and keep its imported images for the next start")
    down.add_argument("--purge", action="store_true", help="remove the images and all other files of the cluster too")
    commands.add_parser("status", help="exit 0 when the cluster is healthy; otherwise exit 1 and print the reason")
    for program in FORWARDED_PROGRAMS:
        commands.add_parser(program, help=f"run the {program} of this build; needs no running cluster")
    commands.add_parser("load", help="import a docker archive into the cluster").add_argument("tar", type=Path)
    # kubectl and helm parse everything after their name, also options such as --help.
    words = sys.argv[1:]
    end = next((index + 1 for index, word in enumerate(words) if word in FORWARDED_PROGRAMS), len(words))
    return parser.parse_args(words[:end]), words[end:]


def become(local: LocalCluster, program: str, arguments: list[str]) -> NoReturn:
    """Become kubectl or helm. The cluster may be down, because `helm lint` needs no cluster."""
    environment = environment_without_proxies(local.client_environment())
    os.execve(binaries() / program, [program, *arguments], environment)  # noqa: S606 - no shell


def main() -> int:
    arguments, forwarded = _arguments()
    local = LocalCluster(arguments.name)
    if arguments.command == "prerequisites":
        ensure_prerequisites()
    elif arguments.command == "build":
        print(binaries())
    elif arguments.command == "up":
        cluster = Cluster.up(arguments.name)
        action = "started" if cluster.created else "was already running"
        print_progress(f"cluster {cluster.name} {action}")
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        print(f'export PATH="{cluster.programs}:$PATH"')
    elif arguments.command == "down":
        local.down(purge=arguments.purge)
    elif arguments.command in FORWARDED_PROGRAMS:
        become(local, arguments.command, forwarded)
    elif problem := local.problem():
        print_progress(problem)
        return 1
    elif arguments.command == "status":
        print(f"cluster {arguments.name} is up: KUBECONFIG={local.layout.kubeconfig}")
    elif arguments.command == "load":
        local.load_image(arguments.tar)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        print_progress(f"error: {error}")
        sys.exit(1)
