"""What moto can't play, by botocore's Stubber: states, failures, API mode, quotas, errors of AWS."""

from __future__ import annotations

import datetime

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ProfileNotFound
from botocore.parsers import ResponseParserError
from botocore.stub import ANY, Stubber

from cluster import deploy, hyperpod, questions, stack, standing
from cluster.aws import Aws, NoAccess, one_line
from cluster.compose import compose
from cluster.documents import Resources, request
from cluster.findings import OK, PROBLEM, UNKNOWN
from cluster.waiting import Patience
from launcher.errors import TrntuneError

QUICK = Patience(0.001, 5)
ARN = "arn:aws:sagemaker:us-west-2:123456789012:cluster/abcdefghijkl"
WANTED = Resources(
    "subnet-1", "sg-1", "arn:aws:iam::123456789012:role/r", "sagemaker-demo-0123456789ab",
    "fs-0123abcd.fsx.us-west-2.amazonaws.com", "abcdefgh",
)  # fmt: skip


@pytest.fixture
def aws(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return Aws("us-west-2")


@pytest.fixture
def stubs(aws):
    """Stubbers of services; every answer that was prepared must have been asked for."""
    made = {}

    def stub(service: str) -> Stubber:
        if service not in made:
            made[service] = Stubber(aws.client(service))
            made[service].activate()
        return made[service]

    yield stub
    for stubber in made.values():
        stubber.assert_no_pending_responses()


def cluster(status: str, failure: str = "", **more):
    return {
        "ClusterArn": ARN, "ClusterName": "demo", "ClusterStatus": status, "FailureMessage": failure,
        "InstanceGroups": [{"InstanceGroupName": "worker-group-1", "CurrentCount": 0, "TargetCount": 1}], **more,
    }  # fmt: skip


def test_a_cluster_is_waited_for_with_a_line_for_each_change(aws, stubs, capsys):
    for status in ("Creating", "Creating", "Creating", "InService"):
        stubs("sagemaker").add_response("describe_cluster", cluster(status), {"ClusterName": "demo"})
    assert hyperpod.wait_for(aws, "demo", QUICK).status == "InService"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "cluster demo: Creating (worker-group-1 0/1)" in lines[0]
    assert "cluster demo: InService" in lines[1]


def test_a_failed_cluster_says_why_and_which_log_to_read(aws, stubs):
    for status in ("Creating", "Creating", "Failed"):
        stubs("sagemaker").add_response("describe_cluster", cluster(status, "no capacity"), {"ClusterName": "demo"})
    stubs("logs").add_client_error("describe_log_streams", "ResourceNotFoundException")
    with pytest.raises(TrntuneError) as caught:
        hyperpod.wait_for(aws, "demo", QUICK)
    message = str(caught.value)
    assert "the cluster demo is Failed: no capacity" in message
    assert "group /aws/sagemaker/Clusters/demo/abcdefghijkl, stream LifecycleConfig/<group>/<instance-id>" in message


def test_waiting_has_an_end_and_says_what_to_do(aws, stubs):
    stubs("sagemaker").add_response("describe_cluster", cluster("Creating"))
    with pytest.raises(TrntuneError, match=r"is still Creating .* the same command again goes on waiting"):
        hyperpod.wait_for(aws, "demo", Patience(0.001, 0))


def test_api_mode_creates_without_bucket_or_scripts(aws, stubs):
    config = compose(["name=demo", "mode=api", "poll_seconds=0.001"])
    stubs("sagemaker").add_client_error("describe_cluster", "ResourceNotFound", "Cluster demo not found")
    stubs("sagemaker").add_response("create_cluster", {"ClusterArn": ARN}, request(config, WANTED))
    stubs("sagemaker").add_response("describe_cluster", cluster("InService"))
    stubs("s3")  # any call would fail: nothing is prepared
    assert deploy.ensure_cluster(aws, config, WANTED, "123456789012").status == "InService"


def test_api_mode_shows_how_a_cluster_differs(aws, stubs):
    config = compose(["name=demo", "mode=api", "workers.partition=dev"])
    there = request(compose(["name=demo", "mode=api"]), WANTED)
    groups = [{**group, "TargetCount": 1, "CurrentCount": 1} for group in there["InstanceGroups"]]
    for group in groups:
        del group["InstanceCount"]
    answer = {
        **cluster("InService"), "InstanceGroups": groups, "VpcConfig": there["VpcConfig"],
        "Orchestrator": there["Orchestrator"], "NodeRecovery": "None",
    }  # fmt: skip
    stubs("sagemaker").add_response("describe_cluster", answer)
    with pytest.raises(TrntuneError) as caught:
        deploy.ensure_cluster(aws, config, WANTED, "123456789012")
    assert '"PartitionNames":["trn1"]} there' in str(caught.value)
    assert 'NodeRecovery: "None" there, "Automatic" in the configuration' in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def described(status: str):
    config = compose(["name=demo", "network.availability_zone_id=usw2-az4"])
    given = stack.parameters(config).items()
    found = {
        "StackId": "arn:aws:cloudformation:us-west-2:1:stack/demo/1",
        "StackName": "demo",
        "StackStatus": status,
        "CreationTime": datetime.datetime(2026, 1, 1),
        "Tags": [{"Key": "trntune:cluster", "Value": "demo"}],
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in given],
    }
    return {"Stacks": [found]}


