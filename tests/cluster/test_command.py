"""The command line as people meet it: help, refusals of one line, plan, and what needs AWS's programs."""

from __future__ import annotations

import json
import subprocess

import pytest

from cluster.__main__ import main
from cluster.compose import compose
from cluster.cost import cost
from cluster.helptext import help_text
from cluster.reference import reference
from launcher import app
from launcher.paths import ROOT

TOKEN = "AKIA" + "A1B2C3D4E5F6" * 2

REFUSALS = [
    (["vlidate"], ["vlidate", "did you mean validate?"]),
    (["plan", "nam=x"], ["unknown key nam", "name?"]),
    (["plan", "workers.cuont=2"], ["unknown key workers.cuont", "workers.count?"]),
    (["plan", "workers=trn1_33xlarge"], ["workers=trn1_33xlarge", "did you mean trn1_32xlarge?"]),
    (["plan", "mode=legacy"], ["mode=legacy", "scripts, api"]),
    (["plan", "workers.count=many"], ["workers.count=many", "must be an integer"]),
    (["plan", "name=Demo"], ["name=Demo", "small letters"]),
    (["plan", "controller.count=2"], ["controller.count=2", "there is one controller"]),
    (["plan", "workers.name=controller-machine"], ["workers.name=controller-machine", "is controller.name, too"]),
    (["plan", "workers.instance_type=trn1.32xlarge"], ["write ml.trn1.32xlarge"]),
    (["plan", "workers.instance_type=ml.p5.48xlarge"], ["workers.instance_type=ml.p5.48xlarge", "no Neuron device"]),
    (["plan", "network.availability_zone_id=us-west-2a"], ["us-west-2a", "such as usw2-az4"]),
    (["plan", "network.private_cidr=10.1.0.0/17"], ["network.private_cidr=10.1.0.0/17", "is not inside"]),
    (["plan", "network.public_cidr=10.0.128.0/24"], ["overlaps network.private_cidr"]),
    (["plan", "storage.capacity_gib=3000"], ["storage.capacity_gib=3000", "nearest is 2400"]),
    (["plan", "storage.throughput=300"], ["storage.throughput=300", "nearest is 250"]),
    (["plan", "lifecycle.entry=on_creat.sh"], ["lifecycle.entry=on_creat.sh", "did you mean on_create.sh?"]),
    (["plan", "lifecycle.directory=/nowhere"], ["lifecycle.directory=/nowhere", "no such directory"]),
    (["plan", "workers.price_usd_per_hour=24"], ["workers.price_source=null", "a price needs all of"]),
    (["plan", f"name={TOKEN}"], ["name holds what looks like an access token"]),
    (["plan", "name=a,b"], ["name=a,b", "one cluster at a time"]),
    (["plan", "--config-nam", "x"], ["unknown flag --config-nam", "--config-name?"]),
    (["validate", "region=us-wset-2"], ["region=us-wset-2", "did you mean us-west-2?"]),
    (["deploy"], ["confirm=true", "paid by the hour"]),
    (["delete"], ["confirm=true", "lost for good", "keep_fsx=true"]),
    (["env"], ["env: no sbatch here"]),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSALS, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_work_is_refused_in_one_line(arguments, says, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for words in says:
        assert words in err
    assert TOKEN not in err


def test_launch_has_no_group_of_clusters(capsys):
    assert app.main(["cluster_setup=config"]) == 2
    assert "unknown key cluster_setup" in capsys.readouterr().err
    assert app.main(["--help"]) == 0
    assert "cluster_setup" not in capsys.readouterr().out


def test_help_is_told_without_hydra_or_boto3(offline):
    program = (
        "import sys; from cluster.__main__ import main; main(['--help']); "
        "print([name for name in ('hydra', 'boto3', 'rich', 'torch') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([*offline().args[:1], "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert done.stdout == help_text()
    for command in ("plan", "validate", "deploy", "status", "ssh", "delete", "env"):
        assert f"\n  {command} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_plan_needs_no_credentials_and_labels_what_it_cannot_know(offline, tmp_path):
    done = offline("plan", "name=demo", "output=out")
    assert done.returncode == 0, done.stderr
    assert "PLACEHOLDER" in done.stdout
    assert "what the stack will have made" in done.stdout
    assert "not known: give controller.price_usd_per_hour and workers.price_usd_per_hour" in done.stdout
    assert "src/on_create.sh" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"stack.yaml", "create_cluster.json", "bucket/src/provisioning_parameters.json"} < written
    again = offline("plan", "name=demo", "output=out")
    assert (again.returncode, again.stdout) == (2, "")
    assert "output=out: is there already" in again.stderr


def test_plan_as_json_is_json_alone(offline):
    done = offline("plan", "name=demo", "mode=api", "format=json")
    plan = json.loads(done.stdout)
    assert plan["placeholders"] is True
    assert plan["provisioning_parameters"] is None
    assert plan["files"] == {}
    assert plan["usd_per_hour"] is None
    assert plan["create_cluster"]["Orchestrator"]["Slurm"]["SlurmConfigStrategy"] == "Managed"


def test_the_cost_is_of_all_instances_and_only_if_all_are_priced():
    price = ["price_usd_per_hour=2", "price_source=page", "price_date=2026-11-01"]
    workers = [f"workers.{line}" for line in price]
    controller = [f"controller.{line}" for line in price]
    assert cost(compose([*workers, *controller, "workers.count=4"])).usd_per_hour == 10
    assert cost(compose([*workers, "workers.count=4"])).usd_per_hour is None
    assert cost(compose([*workers, "workers.count=4"])).unpriced == ("controller",)


def test_validate_without_credentials_says_what_is_unknown(offline):
    done = offline("validate", "name=demo")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "no AWS credentials" in words
    assert "no problem, 1 unknown; what is unknown may still be wrong" in words


def test_validate_lists_all_that_is_wrong_with_a_configuration(offline):
    wrong = {
        "name=Demo": "small letters", "region=nowhere": "not the name of a region", "workers.count=-1": "must be >= 0",
        "workers.instance_type=ml.c5.4xlarge": "no Neuron device", "storage.capacity_gib=1000": "must be >= 1200",
    }  # fmt: skip
    done = offline("validate", *wrong, "format=json")
    assert (done.returncode, done.stderr) == (1, "")
    found = [finding["detail"] for finding in json.loads(done.stdout) if finding["state"] == "problem"]
    for given, why in wrong.items():
        [line] = [line for line in found if line.startswith(f"{given}:")]
        assert why in line
    assert len(found) == len(wrong)
    done = offline("validate", "controller.count=2", "region=us-wset-2")
    assert (done.returncode, done.stderr) == (1, "")
    assert "2 problems" in done.stdout


def test_settings_of_aws_that_cannot_be_read_are_one_line(offline):
    done = offline("status", AWS_ENDPOINT_URL="nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: AWS's settings (AWS_..., ~/.aws/config): Invalid endpoint: nonsense\n"


@pytest.mark.parametrize("command", [["deploy", "confirm=true"], ["status"], ["delete", "confirm=true"], ["ssh"]])
def test_what_needs_credentials_says_so_in_one_line(offline, command):
    done = offline(*command, "name=demo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no AWS credentials")
    assert done.stderr.count("\n") == 1


def test_a_profile_that_is_not_there_is_said(offline):
    done = offline("status", "name=demo", AWS_PROFILE="mine")
    assert done.returncode == 1
    assert "AWS_PROFILE: The config profile (mine) could not be found" in done.stderr


def test_a_directory_of_ones_own_holds_set_ups(offline, tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nname: ours\nworkers: {count: 8}\n")
    done = offline("plan", "--config-dir", ".", "--config-name", "mine", "format=json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["stack"]["name"] == "ours"
    assert plan["create_cluster"]["InstanceGroups"][1]["InstanceCount"] == 8
    shown = offline("plan", "--config-dir", ".", "--config-name", "mine", "--cfg")
    assert "name: ours" in shown.stdout


def test_the_reference_is_the_schemas():
    assert (ROOT / "docs" / "cluster_configuration.md").read_text() == reference()
