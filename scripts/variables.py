"""The variables of `make`, as overrides."""

import re
import shlex
from collections.abc import Mapping

from scripts.profile import default_profile

SETTINGS = {  # variable -> setting, and how its text becomes a value
    "DATA": ("data", "text"),
    "LIMIT": ("limit", "value"),
    "METHODS": ("methods", "list"),
    "DATASETS": ("datasets", "list"),
    "SEEDS": ("seeds", "list"),
    "CANDIDATES": ("candidates", "value"),
    "RATES": ("rates", "value"),
    "LAUNCHER": ("launcher", "value"),
    "GPU": ("gpus", "list"),
    "STUDY": ("capacity", "value"),
    "RUN": ("runs", "list"),
    "OPEN_INSTRUCT": ("open_instruct", "text"),
}
SWITCHES = {"DRY": ("dry=false", "dry=true"), "SKIP_PREFLIGHT": (None, "preflight=none")}  # for 0 and for 1


def overrides(variables: Mapping[str, str]) -> list[str]:
    """The overrides that the variables of `make` stand for; an empty one counts as unset.

    Raises ValueError for a switch that is neither 0 nor 1, and for a quote in OVERRIDES that is never closed.
    """
    given = {name.removeprefix("MAKE_"): text for name, text in variables.items() if name.startswith("MAKE_") and text}
    found = [f"profile={given.get('PROFILE') or default_profile()}"]
    found += [f"{key}={_value(given[name], kind)}" for name, (key, kind) in SETTINGS.items() if name in given]
    for name in SWITCHES.keys() & given.keys():
        if given[name] not in ("0", "1"):
            raise ValueError(f"{name}={given[name]} is refused: use {name}=1, or {name}=0 for what happens without it.")
        found += [override for override in [SWITCHES[name][int(given[name])]] if override]
    return [*found, *_split(given.get("OVERRIDES", ""))]


def quoted(text: str) -> str:
    """Text as a value of Hydra's grammar, whatever signs it holds."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # else OmegaConf looks up what is named there
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), literal)
    return f"'{escaped}'"


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"OVERRIDES={text} cannot be read: {error}.") from None


def _value(text: str, kind: str) -> str:
    return {"text": quoted(text), "list": f"[{text}]", "value": text}[kind]
