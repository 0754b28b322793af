"""What personal data and secrets look like, and what only looks like them: one rule for each form, with its checksum.

A form is searched for in two steps. `hint` is a regular expression for polars that is true of every text the form is in and costs
0.05 to 0.4 us on 480 characters; `pattern` is the exact one, run by Python on the few texts that the hint leaves over.
Not personal, and so never found: what standards reserve for examples and private use (example.com, 127.0.0.1, 192.0.2.0/24,
555-0100). Published test numbers of cards (4111...) are found: nothing tells them from a real one but a list.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from ft_pipeline.curate.pii_numbers import IBAN_LENGTHS, is_card, is_iban

Holds = Callable[[re.Match[str]], bool]
GAP = r"[ .\-\u00a0\u2010\u2011]"
"""What stands between the groups of a number; no-break space and hyphens included."""
DIGITS_HINT = r"[0-9](?:[ ()./\-\u00a0\u2010\u2011]*[0-9]){4}"
"""Five digits with nothing but gaps between: in all of phone, IPv4, card, IBAN and SSN. One search instead of five."""
LETTER = "A-Za-z0-9\u00c0-\u024f"
FILE_ENDINGS = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "html"})
RESERVED_DOMAIN = re.compile(
    r"(?:^|\.)(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost|local|(?:your|my)[a-z-]+\.[a-z]+)$", re.I
)
"""RFC 2606 and 6761, and yourdomain.com."""
VERSION_BEFORE = re.compile(r"(?:\bv|version|\bver\.?|release|build|firmware|section|chapter|[=~^<>])[ :]*$", re.I)
PLACEHOLDER = re.compile(r"your|example|change.?me|placeholder|dummy|redacted|insert|[<>{}\[\]$]|\*\*|xxx|\.\.\.", re.I)
PLAIN_WORDS = frozenset({"password", "passwd", "pass", "pwd", "secret", "token"})
NUM_CLASSES = 3
CONTEXT_CHARACTERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One form of one kind of personal data."""

    kind: str
    """As the recipe names it: email, phone, ip, card, iban, ssn, secret."""
    name: str
    hint: str
    pattern: re.Pattern[str]
    """The group `found` is what is personal; without one it is the whole match."""
    holds: Holds = lambda _: True
    mask: Callable[[str], str] = lambda text: f"*** ({len(text)} characters)"
    """How a finding is shown: never enough to use it."""
    has_digits: bool = False
    """True when every match also matches DIGITS_HINT."""


def _tail(digits: int) -> Callable[[str], str]:
    return lambda text: "***" + "".join(c for c in text if c.isalnum())[-digits:]


def _head(characters: int) -> Callable[[str], str]:
    return lambda text: f"{text[:characters]}*** ({len(text)} characters)"


def _masked_email(text: str) -> str:
    name, _, domain = text.rpartition("@")
    return f"{name[:1]}***@{domain[:1]}***.{domain.rpartition('.')[2]}"


def _is_email(match: re.Match[str]) -> bool:
    name, _, domain = match["found"].rpartition("@")
    return not (name == "git" or RESERVED_DOMAIN.search(domain) or domain.rpartition(".")[2].lower() in FILE_ENDINGS)


def _is_north_american(match: re.Match[str]) -> bool:
    """Three, three and four digits are a number even where nobody has it (123-456-7890); 555-01xx is for films."""
    return not (match["exchange"] == "555" and match["line"].startswith("01"))


def _is_phone(match: re.Match[str]) -> bool:
    """9 to 15 digits (E.164) behind a plus, 7 to 15 behind a word that announces a number, and not the film range."""
    digits = "".join(c for c in match["found"] if c.isdigit())
    fewest = 9 if match["found"].startswith("+") else 7
    most = 15 if digits != match["found"].lstrip("+") else 13  # without a gap a longer one is a sum
    return fewest <= len(digits) <= most and not re.search(r"55501\d\d$", digits) and len(set(digits)) > 1


def _is_ipv4(match: re.Match[str]) -> bool:
    """A public address. Four single digits are a version, an outline number or a public resolver (1.2.3.4, 8.8.8.8)."""
    parts = match[0].split(".")
    if any(len(p) > 1 and p[0] == "0" for p in parts) or all(len(p) == 1 for p in parts):
        return False
    before = match.string[max(0, match.start() - CONTEXT_CHARACTERS) : match.start()]
    return ipaddress.IPv4Address(match[0]).is_global and not VERSION_BEFORE.search(before)


