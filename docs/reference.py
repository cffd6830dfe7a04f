"""The pages of the site that are made from the code: keys of an experiment, commands, metrics and costs. mkdocs calls
`on_files` and `on_page_markdown`; see mkdocs.yml."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nas.cli.commands import app
from nas.cli.schema import text
from nas.config import plugins
from nas.config.experiment import Experiment
from nas.config.plugins import OptionsOf
from nas.config.schema import named, within
from nas.config.section import CostOptions, Kind, Section
from nas.config.sections import Bounds
from nas.space import COSTS, Measure

NEEDS = {  # words after ```bash: what a block needs that a laptop has not, or why it is not run by the tests at all
    "cluster": "needs a Ray cluster",
    "head": "",  # starts one
    "kubernetes": "needs Kubernetes",
    "machines": "needs machines of your own",
    "data": "needs your own data",
    "gpu": "needs a GPU",
    "docker": "needs Docker",
    "stays": "runs until Ctrl-C",
    "clone": "",  # what makes the environment that the tests run in
    "soak": "",  # run by make soak
}
MEANING = {
    Kind.IDENTITY: "part of what the run is: another value is another run, and is refused in this directory",
    Kind.FREE: "may have another value at any resume",
    Kind.EXTEND: "may have another value at any resume; the run goes on from where it stands",
}
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    for name, page in (("experiment", experiment()), ("commands", commands()), ("metrics", metrics())):
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    files.append(File.generated(config, "experiment.schema.json", content=text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Say over a block of commands what it needs."""
    titles = {word: f' title="{told}"' if told else "" for word, told in NEEDS.items()}
    return re.sub(r"^```bash (\w+)$", lambda found: f"```bash{titles[found[1]]}", markdown, flags=re.MULTILINE)


# --- keys


def experiment() -> str:
    """The page of the keys."""
    schema = json.loads(text())
    parts = {"Experiment": schema, **schema["$defs"]}
    lines = [
        "# Keys of an experiment",
        "",
        "An experiment is one YAML file of these keys; `--set section.key=value` changes one. A key without a default "
        "must be given. No number is above 1e15. An editor with a YAML language server checks and completes them where "
        "the file begins with",
        "",
        "```yaml",
        "# yaml-language-server: $schema=experiment.schema.json",
        "```",
        "",
        "and the [schema](../experiment.schema.json) lies beside it: `nas schema > experiment.schema.json`. The last "
        "column says what a change means to a run that has begun:",
        "",
        *(f"- *{kind}*: {meaning}" for kind, meaning in MEANING.items()),
    ]
    for key, name, section, kind in walk(Experiment):
        title = f"`{key}`" if key else "The file"
        lines += ["", f"## {title}{name and f': {name}'}", "", first(section.__doc__), ""]
        lines += table(section, parts[section.__name__]["properties"], kind)
    return "\n".join(lines) + "\n"


def walk(section: type[Section], key: str = "", kind: Kind | None = None, name: str = "") -> Iterator[tuple]:
    """``(dotted key, names of the plug-in, section, kind)`` of a section and those within, in the order of the file."""
    yield key, name, section, kind
    for field_name, field in section.model_fields.items():
        inner, at = kind_of(field.metadata, kind), f"{key}.{field_name}".lstrip(".")
        if mark := next((each for each in field.metadata if isinstance(each, OptionsOf)), None):
            for options, names in named(mark.kind, mark.base).items():
                yield from walk(options, at, inner, ", ".join(names))
        elif at == "search.options":
            for options, names in named("search", Section).items():
                if options.model_fields:
                    yield from walk(options, at, inner, ", ".join(names))
        elif at == "search.costs":
            for options, names in named("cost", CostOptions).items():
                yield from walk(options, at, inner, ", ".join(names))
        elif at == "search.constraints":
            yield from walk(Bounds, f"{at}.<cost>", inner)
        else:
            for found in within(field.annotation):
                yield from walk(found, at, inner)


def kind_of(metadata: list[object], above: Kind | None) -> Kind | None:
    return next((mark for mark in metadata if isinstance(mark, Kind)), above)


def table(section: type[Section], properties: Mapping[str, Any], kind: Kind | None) -> Iterator[str]:
    """The keys of a section, a row each."""
    yield "| key | value | default | meaning | in a run |"
    yield "| --- | --- | --- | --- | --- |"
    for name, field in section.model_fields.items():
        told = properties[name]
        default = "" if field.is_required() else f"`{plain(field.get_default(call_default_factory=True))}`"
        meaning = escaped(field.description or "")
        yield f"| `{name}` | {value(told)} | {default} | {meaning} | {kind_of(field.metadata, kind) or ''} |"


