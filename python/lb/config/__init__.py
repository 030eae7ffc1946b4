"""
The configuration: TOML into frozen, validated models, or every error at once with its place in the file.

First step of the control walk: `config -> policy -> plan -> snapshot`. Loading is deterministic and looks at no
machine: what interfaces really have is read when a backend starts (`lb.net.kernel`). `model` says what there is, with
the types of `lb.fields`; `rules` what holds between fields; `toml` leads from a file to them.
"""

from __future__ import annotations

from lb.config.model import (
    Config,
    FlowsConfig,
    HealthConfig,
    InterfaceConfig,
    MetricsConfig,
    PolicyConfig,
    ServerConfig,
    ServiceConfig,
)
from lb.config.reading import (
    dump_config,
    inspect,
    load,
    outline,
    parse,
    parse_server,
    parse_weight,
    read,
    schema,
)

__all__ = [
    "Config",
    "FlowsConfig",
    "HealthConfig",
    "InterfaceConfig",
    "MetricsConfig",
    "PolicyConfig",
    "ServerConfig",
    "ServiceConfig",
    "dump_config",
    "inspect",
    "load",
    "outline",
    "parse",
    "parse_server",
    "parse_weight",
    "read",
    "schema",
]