def _is_ipv6(match: re.Match[str]) -> bool:
    try:
        return ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False


def _is_random(match: re.Match[str]) -> bool:
    """Digits and two of lower case, upper case, others; and no placeholder."""
    text = match["found"]
    others = not text.isalnum()
    num_classes = sum((any(map(str.islower, text)), any(map(str.isupper, text)), any(map(str.isdigit, text)), others))
    return num_classes >= NUM_CLASSES and any(map(str.isdigit, text)) and not PLACEHOLDER.search(text)


def _has_digit_and_capital(match: re.Match[str]) -> bool:
    return any(map(str.isdigit, match[0])) and any(map(str.isupper, match[0]))


def _is_jwt(match: re.Match[str]) -> bool:
    head = match[0].split(".")[0]
    try:
        return b'"' in base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    except ValueError:
        return False


def _is_not_placeholder(match: re.Match[str]) -> bool:
    text = match["found"]
    return not PLACEHOLDER.search(text) and text.lower() not in PLAIN_WORDS and len(set(text)) >= NUM_CLASSES


def _has_key_body(match: re.Match[str]) -> bool:
    """A header alone is documentation."""
    return re.search("[A-Za-z0-9+/]{40}", match[0]) is not None


def _iban_forms() -> str:
    """Each country with its length, single spaces anywhere: a following word in capitals is not taken for a part of it."""
    by_length: dict[int, list[str]] = {}
    for country, length in IBAN_LENGTHS.items():
        by_length.setdefault(length, []).append(country)
    return "|".join(f"(?:{'|'.join(c)})[0-9]{{2}}(?:[ \u00a0]?[A-Z0-9]){{{n - 4}}}" for n, c in by_length.items())


def _token(name: str, hint: str, pattern: str, *, holds: Holds = lambda _: True) -> Rule:
    whole = re.compile(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])")
    return Rule(kind="secret", name=name, hint=hint, pattern=whole, holds=holds, mask=_head(4))


