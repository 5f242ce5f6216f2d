"""The config: its sections, loading and checking a file, keys and other secrets."""

from llmux.config.control import ControlConfig
from llmux.config.hookfiles import file_remarks, hook_remarks, program_remarks, script_remarks
from llmux.config.limits import Limits
from llmux.config.load import default_state_dir, load_config, parse_config
from llmux.config.lookup import default_config_path
from llmux.config.memory_remarks import memory_remarks
from llmux.config.models import GroupConfig, HookTimeouts, ModelConfig, OnSwitch
from llmux.config.own_address import loop_mistakes
from llmux.config.places import mistaken
from llmux.config.policy import PolicyConfig
from llmux.config.recipe_remarks import recipe_remarks
from llmux.config.recipes import HookName
from llmux.config.remarks import address_remarks, command_remarks, tls_remarks
from llmux.config.schema import config_schema, editor_schema, modeline
from llmux.config.shape import USUAL_SECRETS, Config

__all__ = [
    "USUAL_SECRETS",
    "Config",
    "ControlConfig",
    "GroupConfig",
    "HookName",
    "HookTimeouts",
    "Limits",
    "ModelConfig",
    "OnSwitch",
    "PolicyConfig",
    "address_remarks",
    "command_remarks",
    "config_schema",
    "default_config_path",
    "default_state_dir",
    "editor_schema",
    "file_remarks",
    "hook_remarks",
    "load_config",
    "loop_mistakes",
    "memory_remarks",
    "mistaken",
    "modeline",
    "parse_config",
    "program_remarks",
    "recipe_remarks",
    "script_remarks",
    "tls_remarks",
]
