"""Personal data and secrets: what is found and what is not, where, how it is shown, and that nothing is left after redaction."""

from __future__ import annotations

import copy
import itertools
import json
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ft_pipeline.curate.artifact import Reason
from ft_pipeline.curate.flags import Batch
from ft_pipeline.curate.pii import MAX_FLAGS, pii, redact, spans
from ft_pipeline.curate.pii_numbers import IBAN_LENGTHS, is_card, is_iban, luhn_holds
from ft_pipeline.curate.pii_patterns import DIGITS_HINT, KINDS, RULES
from ft_pipeline.recipe import Pii, PiiKind

JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY = "-----BEGIN RSA PRIVATE" + " KEY-----\n" + "Ab0/" * 30 + "\n-----END RSA PRIVATE KEY-----"
FOUND = {
    "email": [
        "john.doe+tag@mail.acme.co.uk", "J_Doe@acme.de", "j\u00fcrgen@m\u00fcller.de", "alerts@info6.citi.com", "a@b.io",
    ],
    "phone": [
        "(415) 555-2671", "415-867-5309", "415.867.5309", "1-800-335-4824", "+1 415 555 2671", "+14155552671", "+49 30 12345678",
        "+44 (0)20 7946 0018", "+33\u00a01\u00a042\u00a068\u00a053\u00a000",
    ],
    "ip": ["81.2.69.142", "212.58.244.20", "2606:4700:4700::1111", "2a00:1450:4009:80b:0:0:0:200e", "2a00:1450::"],
    "card": ["4111 1111 1111 1111", "4012888888881881", "5555-5555-5555-4444", "3782 822463 10005", "378282246310005", "6011000990139424"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO9386011117947", "MT84MALT011000012345MTLCAST001S"],
    "ssn": ["123-45-6789", "856-45-6789"],
    "secret": [
        "AKIA" + "IOSFODNN7EXAMPLE", "hf_" + "aB" * 17, "sk-" + "proj-abcDEF123456789012345678", "ghp_" + "a1" * 18,
        "github_pat_" + "A1" * 30, "xoxb-" + "123456789012-abcdefghij", "AIza" + "a1" * 17 + "b", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
        JWT, KEY, "https://hooks.slack.com/services/" + "T0000/B0000/" + "X1" * 12,
    ],
}  # fmt: skip
NOT_FOUND = [
    "jane@example.com", "jane@mail.example.org", "root@localhost", "me@host.test", "you@yourdomain.com", "git@github.com:o/r.git",
    "q@k.transpose(1)", "logo@2x.png", "@property", "actions/checkout@v4", "lodash@4.17.21", "a @ b.com",
    "555-0123", "(212) 555-0199", "+1 212 555 0142", "1990-05-15", "4600 - 1286 + 4983", "sum +960397912423686", "ISBN 978-3-16-148410-0",
    "10.0.0.1", "192.168.1.254", "127.0.0.1", "203.0.113.9", "1.2.3.4", "8.8.8.8", "v10.20.30.40", "version 10.20.30.40", "256.1.1.1",
    "1.2.3.4.5", "2001:db8::1", "fe80::1", "12:30:45", "std::vector", "2021:05:06", "00:1B:44:11:3A:B7",
    "4111 1111 1111 1112", "1234567890123456", "3.1415926535897932384", "0.4111111111111111", "DE89 3704 0044 0532 0130 01", "XX89370400440532013000",
    "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "2023-12-3456",
    "sk-learn-contrib-is-a-nice-package", "hf_hub_download", "xoxo-hugs-and-kisses", "eyJ is how a token begins",
    "-----BEGIN PRIVATE KEY----- is its first line", 'password = "your_password1A"', 'token = "<TOKEN>"', 'password: "Hello-World"',
    "postgres://user:password@localhost/db", "https://example.com/a@b",
]  # fmt: skip
CONTEXT = {
    'password = "hunter2Ab!"': 'password = "[SECRET]"',
    "'api_key': 'q8Zr4tYw2'": "'api_key': '[SECRET]'",
    "postgres://bob:s3cr3tpw@db.acme.io/x": "postgres://bob:[SECRET]@db.acme.io/x",
    "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY": "aws_secret_access_key = [SECRET]",
    "phone: 030 1234567.": "phone: [PHONE].",
    "Tel. 01234/567890, fax": "Tel. [PHONE], fax",
    "write to \u8054\u7cfbabc@qq.com\u5427": "write to \u8054\u7cfb[EMAIL]\u5427",
    "IBAN DE89 3704 0044 0532 0130 00 BANK": "IBAN [IBAN] BANK",
    "...ann@acme.io": "...[EMAIL]",
    "a@acme.io,b@acme.io;c@acme.io": "[EMAIL],[EMAIL];[EMAIL]",
}
PERSONAL = [text for texts in FOUND.values() for text in texts]


def text_batch(*texts):
    return Batch(["text"] * len(texts), [{"text": t} for t in texts], [""] * len(texts), list(texts))


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_found_whole_and_alone(kind, text):
    flags, _ = pii(text_batch(f"so: {text}, she said"), Pii())
    secret_part = text.removeprefix("https://")
    assert [(f.evidence["kind"], f.evidence["span"]) for f in flags] == [
        (kind, [4 + len(text) - len(secret_part), 4 + len(text)])
    ]
    assert (flags[0].filter, flags[0].action, flags[0].reason) == ("pii", "note", Reason.PERSONAL_DATA)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_only_looks_like_it(text):
    assert redact(f"so: {text}, she said") == f"so: {text}, she said"
    assert redact(text) == text


@pytest.mark.parametrize(("text", "expected"), CONTEXT.items())
def test_redaction_leaves_the_rest(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize("text", PERSONAL)
def test_evidence_cannot_be_used(text):
    (flag,) = pii(text_batch(text), Pii())[0]
    shown = flag.evidence["value"]
    letters = [c for c in text if c.isalnum()]
    assert text not in shown
    assert sum(c.isalnum() for c in shown.split(" (")[0]) <= max(4, len(letters) // 2)


def test_masks():
    batch = text_batch("john@acme.org", "4111 1111 1111 1111", "123-45-6789", "ghp_" + "a1" * 18)
    flags, _ = pii(batch, Pii())
    assert [f.evidence["value"] for f in flags] == [
        "j***@a***.org",
        "***1111",
        "***-**-****",
        "ghp_*** (40 characters)",
    ]


def test_policies():
    batch = text_batch("mail john@acme.org", "nothing here")
    assert pii(batch, Pii(policy="off")) == ([], {})
    for policy, action in (("flag", "note"), ("reject", "drop"), ("redact", "change")):
        flags, redacted = pii(batch, Pii(policy=policy))
        assert [(f.row, f.action) for f in flags] == [(0, action)]
        assert redacted == ({0: {"text": "mail [EMAIL]"}} if policy == "redact" else {})


def test_only_the_kinds_of_the_recipe():
    batch = text_batch("john@acme.org or 4111 1111 1111 1111")
    flags, redacted = pii(batch, Pii(kinds=("card",), policy="redact"))
    assert [f.evidence["kind"] for f in flags] == ["card"]
    assert redacted == {0: {"text": "john@acme.org or [CARD]"}}
    assert set(KINDS) == set(PiiKind.__args__)


def test_tool_arguments_keys_and_descriptions():
    content = {
        "messages": [
            {"role": "user", "content": "Write to her."},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "mail", "arguments": {"to": ["ann@acme.org"], "bob@acme.org": 1, "cid@acme.org": "x"}}}
                ],
            },
            {"role": "tool", "content": "sent\nfrom\n415-867-5309"},
        ],
        "tools": [{"type": "function", "function": {"name": "mail", "description": "Ask dan@acme.org", "parameters": {"n": 3, "b": None}}}],
    }  # fmt: skip
    before = copy.deepcopy(content)
    batch = Batch(["chat"], [content], [""], [""])
    flags, redacted = pii(batch, Pii(policy="redact"))
    assert content == before
    arguments = "messages[1].tool_calls[0].function.arguments"
    assert [f.evidence["path"] for f in flags] == [
        f"{arguments}.to[0]", f"{arguments} key", f"{arguments} key", "messages[2].content", "tools[0].function.description",
    ]  # fmt: skip
    assert flags[3].evidence["span"] == [10, 22]
    made = redacted[0]
    call = made["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert call == {"to": ["[EMAIL]"], "[EMAIL]": 1, "[EMAIL] 3": "x"}
    assert made["tools"][0]["function"]["parameters"] == {"n": 3, "b": None}
    assert pii(Batch(["chat"], [made], [""], [""]), Pii()) == ([], {})


def test_a_path_does_not_tell_a_key():
    content = {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"arguments": {"ann@acme.org": "bob@acme.org"}}}]}
        ]
    }
    flags, _ = pii(Batch(["chat"], [content], [""], [""]), Pii())
    assert "acme" not in json.dumps([f.evidence for f in flags])


