"""Evidence is shown with every interval, and the store is opened with nobody's keys but those that the user means."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_cli import store_access
from aurora_cli.cluster import connect
from aurora_cli.commands import look
from aurora_cli.commands.look import read_evidence
from aurora_cli.errors import CliError, Forbidden, StoreFault
from aurora_cli.store_access import open_store
from aurora_cli.tables import evidence_table
from aurora_cli.tables.printing import as_text
from aurora_protocol.evidence_records import Arm, RatioEstimate, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_store import Keys
from aurora_store.errors import CredentialsMissing
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import MINIMAL, NOW, evidence, samples, spec

SECRET_PATH = "/api/v1/namespaces/team/secrets/s3"  # noqa: S105 - a path
POLICY = GatePolicy.of(spec().validation)
ENDPOINT = "http://minio.storage:9000"
OWN = {"AWS_ACCESS_KEY_ID": "own-id", "AWS_SECRET_ACCESS_KEY": "own-key"}


def secret(**values: str) -> dict[str, Any]:
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


THEIRS = secret(AWS_ACCESS_KEY_ID="their-id", AWS_SECRET_ACCESS_KEY="their-key")  # noqa: S106


@pytest.fixture(autouse=True)
def _own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)


def stored_with(server: FakeApiServer, secret_: dict[str, Any] | None = None, **store: Any) -> FakeApiServer:
    server.add(resource(store=MINIMAL["store"] | store))
    if secret_ is not None:
        server.objects[SECRET_PATH] = secret_
    return server


def opened(server: FakeApiServer, *, endpoint: str | None = None, use_secret: bool = False) -> Any:
    cluster = connect(kubeconfig=server.kubeconfig)
    return open_store(cluster, cluster.speculator("chat"), endpoint=endpoint, use_secret=use_secret).config


def asked_for_the_secret(server: FakeApiServer) -> bool:
    return SECRET_PATH in [path for _, path, _ in server.calls]


def test_the_users_own_keys_go_to_s3_or_to_an_endpoint_that_the_user_names(server: FakeApiServer) -> None:
    stored_with(server, THEIRS)
    for endpoint in (None, "http://localhost:9000"):
        config = opened(server, endpoint=endpoint)
        assert (config.endpoint, config.access_key, config.root) == (endpoint, None, "aurora/team/chat")
    assert not asked_for_the_secret(server)


def test_the_users_own_keys_go_to_no_endpoint_that_the_author_chose(server: FakeApiServer) -> None:
    with pytest.raises(StoreFault, match=f"{ENDPOINT}: add --endpoint URL .* or --use-secret"):
        opened(stored_with(server, THEIRS, endpoint=ENDPOINT))
    assert not asked_for_the_secret(server)


@pytest.mark.parametrize("endpoint", [None, "http://localhost:9000"])
def test_the_keys_of_the_secret_are_used_when_the_user_says_so(server: FakeApiServer, endpoint: str | None) -> None:
    config = opened(stored_with(server, THEIRS, endpoint=ENDPOINT), endpoint=endpoint, use_secret=True)
    assert (config.endpoint, config.access_key, config.secret_key) == (endpoint or ENDPOINT, "their-id", "their-key")


@pytest.mark.parametrize(
    ("stored", "store", "message"),
    [
        (None, {}, "the Secret s3 in the namespace team does not exist"),
        ({"data": {"AWS_ACCESS_KEY_ID": "%%", "AWS_SECRET_ACCESS_KEY": "/w=="}}, {}, "lacks"),
        (THEIRS, {"credentials": {"serviceAccountName": "irsa"}}, "the cloud identity of the ServiceAccount irsa"),
    ],
)
def test_a_secret_that_cannot_be_used_is_a_clear_error(
    server: FakeApiServer, stored: dict[str, Any] | None, store: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreFault, match=message):
        opened(stored_with(server, stored, **store), use_secret=True)


def test_a_secret_that_the_user_may_not_read_is_not_asked_for_by_other_ways(server: FakeApiServer) -> None:
    stored_with(server, THEIRS).refusals = {"/secrets/s3": 403}
    with pytest.raises(Forbidden, match="you may not read the Secret s3"):
        opened(server, use_secret=True)


def test_a_user_without_credentials_reads_what_a_person_can_do(
    server: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CredentialsMissing("no credentials were found; give the pod a cloud identity")

    monkeypatch.setattr(store_access, "ObjectStore", refuse)
    with pytest.raises(StoreFault, match="you have no credentials for the store: log in"):
        opened(stored_with(server))


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://user:pw@host", "file:///etc/passwd", "http://h?x=1"])
def test_an_endpoint_that_is_no_url_is_refused(server: FakeApiServer, endpoint: str) -> None:
    with pytest.raises(StoreFault, match="--endpoint is a URL"):
        opened(stored_with(server), endpoint=endpoint)


@pytest.fixture(name="objects")
def _objects(tmp_path: Path) -> FolderObjects:
    objects = FolderObjects(tmp_path)
    for attempt in (1, 2):
        objects.put(Keys.evidence(4, attempt), evidence(4, attempt=attempt).to_json())
    return objects


def test_evidence_that_is_not_there_is_a_clear_error(objects: FolderObjects) -> None:
    for version, attempt, message in ((7, None, "no evidence of version 7"), (4, 3, "for attempt 1, 2")):
        with pytest.raises(CliError, match=message):
            read_evidence(objects, version, attempt)
    objects.down = True
    with pytest.raises(CliError, match="the store is down"):
        read_evidence(objects, 4, None)


def test_the_command_prints_tables_or_the_stored_record(
    server: FakeApiServer, objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "open_store", lambda *_, **__: objects)
    stored_with(server)
    assert "version 4, attempt 2: Pass against version 0" in server.run("evidence", "chat", "4").stdout
    document = json.loads(server.run("evidence", "chat", "4", "--attempt", "1", "-o", "json").stdout)
    assert document == json.loads(objects.get(Keys.evidence(4, 1)))
    objects.put(Keys.evidence(4, 2), b'{"version": "secret text"}')
    result = server.run("evidence", "chat", "4")
    assert (result.exit_code, "secret text" in result.output) == (1, False)


def test_a_pass_that_the_samples_do_not_show_is_named() -> None:
    forged = evidence(4, samples=samples(speeds={Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 101}))
    assert "its samples do not show that" in as_text(evidence_table.detail(forged, "key", POLICY, NOW))
    assert "do not show" not in as_text(evidence_table.detail(evidence(4), "key", POLICY, NOW))


FLOATS = st.floats(allow_nan=False)
RATIOS = st.builds(
    lambda arms, numbers: RatioEstimate(
        numerator=arms[0],
        denominator=arms[1],
        concurrency=1,
        rounds=0,
        estimate=numbers[0],
        low=numbers[1],
        high=numbers[2],
    ),
    st.tuples(st.sampled_from(Arm), st.sampled_from(Arm)),
    st.tuples(FLOATS, FLOATS, FLOATS),
)


@given(st.sampled_from(VerdictKind), st.lists(RATIOS, max_size=4), st.lists(st.text(max_size=20), max_size=3))
def test_any_record_can_be_shown(kind: VerdictKind, ratios: list[RatioEstimate], reasons: list[str]) -> None:
    found = evidence(4, kind)
    verdict = found.verdict.model_copy(update={"ratios": tuple(ratios), "reasons": tuple(reasons)})
    text = as_text(evidence_table.detail(found.model_copy(update={"verdict": verdict}), "key", POLICY, NOW))
    assert all(character.isprintable() or character == "\n" for character in text)
