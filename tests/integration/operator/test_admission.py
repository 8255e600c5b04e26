"""A corpus of resources for the real API server: resources that it refuses, with its message, or accepts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import new_client_from_config

from aurora_api.crd import FILE
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import Object
from tests.assets.refused_arguments import REFUSED_ARGUMENTS
from tests.cluster.cluster import Cluster
from tests.cluster.command import CommandError
from tests.rig.sync_api import SyncApi

SAMPLES = Path(__file__).parents[3] / "docs/samples"
DryRunApply = Callable[[Object], Object]
TARGET = {"model": "m"}
KEYS = {"secretRef": {"name": "s3"}}
HEAD = {"model": "org/head-EAGLE3"}
STORE = {"bucket": "abc", "credentials": KEYS}


def speculator(name: str = "rules", **parts: Any) -> dict[str, Any]:
    """A minimal resource, with ``parts`` in place of the sections of its spec."""
    made: dict[str, Any] = {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": name, "namespace": "default"},
        "spec": copy.deepcopy({"target": TARGET, "store": STORE}),
    }
    made["spec"] |= parts
    return made


@pytest.fixture(scope="module", name="dry_run")
def _dry_run(crd: Cluster) -> Iterator[DryRunApply]:
    """Asks the API server about a resource, without storing it."""
    with new_client_from_config(str(crd.kubeconfig)) as connection:
        api = SyncApi(connection)
        yield lambda resource: api.dry_run(resource, "default")


def arguments(*extra: str) -> dict[str, Any]:
    return {"serving": {"extraArgs": list(extra)}}


def containers(part: str, value: Any, kind: str = "containers") -> dict[str, Any]:
    return {part: {"template": {"spec": {kind: value}}}}


BAD: list[tuple[dict[str, Any], str]] = [
    # target
    ({"target": {}}, "spec.target.model: Required"),
    ({"target": {"model": ""}}, "spec.target.model"),
    ({"target": {"model": "a\nb"}}, "no spaces and does not begin with '-'"),
    ({"target": {"model": "a b"}}, "no spaces and does not begin with '-'"),
    ({"target": {"model": "--model-path"}}, "no spaces and does not begin with '-'"),
    ({"target": {"model": "m\x00"}}, "no spaces and does not begin with '-'"),
    ({"target": {"model": "m" * 513}}, "spec.target.model: Too long"),
    ({"target": TARGET | {"revision": "--evil"}}, "a revision is a git branch, tag or commit"),
    ({"target": TARGET | {"revision": "a b"}}, "a revision is a git branch, tag or commit"),
    ({"target": TARGET | {"dtype": "fp8"}}, "spec.target.dtype: Unsupported value"),
    # store
    ({"store": STORE | {"bucket": "A_b"}}, "a bucket's name has 3 to 63 lower-case letters"),
    ({"store": STORE | {"bucket": "a..b"}}, "a bucket's name has 3 to 63 lower-case letters"),
    ({"store": STORE | {"bucket": "ab"}}, "spec.store.bucket"),
    ({"store": STORE | {"bucket": "-ab"}}, "a bucket's name has 3 to 63 lower-case letters"),
    ({"store": STORE | {"bucket": "10.0.0.1"}}, "S3 allows no IP address"),
    ({"store": STORE | {"prefix": "../../other"}}, "a prefix is a relative path"),
    ({"store": STORE | {"prefix": "/abs"}}, "a prefix is a relative path"),
    ({"store": STORE | {"prefix": "a//b"}}, "a prefix is a relative path"),
    ({"store": STORE | {"prefix": "a/./b"}}, "a prefix is a relative path"),
    ({"store": STORE | {"endpoint": "minio:9000"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "ftp://minio"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "http://user:secret@minio"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "http://[::1"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "http://minio_svc:9000"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "http://minio?x=1"}}, "an endpoint is a URL"),
    ({"store": STORE | {"endpoint": "http://minio:65536"}}, "a port up to 65535"),
    ({"store": STORE | {"endpoint": "http://169.254.169.254"}}, "link-local addresses are refused"),
    ({"store": STORE | {"endpoint": "http://[fe80::1]:9000"}}, "link-local addresses are refused"),
    ({"store": STORE | {"region": "eu central"}}, "spec.store.region"),
    (
        {"store": STORE | {"endpoint": "http://minio", "credentials": {"serviceAccountName": "s3-writer"}}},
        "with endpoint set credentials.secretRef",
    ),
    (
        {"store": STORE | {"credentials": KEYS | {"roles": {"operator": "b"}}}},
        "roles are serving, training, validation",
    ),
    ({"store": STORE | {"credentials": {}}}, "exactly one of secretRef and serviceAccountName"),
    (
        {"store": STORE | {"credentials": {"secretRef": {"name": "a"}, "serviceAccountName": "b"}}},
        "exactly one of secretRef and serviceAccountName",
    ),
    ({"store": STORE | {"credentials": {"secretRef": {"name": "A B"}}}}, "secretRef.name"),
    ({"store": STORE | {"path": "/default/chat"}}, "a path has two segments"),
    ({"store": STORE | {"path": "../chat"}}, "a path has two segments"),
    ({"store": STORE | {"path": "default//chat"}}, "a path has two segments"),
    ({"store": STORE | {"path": "default/chat/"}}, "a path has two segments"),
    ({"store": STORE | {"path": "aurora/default/chat"}}, "a path has two segments"),
    ({"store": STORE | {"path": "chat"}}, "a path has two segments"),
    ({"store": STORE | {"path": ""}}, "a path has two segments"),
    ({"store": STORE | {"path": f"default/{'x' * 256}"}}, "Too long"),
    ({"store": STORE | {"deletionPolicy": "Recycle"}}, "spec.store.deletionPolicy: Unsupported value"),
    # draft
    ({"draft": {"steps": 0}}, "spec.draft.steps"),
    ({"draft": {"steps": 17}}, "spec.draft.steps"),
    ({"draft": {"vocabSize": 100}}, "spec.draft.vocabSize"),
    ({"draft": {"shape": "Tree"}}, "spec.draft.shape: Unsupported value"),
    ({"draft": {"initial": {}}}, "spec.draft.initial.model: Required value"),
    ({"draft": {"initial": {"model": "--evil"}}}, "a model is a Hugging Face id or a path"),
    ({"draft": {"initial": {"model": "org/head", "revision": "--evil"}}}, "a revision is a git branch, tag or commit"),
    ({"draft": {"lookup": "Cluster"}}, "spec.draft.lookup: Unsupported value"),
    ({"draft": {"topK": 2}}, "unknown field|field not declared"),
    ({"draft": {"pin": 2}}, "unknown field|field not declared"),
    # serving
    ({"serving": {"replicas": -1}}, "spec.serving.replicas"),
    ({"serving": {"replicas": 1001}}, "spec.serving.replicas"),
    ({"serving": {"device": "tpu"}}, "spec.serving.device: Unsupported value"),
    ({"serving": {"image": "a b"}}, "spec.serving.image"),
    ({"serving": {"strategy": {"maxSurge": 0, "maxUnavailable": 0}}}, "must not both be 0"),
    ({"serving": {"strategy": {"maxSurge": "0%", "maxUnavailable": 0}}}, "must not both be 0"),
    ({"serving": {"strategy": {"maxUnavailable": "101%"}}}, "at most 100%"),
    ({"serving": {"strategy": {"maxSurge": "some"}}}, "spec.serving.strategy.maxSurge"),
    ({"serving": {"strategy": {"maxSurge": -1}}}, "must be 0 to 999"),
    ({"serving": {"strategy": {"maxSurge": 1000}}}, "must be 0 to 999"),
    ({"serving": {"strategy": {"maxSurge": 0, "maxUnavailable": 1000}}}, "must be 0 to 999"),
    ({"serving": {"strategy": {"maxSurge": "1000%"}}}, "spec.serving.strategy.maxSurge"),
    *[(arguments(*given), message) for given, message in REFUSED_ARGUMENTS],
    ({"draft": {"shape": "Adaptive"}} | arguments("--enable-two-batch-overlap"), "set draft.shape to Fixed"),
    ({"draft": {"shape": "Adaptive"}} | arguments("--tp", "2", "--enable-pdm"), "set draft.shape to Fixed"),
    ({"serving": {"maxRunningRequests": 0}}, "spec.serving.maxRunningRequests"),
    ({"serving": {"maxRunningRequests": 4097}}, "spec.serving.maxRunningRequests"),
    (
        {"serving": {"maxRunningRequests": 3}},
        "validation.concurrencies must not exceed serving.maxRunningRequests",
    ),
    ({"validation": {"concurrencies": [1, 512]}}, "must not exceed serving.maxRunningRequests"),
    # templates
    (containers("serving", "a string"), "spec.serving.template.spec.containers"),
    (containers("serving", [{"image": "i"}]), "containers\\[0\\].name: Required"),
    (containers("serving", [{"name": "server"}]), "an inference pod has the containers sglang, agent"),
    (
        containers("serving", [{"name": "warm"}], "initContainers"),
        "the init containers stage",
    ),
    (containers("serving", [{"name": "sglang", "image": "x"}], "initContainers"), "a name that no other"),
    (containers("serving", [{"name": "stage", "image": "x"}]), "a name that no other"),
    ({"resources": {"limits": {"nvidia.com/gpu": "one"}}}, "spec.resources.limits"),
    (containers("training", [{"name": "sglang"}]), "the trainer's pod has the containers trainer"),
    (containers("training", [{"name": "x"}], "initContainers"), "the init containers none"),
    (containers("validation", [{"name": "validate"}]), "the validation pod has the containers validator"),
    ({"target": {"model": "/model", "source": {}}}, "set exactly one of huggingFace, pvc and image"),
    (
        {"target": {"model": "org/model", "source": {"pvc": {"claimName": "m"}}}},
        "model must be /model, or a path below",
    ),
    # capture and training
    ({"capture": {"tokensPerMinute": -1}}, "spec.capture.tokensPerMinute"),
    ({"capture": {"tokensPerMinute": "20k"}}, "spec.capture.tokensPerMinute"),
    ({"training": {"traceStorageLimit": "1Gi"}}, "traceStorageLimit is at least 2Gi"),
    ({"training": {"traceStorageLimit": "64 GiB"}}, "spec.training.traceStorageLimit"),
    ({"training": {"traceMaxAgeSeconds": 315360001}}, "spec.training.traceMaxAgeSeconds"),
    ({"training": {"publishTokens": 10**10}}, "spec.training.publishTokens"),
    ({"rollout": {"pin": 10**8}}, "spec.rollout.pin"),
    # validation
    ({"validation": {"concurrencies": [1, 1]}}, "concurrencies must differ"),
    ({"validation": {"concurrencies": []}}, "spec.validation.concurrencies"),
    ({"validation": {"tolerance": "1"}}, "tolerance is a share below 1"),
    ({"validation": {"measureOn": "Elsewhere"}}, "spec.validation.measureOn: Unsupported value"),
    ({"validation": {"baselines": ["LOOKUP"]}}, "spec.validation.baselines"),
    ({"validation": {"measureOn": "Replica", "baselines": ["NGRAM"]}}, "baselines need an engine of their own"),
    (
        {"validation": {"measureOn": "Replica"}, "draft": {"shape": "Fixed"}},
        "a replica with draft.shape Fixed cannot answer without speculation",
    ),
    ({"validation": {"timeoutSeconds": 59}}, "spec.validation.timeoutSeconds"),
    # rollout
    ({"rollout": {"pin": -1}}, "spec.rollout.pin"),
    ({"rollout": {"maxUnavailable": 1}}, "unknown field|field not declared"),
    ({"surprise": {}}, "surprise"),
]

GOOD: list[dict[str, Any]] = [
    {},
    {"target": {"model": "Qwen/Qwen3-8B", "revision": "refs/pr/1", "dtype": "bfloat16"}},
    {"target": {"model": "/models/llama"}},
    {"target": {"model": "org/gated", "source": {"huggingFace": {"tokenSecretRef": {"name": "hf"}}}}},
    {"target": {"model": "/model/llama", "source": {"pvc": {"claimName": "models"}}}},
    {"target": {"model": "/model", "source": {"image": {"reference": "registry.example/llama:1"}}}},
    {"draft": {"initial": HEAD | {"revision": "0123456789abcdef"}}},
    {"draft": {"initial": HEAD, "shape": "Fixed"}},
    {"store": STORE | {"prefix": ""}},
    {"store": STORE | {"prefix": "team/a.b/"}},
    {"store": STORE | {"bucket": "my.bucket-1", "region": "eu-central-1"}},
    {"store": STORE | {"endpoint": "http://minio.storage:9000"}},
    {"store": STORE | {"endpoint": "https://[2001:db8::1]:443/s3"}},
    {"store": STORE | {"credentials": {"serviceAccountName": "s3-writer"}}},
    {"store": STORE | {"credentials": KEYS | {"roles": {"serving": "s3-writer"}}}},
    {
        "store": STORE
        | {
            "endpoint": "http://minio.storage:9000",
            "credentials": KEYS | {"roles": dict.fromkeys(("serving", "training", "validation"), "s3-pods")},
        }
    },
    {"store": STORE | {"path": "default/chat"}},
    {"store": STORE | {"path": "Team_1/chat-2.b", "prefix": "", "deletionPolicy": "Delete"}},
    {"draft": {"steps": 5}},
    {"draft": {"steps": 7, "shape": "Adaptive", "lookup": "Speculator"}},
    {"draft": {"lookup": "Off", "shape": "Fixed"}},
    {"serving": {"replicas": 0}},
    {"serving": {"maxRunningRequests": 4}},
    {"serving": {"maxRunningRequests": 512}, "validation": {"concurrencies": [1, 512]}},
    {"draft": {"shape": "Fixed"}} | arguments("--enable-two-batch-overlap"),
    arguments("--speculative-draft-attention-backend", "fa3", "--speculative-attention-mode=decode"),
    arguments("--speculative-ngram-max-trie-depth", "12"),
    arguments("--schedule-policy", "lpm", "--sleep-on-idle", "--served-model-name", "chat"),
    {"serving": {"strategy": {"maxSurge": "25%", "maxUnavailable": "25%"}}},
    {"serving": {"strategy": {"maxSurge": 0, "maxUnavailable": 1}}},
    {"serving": {"strategy": {"maxSurge": "999%", "maxUnavailable": 999}}},
    {"serving": {"image": "registry.example:5000/aurora@sha256:abc", "device": "cuda"}},
    arguments("--tp", "2", "--log-level", "info", "--context-length", "8192"),
    containers("serving", [{"name": "sglang", "resources": {"limits": {"nvidia.com/gpu": 1}}}, {"name": "agent"}]),
    containers("training", [{"name": "trainer", "env": [{"name": "A", "value": "b"}]}]),
    {"serving": {"template": {"spec": {"nodeSelector": {"gpu": "a100"}}, "metadata": {"labels": {"team": "a"}}}}},
    {"capture": {"tokensPerMinute": 0}},
    {"resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "500m", "memory": "48Gi"}}},
    containers("serving", [{"name": "shipper", "image": "fluent-bit"}]),
    containers("training", [{"name": "weights", "image": "aws-cli"}], "initContainers"),
    {"training": {"traceStorageLimit": 68719476736}},
    {"validation": {"measureOn": "Replica"}},
    {"validation": {"baselines": ["NGRAM"]}, "draft": {"shape": "Fixed"}},
    {"validation": {"concurrencies": [16, 1, 4], "tolerance": "0"}},
    {"training": {"suspended": True, "traceStorageLimit": "500G", "passes": 1}},
    {"rollout": {"paused": True, "pin": 0}},
    {"serving": {"replicas": 5}, "rollout": {"canary": 5}},
    {"serving": {"replicas": 1}, "rollout": {"canary": 5}},
]


def test_the_corpus_is_large_enough() -> None:
    assert len(BAD) >= 80
    assert len(GOOD) >= 20


@pytest.mark.parametrize(("parts", "message"), BAD, ids=[f"{json.dumps(p)[:70]}" for p, _ in BAD])
def test_a_bad_resource_is_refused_in_plain_words(dry_run: DryRunApply, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(KubernetesError, match=message):
        dry_run(speculator(**parts))


@pytest.mark.parametrize("parts", GOOD, ids=[f"{json.dumps(p)[:70]}" for p in GOOD])
def test_a_good_resource_is_accepted(dry_run: DryRunApply, parts: dict[str, Any]) -> None:
    assert dry_run(speculator(**parts))


def test_a_name_that_cannot_name_a_service_is_refused(dry_run: DryRunApply) -> None:
    for name in ("a" * 41, "4chat", "chat.v1"):
        with pytest.raises(KubernetesError, match=r"metadata\.name"):
            dry_run(speculator(name))


@pytest.mark.parametrize("name", ["default", "kubernetes"])
def test_a_name_that_kubernetes_needs_is_refused_in_plain_words(dry_run: DryRunApply, name: str) -> None:
    with pytest.raises(
        KubernetesError, match="must not be 'default' or 'kubernetes': a speculator's ServiceAccount and"
    ):
        dry_run(speculator(name))
    assert dry_run(speculator(f"{name}-chat"))


def test_target_store_and_lineage_fields_are_immutable(crd: Cluster, dry_run: DryRunApply) -> None:
    crd.apply(speculator())
    try:
        for part, value, message in (
            ("target", {"model": "other"}, "model, revision and dtype are immutable"),
            ("target", {**TARGET, "revision": "main"}, "model, revision and dtype are immutable"),
            ("draft", {"vocabSize": 512}, "vocabSize is immutable"),
            ("draft", {"initial": {"model": "org/head"}}, "initial is immutable"),
            ("store", STORE | {"prefix": "other"}, "store.bucket and store.prefix are immutable"),
            ("store", STORE | {"path": "default/chat-2"}, "store.path is immutable"),
        ):
            with pytest.raises(KubernetesError, match=message):
                dry_run(speculator("rules", **{part: value}))
        assert dry_run(speculator(rollout={"paused": True}))
        assert dry_run(speculator(store=STORE | {"deletionPolicy": "Delete"}))
    finally:
        crd.kubectl("delete", "auroraspeculator", "rules", "-n", "default")


def test_the_api_server_completes_the_quickstart(crd: Cluster) -> None:
    sample = SAMPLES / "quickstart.yaml"
    assert len([line for line in sample.read_text().splitlines() if not line.startswith("#")]) < 11
    made = json.loads(crd.kubectl("create", "--dry-run=server", "-n", "default", "-f", sample, "-o", "json"))
    assert made["spec"]["draft"] == {
        "vocabSize": 16384,
        "steps": 3,
        "shape": "Adaptive",
        "lookup": "Speculator",
    }
    assert made["spec"]["serving"]["maxRunningRequests"] == 256
    assert made["spec"]["rollout"]["canary"] == 1
    assert made["spec"]["validation"]["concurrencies"] == [1, 4]
    assert made["spec"]["validation"]["tolerance"] == "0.05"


def test_a_new_resource_has_a_status_that_is_about_no_spec(crd: Cluster) -> None:
    """Flux and Argo CD take a resource without a status for ready."""
    crd.apply(speculator("unseen"))
    made = json.loads(crd.kubectl("get", "auroraspeculator", "unseen", "-n", "default", "-o", "json"))
    assert made["status"] == {"observedGeneration": 0}
    crd.kubectl("delete", "auroraspeculator", "unseen", "-n", "default")


@pytest.mark.parametrize(
    "sample", sorted([*SAMPLES.glob("*.yaml"), *SAMPLES.glob("targets/*.yaml")]), ids=lambda path: path.name
)
def test_every_sample_in_the_documentation_is_accepted(crd: Cluster, sample: Path) -> None:
    assert "created" in crd.kubectl("apply", "--dry-run=server", "-n", "default", "-f", sample)


def test_the_sample_of_an_autoscaler_is_accepted(crd: Cluster) -> None:
    sample = SAMPLES / "autoscaling/hpa.yaml"
    assert "created" in crd.kubectl("apply", "--dry-run=server", "-n", "default", "-f", sample)


def test_an_autoscaler_may_set_any_number_of_replicas(crd: Cluster) -> None:
    """Through the scale subresource, as HorizontalPodAutoscalers and KEDA do, whatever other fields say."""
    given = {"rollout": {"canary": 5}, "validation": {"measureOn": "Replica"}}
    crd.apply(speculator("scaled", serving={"replicas": 6}, **given))
    try:
        for replicas in (5, 4, 1, 0, 1, 1000, 3):
            crd.kubectl("scale", "auroraspeculator", "scaled", f"--replicas={replicas}", "-n", "default")
            scale = json.loads(
                crd.kubectl("get", "aspec", "scaled", "--subresource=scale", "-n", "default", "-o", "json")
            )
            assert scale["spec"].get("replicas", 0) == replicas
        stored = crd.get("auroraspeculator", "scaled", "-n", "default")
        assert SpeculatorSpec.model_validate(stored["spec"]).serving.replicas == 3
        with pytest.raises(CommandError, match="replicas"):
            crd.kubectl("scale", "auroraspeculator", "scaled", "--replicas=1001", "-n", "default")
    finally:
        crd.kubectl("delete", "auroraspeculator", "scaled", "-n", "default")


def test_kubectl_explain_describes_every_field(crd: Cluster) -> None:
    (version,) = yaml.safe_load(FILE.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for section in spec:
        text = crd.kubectl("explain", f"auroraspeculators.spec.{section}")
        assert "<no description>" not in text, section
