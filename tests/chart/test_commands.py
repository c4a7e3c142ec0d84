"""Documented commands exist: targets, flags, files, links; and every command of ours is documented."""

import argparse
import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from charts import CLASSIFIER, ROOT, flatten, run, tool
from commands import COMMANDS, DOCUMENTS, Command, anchors, blocks, commands_of, links, simple_commands, spans

from clothing_gateway.commands import cli
from clothing_gateway.errors import all_errors
from clothing_gateway.settings import ROWS
from clothing_gateway.telemetry.metrics import Metrics

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = dict(re.findall(r"^([a-z0-9-]+):[^=\n]*?(?:## (.*))?$", MAKEFILE, re.MULTILINE))
MODEL = ROOT / "model-image/.venv/bin/clothing-model"
VALUES = flatten(yaml.load((CLASSIFIER / "values.yaml").read_text(), yaml.CSafeLoader))
SCHEMA = (CLASSIFIER / "values.schema.json").read_text()
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
by_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def given(*programs: str) -> list[Command]:
    """The documented commands of these programs, without mentions of the bare name."""
    return [command for command in COMMANDS if command.program in programs and len(command.words) > 1]


# What is not this repository's: the subcommands and flags that the documents need. Who writes a new one adds it here,
# having tried it.
SHARED_KUBECTL = {"--namespace", "-n", "--selector", "-l", "--output", "--all-namespaces", "--context"}
KNOWN: dict[str, dict[str, set[str]]] = {
    "kubectl": {
        "annotate": {"--overwrite"},
        "api-resources": {"--api-group"},
        "apply": {"-f", "--filename", "--server-side"},
        "config current-context": set(),
        "config get-contexts": set(),
        "config set-context": {"--current"},
        "config use-context": set(),
        "config view": {"--minify", "-o"},
        "cordon": set(),
        "cp": {"-c", "--container"},
        "create": {"--from-file", "--from-literal", "--dry-run"},
        "debug": {"-it", "--image", "--target"},
        "delete": {"--wait", "--timeout", "--ignore-not-found"},
        "describe": set(),
        "drain": {"--ignore-daemonsets", "--delete-emptydir-data"},
        "events": {"--for"},
        "exec": {"-c", "--container", "-i", "-it", "-t"},
        "get": {"--raw", "--watch", "-o", "-A"},
        "label": {"--overwrite"},
        "logs": {"-c", "-f", "--container", "--tail", "--follow", "--previous", "--since"},
        "port-forward": {"--address"},
        "rollout history": set(),
        "rollout restart": set(),
        "rollout status": {"--timeout"},
        "rollout undo": set(),
        "run": {"-it", "--image", "--rm", "--restart"},
        "scale": {"--replicas"},
        "taint": set(),
        "top": set(),
        "uncordon": set(),
        "version": {"--client"},
        "wait": {"--for", "--timeout"},
    },
    "docker": {
        "build": {"-t", "-f", "--tag", "--file", "--build-arg"},
        "buildx build": {"--load"},
        "buildx imagetools inspect": {"--format"},
        "compose config": set(),
        "compose up": {"--build"},
        "compose --profile portable up": {"--profile", "--build"},
        "inspect": set(),
        "login": {"--username", "--password-stdin"},
        "push": set(),
        "system df": set(),
        "system prune": set(),
        "tag": set(),
    },
    "kind": {
        "create cluster": {"--config", "--name"},
        "delete cluster": {"--name"},
        "load": {"--name"},
        "load docker-image": {"--name"},
    },
    "gh": {"attestation verify": {"--owner"}},
    "eksctl": {
        "create cluster": {"--config-file"},
        "delete cluster": {"--config-file", "--wait", "--disable-nodegroup-eviction"},
        "scale nodegroup": {"--cluster", "--name", "--nodes"},
    },
    "aws": {
        "ec2 describe-volumes": {"--region", "--filters", "--query"},
        "ecr create-repository": {"--region", "--repository-name"},
        "ecr delete-repository": {"--region", "--repository-name", "--force"},
        "ecr get-login-password": {"--region"},
        "eks describe-cluster": {"--region", "--name", "--query", "--output"},
        "elbv2 describe-load-balancers": {"--region", "--query"},
        "service-quotas get-service-quota": {"--service-code", "--quota-code", "--query"},
        "sts get-caller-identity": {"--query", "--output"},
    },
    # Not --json, which curl has since 7.82, and Ubuntu 22.04 has not.
    "curl": {
        "": {"-F", "-d", "-s", "-H", "--form", "--data", "--data-binary", "--header"},
    },
}
# Of the shell, of Python, and of distributions.
OTHERS = {"apt-get", "cc", "git", "grep", "head", "mypy", "nvidia-smi", "perf", "pip", "python", "python3", "pytest"}
OTHERS |= {"ruff", "sha256sum", "tar", "openssl", "base64", "cat", "cosign"}