def test_a_stack_that_rolls_back_stops_with_the_first_reason(aws, stubs):
    config = compose(["name=demo", "network.availability_zone_id=usw2-az4", "poll_seconds=0.001"])
    made = stubs("cloudformation")
    made.add_client_error("describe_stacks", "ValidationError", "Stack with id demo does not exist")
    made.add_response("create_stack", {"StackId": "x"}, None)
    made.add_response("describe_stacks", described("CREATE_IN_PROGRESS"))
    made.add_response("list_stack_resources", {"StackResourceSummaries": []})
    made.add_response("describe_stacks", described("ROLLBACK_COMPLETE"))
    failed = "CREATE_FAILED"
    events = [
        ("Bucket", failed, "Resource creation cancelled"),
        ("FileSystem", failed, "1200 GiB exceeds the limit of the account"),
        ("NatGateway", failed, "Resource creation cancelled"),
    ]
    made.add_response("describe_stack_events", {"StackEvents": [event(*told) for told in events]})
    with pytest.raises(TrntuneError) as caught:
        stack.ensure(aws, config)
    assert "ROLLBACK_COMPLETE: FileSystem: 1200 GiB exceeds the limit of the account" in str(caught.value)


def event(name: str, status: str, reason: str = "", of: str = ""):
    return {
        "StackId": "x", "EventId": name, "StackName": "demo", "Timestamp": datetime.datetime(2026, 1, 1),
        "LogicalResourceId": name, "ResourceStatus": status, "ResourceStatusReason": reason, "PhysicalResourceId": of,
    }  # fmt: skip


def test_on_a_stack_that_has_failed_nothing_is_begun(aws, stubs):
    """validate and deploy say so, and the reason; a stack that is on its way there is waited for by the user."""
    config = compose(["name=demo", "network.availability_zone_id=usw2-az4"])
    made = stubs("cloudformation")
    made.add_response("describe_stacks", described("ROLLBACK_COMPLETE"))
    made.add_response("describe_stack_events", {"StackEvents": [event("Role", "CREATE_FAILED", "not you")]})
    made.add_response("describe_stacks", described("DELETE_IN_PROGRESS"))
    found = [
        line
        for _ in range(2)
        for line in standing.conflicts(aws, config, standing.Standing(own_stack=stack.find(aws, "demo")))
    ]
    assert found == [
        "the stack demo is ROLLBACK_COMPLETE: Role: not you: delete it first",
        "the stack demo is DELETE_IN_PROGRESS: wait until that has ended (python -m cluster status)",
    ]


