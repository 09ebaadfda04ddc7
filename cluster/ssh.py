"""`python -m cluster ssh`: a shell on a node, by AWS's session manager. No port is open for it anywhere."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import NoReturn

from cluster import hyperpod
from cluster.aws import Aws
from cluster.schema import SetupConfig
from launcher.errors import TrntuneError, UsageError, nearest


def run(config: SetupConfig) -> int:
    """Print the command or become it. Raises TrntuneError when there is no such node, or a program is missing."""
    aws = Aws(config.region)
    cluster = hyperpod.find(aws, config.name)
    if cluster is None:
        raise TrntuneError(f"there is no cluster {config.name} in {config.region}")
    node = choose(hyperpod.nodes(aws, config.name), config)
    command = session_command(cluster, node, config.region)
    if config.show:
        print(shlex.join(command))
        return 0
    check_programs()
    become(command)


def become(command: list[str]) -> NoReturn:
    """Replace this process. Raises TrntuneError when the program can't be started."""
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise TrntuneError(f"{shutil.which(command[0])} can't be started: {error.strerror}") from None


def session_command(cluster: hyperpod.Cluster, node: hyperpod.Node, region: str) -> list[str]:
    """AWS's own command line, which starts the plugin."""
    target = f"sagemaker-cluster:{cluster.id}_{node.group}-{node.id}"
    return ["aws", "ssm", "start-session", "--target", target, "--region", region]


def choose(nodes: list[hyperpod.Node], config: SetupConfig) -> hyperpod.Node:
    """The wanted node; without a wish the login node, else the controller. Raises UsageError with what there is."""
    # A node that has failed, or is on its way out, answers nobody: the first that runs comes first.
    nodes = sorted(nodes, key=lambda node: node.status != "Running")
    if not nodes:
        raise TrntuneError(f"the cluster {config.name} has no node yet: python -m cluster status name={config.name}")
    if config.node is None:
        for group in (config.login.name, config.controller.name):
            if found := [node for node in nodes if node.group == group]:
                return found[0]
    wanted = config.node or config.controller.name
    if found := [node for node in nodes if wanted in (node.id, node.group)]:
        return found[0]
    names = list(dict.fromkeys([*(node.group for node in nodes), *(node.id for node in nodes)]))
    near = nearest(wanted, names)
    raise UsageError(
        f"node={wanted}: no such instance group or instance: there are {', '.join(names)}"
        + (f"; did you mean {near}?" if near else "")
    )


def check_programs() -> None:
    """Raise TrntuneError unless AWS's command line and its plugin are installed."""
    needed = {
        "aws": "AWS's command line, https://docs.aws.amazon.com/cli",
        "session-manager-plugin": "AWS's Session Manager plugin, https://docs.aws.amazon.com/systems-manager",
    }
    for program, what in needed.items():
        if shutil.which(program) is None:
            raise TrntuneError(f"{program} is not installed: {what}; show=true prints the command for another machine")
