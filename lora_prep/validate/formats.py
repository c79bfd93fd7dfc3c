"""A report for other programs: JSON lines, SARIF, JUnit, and annotations of GitHub's.

Names of files are other people's text. Every format escapes them by its own rules, and what is no
text at all (control codes, bytes that are not UTF-8) is written as an escape such as `\\n`.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from lora_prep import __version__
from lora_prep.types import Issue, Json, Severity
from lora_prep.validate.check import Check

if TYPE_CHECKING:
    from lora_prep.validate import Report

Lines = Iterator[str]
Checks = Iterable[Check[Any]]

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def jsonl(report: "Report", _checks: Checks, _base: str) -> Lines:
    """One JSON object a line and issue."""
    for issue in report.issues:
        yield json.dumps(asdict(issue))


def sarif(report: "Report", checks: Checks, base: str) -> Lines:
    """One SARIF 2.1.0 document (OASIS), for code scanning pages and editors."""
    rules = {check.code: index for index, check in enumerate(checks)}
    yield json.dumps(
        {
            "$schema": SARIF_SCHEMA,
            "version": "2.1.0",
            "runs": [
                {
                    "tool": {
                        "driver": {
                            "name": "lora-prep",
                            "version": __version__,
                            "rules": [_sarif_rule(check) for check in checks],
                        }
                    },
                    "results": [_sarif_result(i, rules[i.code], base) for i in report.issues],
                }
            ],
        }
    )


def junit(report: "Report", checks: Checks, base: str) -> Lines:
    """One JUnit document: a test suite, a test a check, a failure where it found errors.

    Warnings alone are written as the test's output: CI pages show them and stay green.
    """
    found: Mapping[str, list[Issue]] = defaultdict(list)
    for issue in report.issues:
        found[issue.code].append(issue)
    checks = list(checks)
    failures = len({issue.code for issue in report.issues if issue.severity is Severity.ERROR})
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield "<testsuites>"
    yield f'<testsuite name="lora-prep validate" tests="{len(checks)}" failures="{failures}">'
    for check in checks:
        name = quoteattr(f"{check.code} {check.title}")
        issues = found[check.code]
        if not issues:
            yield f'<testcase classname="lora-prep.validate" name={name}/>'
            continue
        text = escape("\n".join(f"{_plain(base + i.path)}: {_plain(i.message)}" for i in issues))
        yield f'<testcase classname="lora-prep.validate" name={name}>'
        if check.severity is Severity.ERROR:
            message = quoteattr(f"{len(issues)}: {check.reason}")
            yield f"<failure message={message}>{text}\n{escape(_plain(check.fix))}</failure>"
        else:
            yield f"<system-out>{text}</system-out>"
        yield "</testcase>"
    yield "</testsuite>"
    yield "</testsuites>"


def github(report: "Report", checks: Checks, base: str) -> Lines:
    """GitHub's workflow commands, one a line: it shows them as annotations of the file."""
    titles = {check.code: check.title for check in checks}
    for issue in report.issues:
        file = _property(_plain(base + issue.path))
        title = _property(f"{issue.code} {titles[issue.code]}")
        message = _data(_plain(f"{issue.message}. {issue.fix}"))
        yield f"::{issue.severity} file={file},title={title}::{message}"


FORMATS: Mapping[str, Callable[["Report", Checks, str], Lines]] = {
    "jsonl": jsonl,
    "sarif": sarif,
    "junit": junit,
    "github": github,
}
"""Functions of a report, the checks that ran, and what leads from here to the data set's root
(empty, or with a slash at its end); they give the lines to print."""


def _sarif_rule(check: Check[Any]) -> Json:
    return {
        "id": check.code,
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": check.reason},
        "help": {"text": check.fix},
        "defaultConfiguration": {"level": str(check.severity)},
    }


def _sarif_result(issue: Issue, rule: int, base: str) -> Json:
    uri = quote((base + issue.path).encode("utf-8", "surrogateescape"))
    return {
        "ruleId": issue.code,
        "ruleIndex": rule,
        "level": str(issue.severity),
        "message": {"text": f"{_plain(issue.message)}. {_plain(issue.fix)}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}}}],
    }


def _plain(text: str) -> str:
    """Text on one line, without control codes and bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