def subcommand(command: Command) -> str | None:
    """The longest of the program's known subcommands that the command's words begin with."""
    words = " ".join(command.words[1:])
    fitting = [known for known in KNOWN[command.program] if f"{words} ".startswith(f"{known} ") or not known]
    return max(fitting, key=len, default=None)


def unknown(command: Command) -> list[str]:
    found = subcommand(command)
    if found is None:
        return [str(command)]
    allowed = KNOWN[command.program][found] | (SHARED_KUBECTL if command.program == "kubectl" else set())
    return [f"{command}: {flag}" for flag in command.flags if flag not in allowed]


def test_subcommands_and_flags_of_other_programs_exist():
    found = given(*KNOWN)
    assert len(found) > 60
    assert [complaint for command in found for complaint in unknown(command)] == []


def test_every_program_of_a_shell_block_is_known():
    ours = {"make", "helm", "clothing-gateway", "clothing-model"}
    scripts = {command.program for command in COMMANDS if command.strict}
    strange = scripts - ours - set(KNOWN) - OTHERS
    assert {program for program in strange if not list(ROOT.glob(f"**/{program}"))} == set()


# ---- make ----


def test_every_make_target_exists():
    wrong = []
    for command in given("make"):
        for word in command.words[1:]:
            variable, is_set, _ = word.partition("=")
            if is_set:
                if not re.search(rf"\b{variable}\b", MAKEFILE):
                    wrong.append(f"{command}: {variable}")
            elif re.fullmatch(r"[a-z][a-z0-9-]*", word) and word not in TARGETS:
                wrong.append(str(command))
    assert len(given("make")) > 30
    assert wrong == []


def test_every_make_target_is_documented():
    documented = {word for command in given("make") for word in command.words[1:]}
    assert {target for target, about in TARGETS.items() if about} - documented - {"help"} == set()


# ---- our programs ----


def parses(parser: argparse.ArgumentParser, command: Command) -> bool:
    try:
        parser.parse_args(command.words[1:])
    except SystemExit as end:  # of --help and --version with 0
        return end.code == 0
    return True


def test_every_clothing_gateway_command_parses(capsys):
    found = given("clothing-gateway")
    assert len(found) > 8
    parser = cli._parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    for command in found:
        # What a sentence leaves out (…) can't be parsed; its flags can be looked up.
        taken = {
            flag
            for choice in (parser, commands.get(command.words[1], parser))
            for flag in choice._option_string_actions
        }
        assert command.words[1] in commands or command.words[1].startswith("-"), str(command)
        assert set(command.flags) <= taken, str(command)
        if command.strict and "…" not in "".join(command.words):
            assert parses(parser, command), f"{command}: {capsys.readouterr().err}"


def test_every_clothing_gateway_command_is_documented():
    commands = next(action for action in cli._parser()._actions if action.dest == "command").choices
    assert set(commands) - {command.words[1] for command in given("clothing-gateway")} == set()


def helps(program: str | Path, *words: str) -> str:
    done = run(program, *words, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_clothing_model_command_exists_and_is_documented():
    commands = set(re.findall(r"^    ([a-z]+) ", helps(MODEL), re.MULTILINE))
    assert {"convert", "serve"} <= commands
    flags = defaultdict(set)
    for command in given("clothing-model"):
        if command.words[1].startswith("-"):
            assert command.words[1] in helps(MODEL), str(command)
            continue
        assert command.words[1] in commands, str(command)
        flags[command.words[1]] |= set(command.flags)
    assert commands - set(flags) == set()
    for name, named in flags.items():
        text = helps(MODEL, name)
        assert {flag for flag in named if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)} == set(), name


