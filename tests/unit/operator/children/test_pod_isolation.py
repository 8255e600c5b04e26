"""The containers of a pod share only what they need, and nobody but those named reaches them."""

from __future__ import annotations

import pytest

from aurora_operator.children.supporting_objects import policies
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY
from tests.unit.operator.children.test_children import containers, pods
from tests.unit.operator.worlds import CONFIG, OWNER, spec


@pytest.mark.parametrize("name", ["inference", "trainer", "validator"])
def test_no_two_containers_share_a_tmp_and_every_volume_that_a_pod_fills_has_a_limit(name: str) -> None:
    template = pods(spec())[name]
    folders = [{mount["mountPath"]: mount["name"] for mount in c["volumeMounts"]}["/tmp"] for c in containers(template)]  # noqa: S108
    assert len(folders) == len(set(folders))
    filled = [volume["emptyDir"] for volume in template["spec"]["volumes"] if "emptyDir" in volume]
    assert filled
    assert all(volume["sizeLimit"] for volume in filled)


def test_the_engine_gets_no_token_of_the_agent_and_each_pod_makes_its_own_engine_key() -> None:
    pod = pods(spec())["inference"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    secrets = {name: volume["secret"]["items"] for name, volume in volumes.items() if "secret" in volume}
    keys = {name: [item["key"] for item in items] for name, items in secrets.items()}
    assert keys.pop("store-keys") == [ACCESS_KEY, SECRET_KEY]
    assert keys == {"keys": ["agent-token"], "speculator-key": ["admin-key"], "signing": ["channel-key"]}
    mounts = {
        container["name"]: {mount["name"]: mount for mount in container["volumeMounts"]}
        for container in (*pod["initContainers"], *pod["containers"])
    }
    assert {name for name, mounted in mounts.items() if "keys" in mounted} == {"agent"}
    assert {name for name, mounted in mounts.items() if "store-keys" in mounted} == {"stage", "agent"}
    assert {name for name, mounted in mounts.items() if "speculator-key" in mounted} == {"stage"}
    assert {name for name, mounted in mounts.items() if "signing" in mounted} == {"stage"}
    assert {name for name, mounted in mounts.items() if "engine-key" in mounted} == {"stage", "sglang", "agent"}
    assert volumes["engine-key"]["emptyDir"]["medium"] == "Memory"
    writers = {name for name, mounted in mounts.items() if not mounted.get("engine-key", {}).get("readOnly")}
    assert writers == {"stage"}
    assert mounts["sglang"]["engine-key"]["mountPath"] == "/etc/aurora/keys", "where the launcher looks for its key"


def test_only_init_containers_have_the_channels_key_and_only_validators_that_of_evidence() -> None:
    found = {
        (name, item["key"])
        for name, pod in pods(spec()).items()
        for volume in pod["spec"]["volumes"]
        if volume.get("secret", {}).get("secretName") == f"{OWNER.name}-keys"
        for item in volume["secret"]["items"]
    }
    assert {key for key in found if key[1].endswith(("channel-key", "evidence-key"))} == {
        ("inference", "channel-key"),
        ("validator", "evidence-key"),
    }


def test_a_scraper_that_the_administrator_names_reaches_the_metrics_of_agents_and_engines() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}

    def ports_open_to_monitoring(scrapers: tuple[str, ...]) -> set[int]:
        serve, learning = policies(OWNER, spec(), CONFIG.model_copy(update={"scraper_namespaces": scrapers}))
        assert "ingress" not in learning["spec"], "trainer and validator have no metrics"
        open_rules = [rule for rule in serve["spec"]["ingress"] if monitoring in rule["from"]]
        return {port["port"] for rule in open_rules for port in rule["ports"]}

    assert ports_open_to_monitoring(("tracing", "monitoring")) == {AGENT_PORT, ENGINE_PORT}
    assert ports_open_to_monitoring(()) == set()
