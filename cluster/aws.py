"""AWS's clients, and their errors as one line each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launcher.errors import TrntuneError, UsageError, nearest

_LOGIN = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in (aws sso login)"
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_REFUSED = (
    "UnrecognizedClientException", "InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch",
    "InvalidSignatureException", "InvalidAccessKeyId", "InvalidToken",
)  # fmt: skip
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


class NoAccess(TrntuneError):
    """AWS can't be asked: no credentials, wrong ones, no network, no permission."""


class Denied(NoAccess):
    """One question may not be asked; others may."""


class Aws:
    """Clients of one region, made when they are needed."""

    def __init__(self, region: str) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise UsageError("boto3 is not installed: pip install 'trntune[cluster]'") from None
        self.region = region
        with one_line():
            self._session = boto3.Session(region_name=region)
        # Two minutes in all where something takes the connection and never answers; botocore's own would be seven.
        self._config = Config(
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=5,
            read_timeout=20,
            user_agent_extra="trntune",
        )
        self._clients: dict[str, Any] = {}
        self._check_region()

    def _check_region(self) -> None:
        known = [
            region
            for partition in self._session.get_available_partitions()
            for region in self._session.get_available_regions("sagemaker", partition)
        ]
        if self.region not in known:
            near = nearest(self.region, known)
            raise UsageError(
                f"region={self.region}: SageMaker is not there"
                + (f"; did you mean {near}?" if near else "; a region newer than this boto3 needs a newer boto3")
            )

    def client(self, service: str) -> Any:
        """The client of a service."""
        if service not in self._clients:
            try:
                self._clients[service] = self._session.client(service, config=self._config)
            except ValueError as error:  # botocore's for an AWS_... or a line of ~/.aws/config that can't be read
                raise UsageError(f"AWS's settings (AWS_..., ~/.aws/config): {error}") from None
        return self._clients[service]

    def account(self) -> str:
        """The account that the credentials are of. Raises NoAccess."""
        with one_line():
            return str(self.client("sts").get_caller_identity()["Account"])


def error_code(error: BaseException) -> str:
    """AWS's word for what went wrong; empty where it isn't AWS that says so."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what botocore raises into a TrntuneError of one line."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError  # what a proxy or a hotel's network answers isn't AWS's

    try:
        yield
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        raise _translated(error) from error


def _translated(error: Any) -> TrntuneError:
    code, name = error_code(error), type(error).__name__
    # A proxy or a gateway answers with a page of HTML.
    text = " ".join(str(error).partition("<")[0].split())[:300].rstrip(" :")
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return NoAccess(f"no AWS credentials: {_LOGIN}")
    if name == "ProfileNotFound":
        return NoAccess(f"AWS_PROFILE: {text}; aws configure list-profiles names them")
    if "SSO" in name or name == "TokenRetrievalError" or code in _EXPIRED:
        return NoAccess("the AWS credentials have expired: log in again (aws sso login)")
    if code in _REFUSED:
        return NoAccess(f"AWS does not accept the credentials ({code}): {_LOGIN}; or the region is not enabled")
    if code in _DENIED:
        return Denied(f"not permitted: {text}")
    if name in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyConnectionError"):
        return NoAccess(f"AWS cannot be reached: {text}; check network, proxy and region")
    return TrntuneError(f"AWS: {text}")
