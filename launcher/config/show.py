"""What Hydra's own flags print: --cfg, --info, --hydra-help and the completion of shells."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from omegaconf import OmegaConf

from launcher.config.compose import Composer, publish
from launcher.config.error_messages import one_line_errors
from launcher.config.sweep import check_sweeps
from launcher.config.typed import drop_hydra
from launcher.errors import UsageError


def show(arguments: argparse.Namespace) -> int:
    """--cfg, --info, --hydra-help and shell completion: Hydra's own output, on our search path."""
    from hydra._internal.hydra import Hydra

    logging.raiseExceptions = False  # Hydra prints through logging: `--info | head` is no reason for tracebacks
    composer = Composer(arguments.config_name, arguments.config_dir)
    app = Hydra(task_name="launch", config_loader=composer.loader)
    if arguments.shell_completion:
        app.shell_completion(composer.config_name, arguments.overrides)
        return 0
    if arguments.hydra_help:
        from hydra._internal.utils import get_args_parser

        parser = get_args_parser()
        app.hydra_help(composer.config_name, parser, parser.parse_args(["--hydra-help"]))
        return 0
    overrides = composer.parse(arguments.overrides)
    check_sweeps(overrides)
    with one_line_errors():
        if arguments.info:
            composer.load(arguments.overrides)
            app.show_info(arguments.info, composer.config_name, arguments.overrides)
        else:
            show_config(composer, arguments)
    return 0


def show_config(composer: Composer, arguments: argparse.Namespace) -> None:
    """Print the composed configuration, or one package of it, as YAML that composes again."""
    cfg = composer.load(arguments.overrides)
    publish(OmegaConf.masked_copy(cfg, "hydra"))
    if arguments.cfg == "job":
        drop_hydra(cfg)
    shown = OmegaConf.masked_copy(cfg, "hydra") if arguments.cfg == "hydra" else cfg
    package = arguments.package if arguments.package != "_global_" else None
    selected: Any = shown if package is None else OmegaConf.select(shown, package)
    if selected is None:
        raise UsageError(f"--package {package}: not in this configuration")
    if arguments.resolve and OmegaConf.is_config(selected):
        OmegaConf.resolve(selected)
    header = f"# @package {package}\n" if package else ""
    sys.stdout.write(header + (OmegaConf.to_yaml(selected) if OmegaConf.is_config(selected) else f"{selected}\n"))
