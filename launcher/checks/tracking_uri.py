"""What can be MLflow's address, and what is wrong with one that can't."""

from __future__ import annotations

import importlib.util
import os
import re

from launcher.config.secrets import without_credentials

# sqlite:///FILE and a plain directory are files on this machine. MLflow reaches databases by SQLAlchemy, whose
# addresses may name a driver: postgresql+psycopg://HOST/NAME.
_SERVERS = ("sqlite:///", "http://", "https://", "file:", "databricks")
_DATABASE = re.compile(r"(postgresql|mysql|mssql)(\+\w+)?://")
_ALLOWED = (
    "sqlite:///FILE, http(s)://HOST, arn:aws:sagemaker:..., postgresql://, mysql:// or mssql:// with HOST/NAME, "
    "file:DIR, databricks, or a directory"
)

_PLUGIN = "sagemaker_mlflow"
_INSTALL = 'pip install "trntune[sagemaker]"'
_ENDPOINT = "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT"
_SHAPE = "arn:aws:sagemaker:REGION:ACCOUNT:mlflow-tracking-server/NAME, or mlflow-app/ID at its end"
# Those that the plugin knows the addresses of (sagemaker-mlflow 0.5).
_PARTITIONS = ("aws", "aws-us-gov")
_RESOURCES = ("mlflow-tracking-server", "mlflow-app")

Fault = tuple[str, str]
"""Why an address can't be used, and what to do."""


def credentials_fault(uri: str) -> Fault | None:
    """An address with a user's name or password in it, and where these belong."""
    if without_credentials(uri) == uri:
        return None
    if uri.startswith("postgresql"):
        return "holds credentials", "put them into ~/.pgpass and PGUSER, or set PGUSER and PGPASSWORD"
    if uri.startswith("mysql"):
        return "holds credentials", "put them into ~/.my.cnf and add ?read_default_file=~/.my.cnf to the address"
    return "holds credentials", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"


def address_fault(uri: str) -> Fault | None:
    """What is wrong with an address that runs are to be tracked at, or None."""
    if not uri:
        remedy = "give tracking.uri=..., with tracking=sagemaker also by MLFLOW_TRACKING_ARN, or write tracking=none"
        return "MLflow needs an address", remedy
    if uri.startswith("arn:"):
        return arn_fault(uri) or plugin_fault()
    if re.match(r"[\w+.-]+:", uri) and not uri.startswith(_SERVERS) and not _DATABASE.match(uri):
        return "no such kind of address", f"allowed are {_ALLOWED}"
    return None


def arn_fault(arn: str) -> Fault | None:
    """The first part of an ARN that can't be SageMaker's managed MLflow, or None."""
    parts = arn.split(":")
    if len(parts) != 6:
        return f"has {len(parts)} parts between colons, not 6", f"write {_SHAPE}"
    _, partition, service, region, account, resource = parts
    kind, _, name = resource.partition("/")
    wrong = (
        (not re.fullmatch(r"aws(-[a-z]+)*", partition), f"{partition!r} is no partition of AWS"),
        (service != "sagemaker", f"{service!r} is not the service sagemaker"),
        (not re.fullmatch(r"[a-z]{2,}(-[a-z]+)+-\d+", region), f"{region!r} is no region, such as us-west-2"),
        (not re.fullmatch(r"\d{12}", account), f"{account!r} is no account number, which has 12 digits"),
        (kind not in _RESOURCES, f"{kind!r} is neither {' nor '.join(_RESOURCES)}"),
        (not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,255}", name), f"{name!r} is no name of a {kind}"),
    )
    why = next((why for is_wrong, why in wrong if is_wrong), None)
    return (why, f"write {_SHAPE}") if why else partition_fault(partition)


def partition_fault(partition: str) -> Fault | None:
    """A partition whose address the plugin doesn't know, unless the user has given it one."""
    if partition in _PARTITIONS or os.environ.get(_ENDPOINT):
        return None
    return f"the plugin has no address for partition {partition}, only for {', '.join(_PARTITIONS)}", f"set {_ENDPOINT}"


def plugin_fault() -> Fault | None:
    """The plugin that signs requests to SageMaker is not there."""
    if importlib.util.find_spec(_PLUGIN) is None:
        return "MLflow reaches SageMaker by the plugin sagemaker-mlflow, which is not installed", _INSTALL
    return None
