"""`python -m cluster validate`: every problem that can be found before it costs twenty minutes, or money."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster import agreement, bucket, model, questions, stack, standing
from cluster.aws import Aws
from cluster.checks import problems
from cluster.documents import PARAMETERS, REQUEST, Resources, parameters, placeholders, request
from cluster.findings import PROBLEM, UNKNOWN, WARNING, Finding
from cluster.schema import SetupConfig
from cluster.show import print_findings
from launcher.config.fields import schema_of
from launcher.errors import FAILED, TrntuneError, UsageError

CONFIGURATION = "configuration"


def run(config: SetupConfig) -> int:
    """Print every finding. Returns 0, or 1 when there is a problem."""
    if config.documents:
        findings = [*configuration(config), *own_documents(Path(config.documents))]
    else:
        findings = everything(config)
    print_findings(findings, as_json=config.format == "json")
    return FAILED if any(finding.state == PROBLEM for finding in findings) else 0


def everything(config: SetupConfig) -> list[Finding]:
    """Findings on what the configuration gives, offline and, as far as AWS answers, online."""
    try:
        aws = Aws(config.region)
        aws.account()
    except UsageError as error:
        if not (wrong := configuration(config)):
            raise
        return wrong if _names_region(wrong) else [*wrong, Finding(CONFIGURATION, PROBLEM, str(error))]
    except TrntuneError as error:
        return [*offline(config, placeholders(config)), Finding("zone, quota, what is deployed", UNKNOWN, str(error))]
    return online(aws, config)


def _names_region(wrong: list[Finding]) -> bool:
    return any(finding.detail.startswith("region=") for finding in wrong)


def configuration(config: SetupConfig) -> list[Finding]:
    """Everything in the configuration that can't work, whatever AWS says; none where nothing is wrong."""
    with schema_of(SetupConfig):
        return [Finding(CONFIGURATION, PROBLEM, str(problem)) for problem in problems(config)]


def online(aws: Aws, config: SetupConfig, found: standing.Standing | None = None) -> list[Finding]:
    """Findings with AWS's answers. ``found``: what stands already, if that was asked."""
    unanswered: list[Finding] = []
    stands = found or standing.Standing()
    if found is None:
        try:
            stands = standing.look(aws, config.name)
        except TrntuneError as error:
            unanswered = [Finding(questions.STANDING, UNKNOWN, str(error))]
    there = stands.own_stack
    config = stack.with_zone_of(there, config)
    complete = there is not None and there.good and there.has_compute
    wanted = stack.resources(there) if there is not None and complete else placeholders(config)
    findings = [
        *offline(config, wanted),
        *(unanswered or questions.answered(questions.STANDING, lambda: questions.standing(aws, config, stands))),
        *questions.answered(questions.ZONE, lambda: questions.zone(aws, config)),
        *questions.answered(questions.QUOTA, lambda: questions.quota(aws, config)),
    ]
    if there is None or not complete:
        return [*findings, *questions.later()]
    return [*findings, *deployed(aws, config, there, wanted)]


def deployed(aws: Aws, config: SetupConfig, there: stack.Stack, wanted: Resources) -> list[Finding]:
    """Findings on the stack that is there."""
    return [
        *questions.answered(questions.SECURITY, lambda: questions.security(aws, wanted.security_group)),
        *questions.answered(questions.STORAGE, lambda: questions.storage(aws, config, there, wanted)),
    ]


def offline(config: SetupConfig, wanted: Resources) -> list[Finding]:
    """Findings on the configuration and, where nothing is wrong with it, on the documents that are made from it."""
    if wrong := configuration(config):
        return wrong
    document = request(config, wanted)
    files = bucket.contents(config, wanted)
    return [
        *(model.check_request(document) or [Finding(model.CHECK, "ok")]),
        *agreement.check(document, parameters(config, wanted), files),
        *(Finding("uploaded files", WARNING, line) for line in bucket.left_here(config)),
    ]


def own_documents(directory: Path) -> list[Finding]:
    """Findings on a hand-written pair of documents. Raises UsageError where they can't be read."""
    document = _read(directory / REQUEST)
    written = _read(directory / PARAMETERS) if (directory / PARAMETERS).exists() else None
    return [
        *(model.check_request(document) or [Finding(model.CHECK, "ok")]),
        *agreement.check(document, written, None),
        *(Finding(check, UNKNOWN, "not looked at: with documents=... nobody is asked") for check in _NOT_LOOKED_AT),
    ]


_NOT_LOOKED_AT = ("entry script", questions.ZONE, questions.QUOTA, questions.SECURITY, questions.STORAGE)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # half of a character, \ud800, can't be printed later
    except OSError as error:
        raise UsageError(f"documents: {path}: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"documents: {path}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise UsageError(f"documents: {path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UsageError(f"documents: {path}: must be an object")
    return content
