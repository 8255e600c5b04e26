"""python -m tests.cluster up|down|status|kubeconfig|load|build: see README.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.cluster.build import BuildError, binaries
from tests.cluster.cluster import Cluster
from tests.cluster.command import CommandError, NotReadyError, environment, say
from tests.cluster.layout import default_name
from tests.cluster.local import LocalCluster
from tests.cluster.prerequisites import MissingPrerequisitesError

PASSED_ON = ("kubectl", "helm")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster", description="a local Kubernetes cluster, without Docker"
    )
    parser.add_argument(
        "--name", default=default_name(), help="several clusters can run side by side (default: CLUSTER_NAME)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the programs if this machine has not yet, and print where they are")
    commands.add_parser("up", help="start the cluster, or find it running")
    down = commands.add_parser("down", help="end the cluster; imported images are kept for the next")
    down.add_argument("--purge", action="store_true", help="remove the images and everything else too")
    commands.add_parser("status", help="exit 0 when the cluster is up and healthy, 1 and say why when not")
    commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    for program in PASSED_ON:
        commands.add_parser(program, help=f"run the cluster's own {program}; works without a cluster too")
    commands.add_parser("load", help="import a docker archive").add_argument("tar", type=Path)
    # What follows kubectl and helm is theirs, options such as --help too.
    words = sys.argv[1:]
    end = next((index + 1 for index, word in enumerate(words) if word in PASSED_ON), len(words))
    return parser.parse_args(words[:end]), words[end:]


def passed_on(local: LocalCluster, program: str, arguments: list[str]) -> int:
    """Run one of the cluster's programs. helm lint needs no cluster, so none is asked for."""
    access = local.access(created=False)
    variables = environment({**access.environment, "KUBECONFIG": str(access.kubeconfig)})
    command = [str(access.kubectl.parent / program), *arguments]
    return subprocess.run(command, env=variables, check=False).returncode


def main() -> int:
    arguments, passed = _arguments()
    local = LocalCluster(arguments.name)
    if arguments.command == "build":
        print(binaries())
    elif arguments.command == "up":
        cluster = Cluster.up(arguments.name, kind="local")
        say(f"cluster {cluster.name} is up" if cluster.access.created else f"cluster {cluster.name} was up")
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        print(f'export PATH="{cluster.access.kubectl.parent}:$PATH"')
    elif arguments.command == "down":
        local.down(purge=arguments.purge)
    elif arguments.command in PASSED_ON:
        return passed_on(local, arguments.command, passed)
    elif problem := local.problem():
        say(problem)
        return 1
    elif arguments.command == "status":
        print(f"cluster {arguments.name} is up: KUBECONFIG={local.layout.kubeconfig}")
    elif arguments.command == "kubeconfig":
        print(local.layout.kubeconfig)
    elif arguments.command == "load":
        local.load_image(arguments.tar)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BuildError, CommandError, MissingPrerequisitesError, NotReadyError) as error:
        say(f"error: {error}")
        sys.exit(1)
