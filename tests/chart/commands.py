"""The commands, links and names in the repository's documents, as data."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charts import ROOT

# History: it may name what no longer exists.
HISTORY = {"CHANGELOG.md"}
MADE = {".venv", ".tools", ".cache", ".pytest_cache", "build", "dist", "e2e-report", "page-report"}
DOCUMENTS = sorted(
    file
    for file in ROOT.rglob("*.md")
    if file.name not in HISTORY and not MADE & set(file.relative_to(ROOT).parts) and ".egg-info" not in str(file)
)

# An indented block with a line that begins like this is the shell's: others are formulas and files.
SHELLS_LINE = re.compile(
    r"^(make|docker|kubectl|helm|curl|git|(\S+/)?(clothing-(gateway|model)|pip|python3?)) ", re.MULTILINE
)
# A word before it, and a program; `do` and `exec` are the shell's.
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=.*", re.DOTALL)
SHELL = {"do", "exec", "then", "sudo"}
NO_COMMAND = {"for", "done", "cd", "export", "echo", "printf", "if", "fi"}


@dataclass(frozen=True)
class Command:
    """A command line and the document that has it."""

    document: Path
    words: tuple[str, ...]
    strict: bool  # whether the block is the shell's for certain, so that what isn't known is a mistake

    @property
    def program(self) -> str:
        return self.words[0].rsplit("/", 1)[-1]

    @property
    def flags(self) -> list[str]:
        """The words that are flags, without what follows `=`; of short ones, each letter."""
        rest = list(self.words[1:])
        if "--" in rest:
            rest = rest[: rest.index("--")]
        return [word.split("=", 1)[0] for word in rest if re.match(r"--?[A-Za-z]", word)]

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}: {shlex.join(self.words)}"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code: fenced ones, and indented ones of the language ''."""
    fence: str | None = None
    held: list[str] = []
    indented: list[str] = []
    after_blank = True
    for line in [*text.splitlines(), ""]:
        if (mark := re.match(r"\s*```(\w*)", line)) and (fence is None or not mark[1]):
            if fence is None:
                if indented:
                    yield "", "\n".join(indented)
                    indented = []
                fence, held = mark[1], []
            else:
                yield fence, "\n".join(held)
                fence = None
        elif fence is not None:
            held.append(line)
        elif line.startswith("    ") and (indented or after_blank):
            indented.append(line[4:])
        elif indented and line.strip():
            yield "", "\n".join(indented)
            indented = []
        after_blank = not line.strip()
    if indented:
        yield "", "\n".join(indented)


def spans(text: str) -> list[str]:
    """Inline code of sentences and tables."""
    outside = re.sub(r"^\s*```.*?^\s*```\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [span.strip() for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", outside)]


def _inner(line: str) -> tuple[str, list[str]]:
    """The line with a word in place of each $(…), and the contents of these."""
    found: list[str] = []
    while (start := line.find("$(")) >= 0:
        depth, end = 0, start + 1
        for end in range(start + 1, len(line)):
            depth += {"(": 1, ")": -1}.get(line[end], 0)
            if depth == 0:
                break
        found.append(line[start + 2 : end])
        line = f"{line[:start]}substituted{line[end + 1 :]}"
    return line, found


def simple_commands(line: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a shell line, as words."""
    line, substituted = _inner(line)
    for inner in substituted:
        yield from simple_commands(inner)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.commenters = "#"
    lexer.wordchars += "…:@%+,{}[]*?!$"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;"):
            while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] in SHELL):
                words.pop(0)
            if words and words[0] not in NO_COMMAND:
                yield tuple(words)
            words = []
        elif words and set(words[-1]) <= set("<>"):
            words.pop()  # what a redirection goes to or comes from
        else:
            words.append(word)


def commands_of(document: Path) -> Iterator[Command]:
    text = document.read_text()
    for language, block in blocks(text):
        if language not in {"", "sh", "bash", "console"}:
            continue
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        strict = language in {"sh", "bash", "console"} or bool(SHELLS_LINE.search(block))
        for line in lines:
            try:
                yield from (Command(document, words, strict) for words in simple_commands(line))
            except ValueError:  # a drawing, a formula
                assert not strict, f"{document}: {line}"
    for span in spans(text):
        try:
            yield from (Command(document, words, strict=False) for words in simple_commands(span))
        except ValueError:
            continue


COMMANDS = [command for document in DOCUMENTS for command in commands_of(document)]


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    outside = re.sub(r"^\s*```.*?^\s*```\s*$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#{1,6} (.+)$", outside, re.MULTILINE)}


def links(document: Path) -> list[str]:
    outside = re.sub(r"^\s*```.*?^\s*```\s*$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", outside))
