"""``nas schema``: what an editor has to know of an experiment file."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON schema of the experiment file, by which an editor completes and checks its keys.

    Example: nas schema > experiment.schema.json
    """
    print(text())


def text() -> str:
    """The schema as JSON; it comes with raynas as ``searchspaces/presets/experiment.schema.json``."""
    from nas.build import find_space
    from nas.config.plugins import built_in_spaces
    from nas.config.schema import json_schema

    return json.dumps(json_schema({name: list(find_space(name).SIZES) for name in built_in_spaces()}), indent=1)