SECRETS = (
    Rule(
        kind="secret", name="private_key", hint="-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
        holds=_has_key_body,
        pattern=re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\w+/=\s\\:,.()]*(?:-[\w+/=\s\\:,.()]+)*(?:-----END [A-Z0-9 ]*-----)?"
        ),
    ),
    _token("aws_access_key", "A[KS]IA", r"A[KS]IA[A-Z0-9]{16}"),
    Rule(
        kind="secret", name="aws_secret_key", hint="(?i)aws.{0,24}(?:secret|key)",
        pattern=re.compile(r"(?i:aws\w{0,24}(?:secret|key)\w{0,16})[\"']?\s*[:=]+\s*[\"']?(?P<found>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])"),
    ),
    _token("huggingface_token", "hf_[A-Za-z0-9]{30}", r"hf_[A-Za-z0-9]{30,}"),
    _token("openai_key", "sk-[A-Za-z0-9_-]{20}", r"sk-[A-Za-z0-9_-]{20,}", holds=_has_digit_and_capital),
    _token("github_token", "gh[pousr]_[A-Za-z0-9]{36}|github_pat_", r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    _token("slack_token", "xox[abeprs]-", r"xox[abeprs]-[A-Za-z0-9-]{10,}", holds=lambda m: any(map(str.isdigit, m[0]))),
    _token("slack_webhook", "hooks.slack.com/services/", r"hooks\.slack\.com/services/T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]{20,}"),
    _token("google_key", "AIza", r"AIza[A-Za-z0-9_-]{35}"),
    _token("stripe_key", "[rs]k_(?:live|test)_", r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _token("jwt", "eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}", holds=_is_jwt),
    Rule(
        kind="secret", name="url_password", hint="://[^/\\s]*@", holds=_is_not_placeholder,
        pattern=re.compile(r"(?<![A-Za-z0-9+])[A-Za-z][A-Za-z0-9+]{1,15}://[^\s/:@]{1,64}:(?P<found>[^\s/@]{4,128})@[A-Za-z0-9]"),
    ),
    Rule(
        kind="secret", name="assigned_password", hint="(?i)passw|pwd|secret|api.?key|token", holds=_is_random,
        pattern=re.compile(
            r"(?i:(?:passwd|password|pwd|secret|api[_-]?key|token))[\"']?\s{0,4}[:=]{1,2}\s{0,4}(?P<quote>[\"'`])"
            r"(?P<found>[^\s\"'`]{8,128})(?P=quote)"
        ),
    ),
)  # fmt: skip

RULES = (
    *SECRETS,
    Rule(
        kind="email", name="email", hint=r"@\w", mask=_masked_email, holds=_is_email,
        pattern=re.compile(
            rf"(?<![{LETTER}._%+-])[._%+-]*(?P<found>[{LETTER}][{LETTER}._%+-]*(?<![.])@(?:[{LETTER}][{LETTER}-]*\.)+[A-Za-z]{{2,24}})(?![{LETTER}_(])"
        ),
    ),
    Rule(
        kind="iban", name="iban", hint="[A-Z]{2}[0-9]{2}[ \u00a0]?[A-Z0-9]{4}", has_digits=True, mask=_tail(4),
        pattern=re.compile(rf"(?<![A-Za-z0-9])(?:{_iban_forms()})(?![A-Za-z0-9])"),
        holds=lambda m: is_iban(m[0]),
    ),
    Rule(
        kind="card", name="card", hint="[0-9](?:[ \u00a0-]?[0-9]){12}", has_digits=True, mask=_tail(4),
        pattern=re.compile("(?<![A-Za-z0-9.,_-])(?:[0-9]{13,19}|[0-9]{4}(?:[ \u00a0-][0-9]{4}){3}|3[0-9]{3}[ \u00a0-][0-9]{6}[ \u00a0-][0-9]{4,5})(?![A-Za-z0-9_]|[.,-][0-9])"),
        holds=lambda m: is_card(m[0]),
    ),
    Rule(
        kind="ssn", name="us_ssn", hint="[0-9]{3}-[0-9]{2}-[0-9]{4}", has_digits=True, mask=lambda _: "***-**-****",
        pattern=re.compile("(?<![A-Za-z0-9.-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![A-Za-z0-9]|[.-][0-9])"),
    ),
    Rule(
        kind="ip", name="ipv4", hint=r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]", holds=_is_ipv4,
        mask=lambda text: f"{text.split('.')[0]}.***",
        pattern=re.compile(r"(?<![A-Za-z0-9.-])(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?![A-Za-z0-9]|[.-][0-9])"),
    ),
    Rule(
        kind="ip", name="ipv6", hint="[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:", holds=_is_ipv6, mask=lambda text: f"{text[:4]}:***",
        pattern=re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,34}(?<![^:]:)(?!\w|:[\w:])"),
    ),
    Rule(
        kind="phone", name="north_american", hint="[0-9]{3}[)]?[ .\u00a0\u2010\u2011-]{0,2}[0-9]{3}", has_digits=True,
        holds=_is_north_american, mask=_tail(2),
        pattern=re.compile(
            rf"(?<![\w.+-])(?:1{GAP})?(?:\([0-9]{{3}}\){GAP}?|[0-9]{{3}}(?P<gap>[.\-\u2010\u2011]))"
            rf"(?P<exchange>[0-9]{{3}})(?(gap)(?P=gap)|{GAP})(?P<line>[0-9]{{4}})(?!\w|[.-][0-9])"
        ),
    ),
    Rule(
        kind="phone", name="international", hint=r"[+][ (]?[0-9]", has_digits=True, holds=_is_phone, mask=_tail(2),
        pattern=re.compile(rf"(?<![\w+])(?P<found>[+][1-9](?:(?:{GAP}|[()/]){{0,3}}[0-9]){{6,16}})(?!\w|[.-][0-9])"),
    ),
    Rule(
        kind="phone", name="announced", hint="(?i)phone|tel|mobile|cell|fax|whatsapp", has_digits=True, holds=_is_phone, mask=_tail(2),
        pattern=re.compile(
            r"(?i)(?<![\w\[])(?:phone|tele?phone|tel|mobile|cell|fax|whatsapp)(?: number| no)?[.:\s]{0,3}(?:is |at )?"
            rf"(?P<found>[(+]?[0-9](?:(?:{GAP}|[()/]){{0,3}}[0-9]){{6,14}})(?!\w|[.-][0-9])"
        ),
    ),
)  # fmt: skip
"""Earlier rules win where two find the same place."""
KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))
