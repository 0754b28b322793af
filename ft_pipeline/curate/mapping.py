"""Columns of any dataset under the names of a known layout: a Jinja template for each name, in a sandbox."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from ft_pipeline.curate.artifact import Reason, Rejection, rejected
from ft_pipeline.errors import RecipeError, did_you_mean

KEYS = frozenset(
    {
        "messages", "conversations", "conversation", "system", "tools", "instruction", "input", "output", "history", "prompt", "completion",
        "response", "question", "answer", "query", "problem", "solution", "text", "chosen", "rejected", "label", "kto_tag", "ground_truth",
        "completions", "steps", "labels",
    }
)  # fmt: skip
"""What `normalize` reads."""
WHOLE_ROW = "row"
"""In a template: the row itself, for columns whose name is no identifier. A column of this name comes first."""
MAX_DEPTH = 64
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError, RecursionError)
"""What an expression over other values than expected raises, beside Jinja's own errors."""

Row = Mapping[str, Any]
Template = Callable[[dict[str, Any]], Any]


def open_mapping(mapping: Mapping[str, str] | None) -> Callable[[Row], Row | Rejection]:
    """The function that maps a row; only the mapped keys exist afterwards. None maps nothing.

    A template that is one expression passes its value on as it is, so `{{ column }}` can be messages; any other gives text. Undefined
    names fail, and so does a null or a list within text, or Python's spelling of it would be trained on. Made once per process; 1 us a row for bare columns, 8 a
    template. Raises RecipeError for an unknown key and a template that does not parse.
    """
    if mapping is None:
        return lambda row: row
    _refuse_unknown(mapping)
    made = {key: _compiled(key, text) for key, text in mapping.items()}
    return functools.partial(_mapped, made)


def _refuse_unknown(mapping: Mapping[str, str]) -> None:
    if not mapping:
        raise RecipeError("mapping is empty", why="No row would have any content.", cure="leave it out, or map a key")
    if unknown := next((key for key in mapping if key not in KEYS), None):
        raise RecipeError(
            f"mapping.{unknown}: no layout has such a key",
            why=f"Known keys: {', '.join(sorted(KEYS))}.",
            cure=did_you_mean(unknown, KEYS),
        )


def _mapped(templates: Mapping[str, Template], row: Row) -> Row | Rejection:
    from jinja2 import TemplateError

    names = {WHOLE_ROW: row, **row}
    made: dict[str, Any] = {}
    for key, template in templates.items():
        try:
            made[key] = template(names)
        except (TemplateError, *FAILURES) as error:
            return rejected(Reason.MAPPING_FAILED, key, f"{type(error).__name__}: {error}")
    return made


def _compiled(key: str, text: str) -> Template:
    from jinja2 import TemplateSyntaxError, nodes

    try:
        parsed = _environment().parse(text)
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"mapping.{key}: {text!r} is no Jinja template, line {error.lineno}: {error.message}",
            cure="write a column as {{ name }}, text around it as it is",
        ) from None
    expression = _only_expression(parsed)
    if isinstance(expression, nodes.Name):
        return functools.partial(_column, expression.name)
    return _rendered(key, text) if expression is None else _valued(key, text, expression)


def _only_expression(parsed: Any) -> Any:
    """The expression that the template consists of, None for any other template."""
    from jinja2 import nodes

    found = parsed.body[0].nodes if len(parsed.body) == 1 and isinstance(parsed.body[0], nodes.Output) else []
    return found[0] if len(found) == 1 and not isinstance(found[0], nodes.TemplateData) else None


def _column(name: str, names: dict[str, Any]) -> Any:
    if name not in names:
        raise LookupError(f"{name!r} is no column: {', '.join(sorted(map(str, names.keys() - {WHOLE_ROW})))}")
    return names[name]


def _rendered(key: str, text: str) -> Template:
    template = _from(key, text, text)
    return lambda names: template.render(names)


def _valued(key: str, text: str, expression: Any) -> Template:
    """The value of an expression, as Jinja's own `compile_expression` gets it."""
    from jinja2 import nodes

    body = nodes.Template([nodes.Assign(nodes.Name("value", "store", lineno=1), expression, lineno=1)], lineno=1)
    template = _from(key, text, body.set_environment(_environment()))

    def value(names: dict[str, Any]) -> Any:
        context = template.new_context(names)
        for _ in template.root_render_func(context):
            pass
        return _plain(context.vars["value"])

    return value


def _from(key: str, text: str, source: Any) -> Any:
    """Compiles; unknown filters show only here."""
    from jinja2 import TemplateError

    try:
        return _environment().from_string(source)
    except TemplateError as error:
        raise RecipeError(f"mapping.{key}: {text!r}: {error}", cure="see jinja.palletsprojects.com/templates") from None


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it. Raises TypeError, and Jinja's error for something undefined within."""
    from jinja2 import Undefined

    if isinstance(value, Undefined):
        str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)  # some filters give Markup
    if depth > MAX_DEPTH or callable(value):
        raise TypeError(f"{type(value).__name__} is no value of a row")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, depth + 1) for key, inner in value.items()}
    return [_plain(inner, depth + 1) for inner in value]


@functools.cache
def _environment() -> Any:
    """Jinja without what differs from run to run, and with text kept as it is."""
    from jinja2 import StrictUndefined, UndefinedError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """`a.items` is the key of a column's object before it is a method."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            """As Jinja's, keys first."""
            return obj[attribute] if isinstance(obj, dict) and attribute in obj else super().getattr(obj, attribute)

    def written(value: Any) -> Any:
        if value is None:
            raise UndefinedError("a null within text: write {{ name or '' }} for nothing")
        if isinstance(value, list | dict):
            raise TypeError(
                "a list or object within text: use | tojson, or nothing around the expression, no line break either"
            )
        return value

    made = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=written)
    made.filters["tojson"] = lambda value, **more: json.dumps(value, ensure_ascii=False, **more)
    made.filters["fromjson"] = json.loads
    del made.filters["random"], made.globals["lipsum"]
    return made