def plain(default: object) -> str:
    """A default as YAML has it."""
    if isinstance(default, Section):
        return "{}"
    return json.dumps(default, default=lambda each: list(each))


def value(told: Mapping[str, Any]) -> str:
    """What a key may have, of its schema."""
    if "anyOf" in told:
        return " or ".join(dict.fromkeys(map(value, told["anyOf"])))
    if "enum" in told:
        return ", ".join(f"`{json.dumps(each).strip(chr(34))}`" for each in told["enum"])
    if "$ref" in told or "allOf" in told:
        return "section"
    if "pattern" in told:
        return "`my_module:thing`" if ":" in told["pattern"] else 'text such as `"1.5M"`'
    kind = {"string": "text", "array": "list", "object": "mapping", "boolean": "`true`, `false`", "null": "`null`"}
    limits = [f"{sign} {told[key]:g}" for key, sign in LIMITS.items() if key in told]
    return " ".join([kind.get(told.get("type", ""), told.get("type", "any")), ", ".join(limits)]).strip()


def first(docstring: str | None) -> str:
    """The first paragraph."""
    return re.sub(r"\s+", " ", inspect.cleandoc(docstring or "").partition("\n\n")[0])


def escaped(told: str) -> str:
    """Text in a cell of a table."""
    return told.replace("|", "\\|").replace("<", "&lt;")


# --- commands


def commands() -> str:
    """The page of the commands."""
    group = typer.main.get_command(app)
    lines = ["# Commands", "", first(app.info.help), "", "`nas COMMAND --help` says the same as this page."]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        told, _, example = inspect.cleandoc(command.help or "").rpartition("Example: ")
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join(["nas", name, *(argument(each) for each in arguments), "[OPTIONS]"])
        lines += ["", f"## nas {name}", "", "```text", usage, "```", "", told.strip(), "", f"Example: `{example}`", ""]
        lines += ["| argument or option | meaning | default |", "| --- | --- | --- |"]
        lines += [row(each) for each in command.params if each.name != "help"]
    return "\n".join(lines) + "\n"


def argument(parameter: Any) -> str:
    shown = parameter.metavar or parameter.name.upper()
    return shown if parameter.required or shown.startswith("[") else f"[{shown}]"


def row(parameter: Any) -> str:
    """One argument or option of a command."""
    names = argument(parameter) if parameter.param_type_name == "argument" else ", ".join(parameter.opts)
    if parameter.param_type_name == "option" and not parameter.is_flag:
        names += f" {parameter.metavar or parameter.name.upper()}"
    told, _, default = (parameter.help or "").partition(" [default: ")
    if not default and parameter.default not in (None, "", [], False, ()) and not callable(parameter.default):
        default = str(parameter.default)
    return f"| `{names}` | {escaped(told)} | {escaped(default.rstrip(']'))} |"


# --- metrics and costs


def metrics() -> str:
    """The page of what children are judged by."""
    lines = [
        "# Metrics and costs",
        "",
        "A search looks for children that are good by one metric (`search.metric`) and small by one cost "
        "(`search.cost`), within bounds on any (`search.constraints`). Metrics are the task's, and so go with the data "
        "set.",
        "",
        "## Metrics",
        "",
        "| `data.name` | task | metric | better | counts |",
        "| --- | --- | --- | --- | --- |",
    ]
    for task, names in tasks().items():
        for metric, better in task.metrics.items():
            default = "unless another is named" if metric == task.metric else ""
            shown = ", ".join(f"`{name}`" for name in names)
            lines.append(f"| {shown} | {first(task.__doc__).partition(':')[0]} | `{metric}` | {better} | {default} |")
    lines += ["", "## Costs", "", "For one input, lower is better.", "", "| cost | shown as | what is counted |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| `{name}` | {measure.title} | {measure.about} |" for name, measure in COSTS.items()]
    lines += [
        "",
        "Those that come with raynas and are named in `search.costs`:",
        "",
        "| cost | shown as | what it is |",
    ]
    lines += ["| --- | --- | --- |"]
    for name in plugins.built_in("cost"):
        cost = plugins.find("cost", name)
        lines.append(f"| `{name}` | {Measure(cost.label, cost.unit).title} | {first(cost.Options.__doc__)} |")
    return "\n".join(lines) + "\n"


def tasks() -> dict[Any, list[str]]:
    """The tasks that come with raynas, and the data sets that pose each."""
    found: dict[Any, list[str]] = {}
    for name in plugins.built_in("task"):
        found.setdefault(plugins.find("task", name), []).append(name)
    return found
