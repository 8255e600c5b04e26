"""``erase``: erase the traces of tagged requests, with a Job that this command makes with the user's own rights.

The Job has the shape of the trainer's pod: image, account, settings and credentials of the store, security context. So
it may do in the store what the trainer may. Afterwards the trainer restarts, because it may hold such traces in memory.

Invariant: no tag leaves this machine. The Job gets the tags' hashes.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final

import typer

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Name, in_cluster
from aurora_cli.errors import ProgramFailed
from aurora_cli.kubectl import kubectl
from aurora_protocol.pod_settings import ADMIN_KEY
from aurora_protocol.tag_hash import number_of_hash, tag_hash, tag_key, tag_number, traffic_secret

PROGRAM: Final = ["python", "-P", "-m", "aurora_runtime.tag_erasure"]
KEPT_SECONDS: Final = 3600
"""How long the Job, and what it printed, stays after its end."""
MAX_RETRIES: Final = 3
POLL_SECONDS: Final = 2.0
KUBECTL_SECONDS: Final = 60.0
_OUR_LABELS: Final = ("app.kubernetes.io/", "aurora.dev/")
"""Labels that the Job's pods must not have, or Services and the operator would take them for the speculator's."""


@in_cluster
def erase(
    cluster: Cluster,
    name: Name,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Tag of the requests. Unset: read from stdin, one a line.")
    ] = None,
    hashes: Annotated[
        list[str] | None, typer.Option("--hash", help="Hash that an earlier run printed for a tag, as after a restore.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end, print the result and restart the trainer.")] = True,
) -> None:
    """Erase the traces of requests with a tag from the store and from the trainer's memory."""
    wanted = {_checked(each) for each in hashes or ()}
    tags = tag or ([] if wanted else [line for line in sys.stdin.read().splitlines() if line])
    if tags:
        key = _tag_key(cluster, name)
        wanted |= {tag_hash(tag_number(key, each)) for each in tags}
    if not wanted:
        raise typer.BadParameter("name a tag")
    deployment = _objects(cluster, "get", "deployment", f"{name}-trainer")
    made = _objects(cluster, "create", "--filename=-", stdin=json.dumps(erasing_job(deployment, wanted)))
    job_name = made["metadata"]["name"]
    restart = ("rollout", "restart", f"deployment/{name}-trainer")
    typer.echo(f"job/{job_name} erases the tags with the hashes {', '.join(sorted(wanted))}")
    if not wait:
        typer.echo(f"When it has ended, run: kubectl -n {cluster.namespace} {' '.join(restart)}")
        return
    succeeded = _has_succeeded(cluster, job_name)
    typer.echo(_kubectl(cluster, "logs", f"--selector=job-name={job_name}", "--container=erase", "--tail=-1").strip())
    if not succeeded:
        raise ProgramFailed(f"job/{job_name} failed, so traces may be left: see its log above, and run this again")
    _kubectl(cluster, *restart)
    typer.echo("The trainer restarts, and so forgets what it had in memory.")


def erasing_job(deployment: Mapping[str, Any], hashes: Iterable[str]) -> dict[str, Any]:
    """The Job, shaped from the trainer's Deployment, without its probes and its devices."""
    name, template = deployment["metadata"]["name"], deployment["spec"]["template"]
    given = next(each for each in template["spec"]["containers"] if each["name"] == "trainer")
    kept = ("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext")
    container = {
        "name": "erase",
        **{field: given[field] for field in kept if field in given},
        "command": [*PROGRAM, *sorted(hashes)],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {
            kind: {of: amount for of, amount in amounts.items() if of in ("cpu", "memory", "ephemeral-storage")}
            for kind, amounts in given.get("resources", {}).items()
            if kind in ("requests", "limits")
        },
    }
    metadata = template.get("metadata", {})
    labels = {key: value for key, value in metadata.get("labels", {}).items() if not key.startswith(_OUR_LABELS)}
    pod = {key: value for key, value in template["spec"].items() if key != "resourceClaims"}
    pod |= {"containers": [container], "restartPolicy": "Never"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"{name[:40]}-erase-", "labels": labels},
        "spec": {
            "backoffLimit": MAX_RETRIES,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {"metadata": {"labels": labels, "annotations": metadata.get("annotations", {})}, "spec": pod},
        },
    }


def _has_succeeded(cluster: Cluster, job: str) -> bool:
    """Wait for the end of the Job. Whether it succeeded."""
    while True:
        status = _objects(cluster, "get", "job", job).get("status", {})
        ended = {each["type"] for each in status.get("conditions", []) if each["status"] == "True"}
        if ended & {"Complete", "Failed"}:
            return "Complete" in ended
        time.sleep(POLL_SECONDS)


def _tag_key(cluster: Cluster, name: str) -> bytes:
    """The key of the speculator's tags, from its Secret, which the user must be allowed to read."""
    return tag_key(traffic_secret(base64.b64decode(cluster.secret(f"{name}-keys")[ADMIN_KEY])))


def _checked(text: str) -> str:
    try:
        return tag_hash(number_of_hash(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _objects(cluster: Cluster, *arguments: str, stdin: str = "") -> dict[str, Any]:
    """What kubectl prints as JSON. Raises :class:`ProgramFailed`."""
    answer: dict[str, Any] = json.loads(_kubectl(cluster, *arguments, "--output=json", stdin=stdin))
    return answer


def _kubectl(cluster: Cluster, *arguments: str, stdin: str = "") -> str:
    return kubectl(cluster, *arguments, seconds=KUBECTL_SECONDS, stdin=stdin)