def test_many_findings_are_counted_and_all_redacted():
    text = " ".join(f"n{i}@acme.org" for i in range(1000))
    flags, redacted = pii(text_batch("", text), Pii(policy="redact"))
    assert len(flags) == MAX_FLAGS
    assert {f.evidence["found"] for f in flags} == {1000}
    assert redacted[1]["text"] == " ".join(["[EMAIL]"] * 1000)


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "a.", "a@", "1.", "1 ", "+1", "1-", "(", "A1", "-----BEGIN PRIVATE KEY-----", "eyJa.", "password='", "://a:", "2001:", "\u0100", "sk-", "phone "],
)  # fmt: skip
def test_long_lines_take_linear_time(unit):
    started = time.process_time()
    pii(text_batch((unit * 1_000_000)[:1_000_000] + "!"), Pii(policy="redact"))
    assert time.process_time() - started < 20


def test_nothing_in_nothing():
    assert pii(text_batch(), Pii()) == ([], {})
    assert pii(text_batch("", "\n", "\u200b"), Pii(policy="redact")) == ([], {})


PIECES = st.one_of(
    st.sampled_from(PERSONAL),
    st.sampled_from([*CONTEXT, *NOT_FOUND]),
    st.text(max_size=12),
    st.text(string.digits + " .-+()@:/", max_size=24),
    st.sampled_from(["phone ", "tel: ", "[PHONE] ", "+", "@", ".", "-", " ", "\n", "password='"]),
)