def test_what_cannot_be_made_beside_a_kept_file_system_is_said(aws, stubs):
    """The stack is well again after that; and the failures of an earlier time are not the reason."""
    config = compose(["name=demo", "network.availability_zone_id=usw2-az4", "poll_seconds=0.001"])
    made = stubs("cloudformation")
    kept, back = described("UPDATE_COMPLETE"), described("UPDATE_ROLLBACK_COMPLETE")
    for answer in (kept, back):
        parameters = answer["Stacks"][0]["Parameters"]
        parameters[-1] = {"ParameterKey": "Compute", "ParameterValue": "false"}
    made.add_response("describe_stacks", kept)
    made.add_response("update_stack", {"StackId": "x"})
    made.add_response("describe_stacks", back)
    events = [
        event("NatAddress", "CREATE_FAILED", "the maximum number of addresses has been reached"),
        event("demo", "UPDATE_IN_PROGRESS", of=back["Stacks"][0]["StackId"]),
        event("FileSystem", "CREATE_FAILED", "of last year"),
    ]
    made.add_response("describe_stack_events", {"StackEvents": events})
    with pytest.raises(TrntuneError) as caught:
        stack.ensure(aws, config)
    why = "NatAddress: the maximum number of addresses has been reached"
    assert str(caught.value) == f"the stack demo is UPDATE_ROLLBACK_COMPLETE: {why}"


def test_a_stack_that_cannot_be_deleted_comes_back(aws, stubs):
    made = stubs("cloudformation")
    made.add_response("describe_stacks", described("DELETE_FAILED"))
    there = stack.find(aws, "demo")
    made.add_response("delete_stack", {}, {"StackName": there.id})
    made.add_response("describe_stacks", described("DELETE_IN_PROGRESS"))
    made.add_response("list_stack_resources", {"StackResourceSummaries": []}, {"StackName": ANY})
    made.add_response("describe_stacks", described("DELETE_FAILED"))
    assert stack.delete(aws, there, QUICK).status == "DELETE_FAILED"


@pytest.mark.parametrize(
    ("listed", "state", "says"),
    [
        ({"ml.trn1.32xlarge for cluster usage": 4.0}, OK, "2 of 4"),
        ({"ml.trn1.32xlarge for cluster usage": 1.0}, PROBLEM, "is 1: ask for more"),
        ({"ml.trn1.32xlarge for training job usage": 9.0}, UNKNOWN, "AWS lists no quota"),
    ],
)
def test_a_quota_is_enough_too_low_or_unknown(aws, stubs, listed, state, says):
    config = compose(["name=demo", "workers.count=2"])
    quotas = [{"QuotaName": name, "Value": value} for name, value in listed.items()]
    stubs("service-quotas").add_response("list_service_quotas", {"Quotas": quotas}, {"ServiceCode": "sagemaker"})
    found = {finding.detail: finding.state for finding in questions.quota(aws, config) if "trn1" in finding.detail}
    ((detail, how),) = found.items()
    assert how == state
    assert says in detail


def test_a_quota_that_may_not_be_read_is_unknown_and_no_all_clear(aws, stubs):
    stubs("service-quotas").add_client_error("list_service_quotas", "AccessDeniedException", "not you")
    config = compose(["name=demo"])
    (finding,) = questions.answered(questions.QUOTA, lambda: questions.quota(aws, config))
    assert finding.state == UNKNOWN
    assert "not permitted" in finding.detail


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NoCredentialsError(), "no AWS credentials: set AWS_PROFILE"),
        (ProfileNotFound(profile="mine"), "AWS_PROFILE: The config profile (mine) could not be found"),
        (EndpointConnectionError(endpoint_url="https://x"), "AWS cannot be reached"),
        (ResponseParserError("Unable to parse response: <html>"), "AWS: Unable to parse response"),
    ],
)
def test_errors_of_botocore_are_one_line(error, says):
    with pytest.raises(TrntuneError) as caught:
        with one_line():
            raise error
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "the AWS credentials have expired"),
        ("UnrecognizedClientException", "AWS does not accept the credentials"),
        ("InvalidSignatureException", "AWS does not accept the credentials"),
        ("AccessDenied", "not permitted"),
    ],
)
def test_errors_of_aws_are_one_line(aws, stubs, code, says):
    stubs("sts").add_client_error("get_caller_identity", code, "<html>a page</html>")
    with pytest.raises(NoAccess) as caught:
        aws.account()
    assert str(caught.value).startswith(says)
    assert "<" not in str(caught.value)