# ---- helm ----


def test_every_helm_flag_exists():
    found = [command for command in given("helm") if command.words[1] != "diff"]  # a plugin
    assert len(found) > 25
    texts = {name: helps(tool("helm"), name) for name in {command.words[1] for command in found} - {"get"}}
    texts["get"] = helps(tool("helm"), "get", "notes")
    for command in found:
        assert "Usage:\n  helm [command]" not in texts[command.words[1]], f"{command}: no such subcommand"
        for flag in command.flags:
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", texts[command.words[1]]), f"{command}: {flag}"


INSTALLS = [
    command
    for command in given("helm")
    if {"install", "upgrade", "template"} & set(command.words)
    and "diff" not in command.words
    and any(word.startswith("charts/") for word in command.words)
]


@pytest.mark.parametrize("command", INSTALLS, ids=str)
def test_every_documented_install_renders(command, tmp_path):
    options: list[str] = []
    words = list(command.words)[2:]
    while words:
        word = words.pop(0)
        # Of the cluster, and not of the manifests.
        if word in {"--wait", "--install"}:
            continue
        if word == "--timeout":
            words.pop(0)
            continue
        if word in {"--values", "-f"}:
            file = ROOT / words.pop(0).replace("FILE", "kind")
            if file.parent == ROOT:  # the reader's own
                file = tmp_path / "own.yaml"
                file.write_text("model: {labels: [cup, fork]}\nserver: {image: {tag: '1'}}\n")
                if "eks-gpu.yaml" in str(command):
                    file.write_text("server: {image: {tag: 1-gpu}}\n")
            options += ["--values", str(file)]
            continue
        # The reader's own: a release's NAME, a registry in a variable.
        options.append(word.lower() if word.isupper() else re.sub(r"\$\w+", "registry.example.com", word))
    done = run(tool("helm"), "template", *options, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout


# ---- curl ----


def test_every_curl_route_exists():
    routes = set(yaml.safe_load((ROOT / "gateway/src/clothing_gateway/web/openapi.yaml").read_text())["paths"])
    routes |= {"/healthz", "/readyz", "/metrics", "/v1/models/clothing-model", ""}
    address = re.compile(r"(?:https?://)?(?:localhost|127\.0\.0\.1|\$\w+)(?::\d+)?(/[^?]*)?(\?.*)?")
    asked = [
        (str(command), match[1] or "")
        for command in given("curl")
        for word in command.words[1:]
        if (match := address.fullmatch(word))
    ]
    assert len(asked) > 8
    assert [one for one in asked if one[1] not in routes] == []


# ---- files, links and names ----

PLACES = "ci|charts|Chart-values-examples|docs|gateway|model-image|tests|dashboards"
# What the reader makes.
READERS = re.compile(r"model-image/models/|\.venv/|NAME|FILE|VERSION|\.cache/")


@by_document
def test_every_named_file_exists(document):
    named = {
        word.rstrip(".,;:/")
        for text in [*spans(document.read_text()), *(" ".join(command.words) for command in commands_of(document))]
        # With :: it is a test, which test_docs.py looks for.
        for word in re.findall(rf"(?<![\w./-])(?:{PLACES})/[\w./*-]+(?![\w./*-]|::)", text)
    }
    gone = [name for name in named if not READERS.search(name) and not list(ROOT.glob(name))]
    # A name may be meant from the document's own folder.
    assert [name for name in gone if not list(document.parent.glob(name))] == []


@by_document
def test_every_link_resolves(document):
    wrong = []
    for link in links(document):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", path):
            assert path.startswith("https://"), link
            continue
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def strange_names(text: str) -> set[str]:
    """Values, settings, metrics, alerts and error codes that a document names and that don't exist."""
    named = spans(text)
    code = "\n".join(named)
    top = "|".join({path.partition(".")[0] for path in VALUES})
    strange = {
        name
        for name in re.findall(rf"^((?:{top})\.[a-z][\w.]*)(?=$|[:=])", code, re.MULTILINE)
        if not any(f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.") for path in VALUES)
        and f'"{name.rsplit(".", 1)[-1]}"' not in SCHEMA
        and not name.endswith((".json", ".yaml", ".h5", ".py"))
    }
    settings = {row.variable for row in ROWS}
    decided_against = {"GATEWAY_PORT", "GATEWAY_KEY"}
    strange |= set(re.findall(r"(?<![\w$])GATEWAY_[A-Z_]+[A-Z]\b", text)) - {"GATEWAY_URL"} - settings - decided_against
    metrics = {family.name for family in Metrics("").registry.collect()}
    strange |= {
        re.sub("_(total|bucket|sum|count)$", "", name) for name in re.findall(r"\bgateway_[a-z_]+[a-z]\b(?!\.)", code)
    } - metrics
    servers = (ROOT / "model-image/src/clothing_model/server/metrics.py").read_text()
    strange |= {
        name for name in re.findall(r":tensorflow:[\w:]+", text) if f'"{name.replace(":", "/")}"' not in servers
    }
    rules = (CLASSIFIER / "templates/_alerts.tpl").read_text()
    strange |= {alert for alert in re.findall(r"\bClassifier[A-Z]\w+", text) if alert not in rules}
    codes = {error.code for error in all_errors()}
    return strange | {name for name in named if ERROR_CODE.fullmatch(name)} - codes


# The words that error codes begin with, written down here, as a code that is gone takes its word along.
ERROR_CODE = re.compile(
    "(address|bad|broken|client|decoder|headers|host|internal|method|model|no|not|origin|out|photo|request|too|unsupported)"
    "(-[a-z]+)+"
    "|overloaded|unauthorized|unavailable"
)


@by_document
def test_every_value_setting_metric_alert_and_error_code_exists(document):
    assert strange_names(document.read_text()) == set()


def test_every_error_code_matches_the_pattern():
    assert [error.code for error in all_errors() if not ERROR_CODE.fullmatch(error.code)] == []


@pytest.mark.parametrize(
    "name",
    [
        "gateway.pages", "GATEWAY_PAGES", "gateway_fetched", ":tensorflow:serving:request_number", "ClassifierTired",
        "broken-photo", "no-picture",
    ],
)  # fmt: skip
def test_unknown_name_is_detected(name):
    assert strange_names(f"Look at `{name}`, at `gateway.page`, `out-of-time` and `gateway_ready`.") == {name}


# ---- the tools of these tests ----


def test_parser_finds_commands(tmp_path):
    document = tmp_path / "a.md"
    document.write_text(
        "Say `make demo` or:\n\n    A=1 b c | d --e > f   # g\n    i $(j k) && l\n\n"
        "```console\n$ m 'n o'\nanswer\n```\n\n```yaml\np: q\n```\n\nand:\n\n    r s\n    make t\n"
    )
    assert [(command.words, command.strict) for command in commands_of(document)] == [
        (("b", "c"), False),
        (("d", "--e"), False),
        (("j", "k"), False),
        (("i", "substituted"), False),
        (("l",), False),
        (("m", "n o"), True),
        (("r", "s"), True),
        (("make", "t"), True),
        (("make", "demo"), False),
    ]
    assert list(blocks("```sh\na\n```\n")) == [("sh", "a")]
    assert list(simple_commands("for x in a b; do exec y $x; done")) == [("y", "$x")]


def test_unknown_flag_or_subcommand_is_detected():
    document = ROOT / "a.md"
    flag = Command(document, ("kubectl", "get", "pods", "--frobnicate"), strict=True)
    assert unknown(flag) == ["a.md: kubectl get pods --frobnicate: --frobnicate"]
    assert unknown(Command(document, ("kubectl", "fly"), strict=True)) == ["a.md: kubectl fly"]
    assert unknown(Command(document, ("kubectl", "get", "pods", "-l", "a=b"), strict=True)) == []


def test_links_and_anchors_follow_github(tmp_path):
    document = tmp_path / "a.md"
    document.write_text("# A `b` c: d\n\n[x](#a-b-c-d) [y](no.md) `[z](w)`\n\n```\n# no heading\n[v](u)\n```\n")
    assert anchors(document) == {"a-b-c-d"}
    assert links(document) == ["#a-b-c-d", "no.md"]