@given(st.lists(PIECES, max_size=8).map("".join))
@example("phone (415) 555-2671 4155552671")
@example("+1 415 555 2671415-867-5309123-45-6789")
def test_redaction_leaves_no_match_and_is_idempotent(text):
    clean = redact(text)
    assert spans(clean) == []
    assert redact(clean) == clean


@given(st.lists(PIECES, max_size=6).map("".join))
def test_spans_point_at_what_was_found_and_do_not_overlap(text):
    found = spans(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    flags, redacted = pii(text_batch(text), Pii(policy="redact"))
    assert [f.evidence["span"] for f in flags] == [[s.start, s.end] for s in found]
    assert redacted == ({0: {"text": redact(text)}} if found else {})


@given(st.lists(PIECES, max_size=4).map("".join))
def test_a_hint_never_hides_a_finding(text):
    import polars as pl

    series = pl.Series([text])
    for span in spans(text):
        assert series.str.contains(span.rule.hint)[0]
        assert not span.rule.has_digits or series.str.contains(DIGITS_HINT)[0]


@given(st.text(string.digits, min_size=1, max_size=18))
def test_luhn(digits):
    fitting = [c for c in string.digits if luhn_holds(digits + c)]
    assert len(fitting) == 1
    for place, digit in enumerate(digits):
        other = str((int(digit) + 1) % 10)
        assert not luhn_holds(digits[:place] + other + digits[place + 1 :] + fitting[0])


def test_lengths_of_cards():
    assert is_card("4111111111111111") and is_card("4111-1111 11111111")
    assert not is_card("411111111111111") and not is_card("9111111111111111") and not is_card("")


@given(st.sampled_from(sorted(IBAN_LENGTHS)), st.data())
def test_iban(country, drawn):
    length = IBAN_LENGTHS[country]
    body = drawn.draw(st.text(string.digits + string.ascii_uppercase, min_size=length - 4, max_size=length - 4))
    check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
    account = f"{country}{check:02d}{body}"
    assert is_iban(account)
    assert is_iban(" ".join(account[i : i + 4] for i in range(0, length, 4)))
    assert not is_iban(f"{country}{(check + 1) % 97:02d}{body}")
    assert not is_iban(account[:-1])


def test_rules_have_names_of_their_own():
    assert len({rule.name for rule in RULES}) == len(RULES)
