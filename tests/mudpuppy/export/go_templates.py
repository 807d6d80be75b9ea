"""An interpreter of the few words of Go's text/template that our Ollama templates are made of."""

from __future__ import annotations

import re

ACTION = re.compile(r"(\{\{.*?\}\})", re.DOTALL)


def render(template, messages):
    """Return what Ollama makes of a conversation of (role, words)."""
    system = "\n\n".join(words for role, words in messages if role == "system")
    tree, rest = _parse(ACTION.split(template))
    assert not rest
    scope = {".System": system, ".Messages": messages, ".Prompt": messages[-1][1]}
    return _run(tree, scope)


def _parse(tokens):
    """Return a list of nodes, and what follows the `end` or `else` that closes it."""
    nodes = []
    while tokens:
        token, *tokens = tokens
        if not token.startswith("{{"):
            nodes.append(("text", token))
            continue
        words = token[2:-2].strip()
        if words == "end" or words.startswith("else"):
            return nodes, [token, *tokens]
        if words.startswith(("if ", "range ")):
            node, tokens = _parse_block(words, tokens)
            nodes.append(node)
        else:
            nodes.append(("do", words))
    return nodes, tokens


def _parse_block(words, tokens):
    kind, what = words.split(" ", 1)
    body, (token, *tokens) = _parse(tokens)
    other = []
    closing = token[2:-2].strip()
    if closing == "else":
        other, (token, *tokens) = _parse(tokens)
        assert token[2:-2].strip() == "end"
    elif closing.startswith("else if "):
        node, tokens = _parse_block(closing.removeprefix("else "), tokens)
        other = [node]
    else:
        assert closing == "end", closing
    return (kind, what, body, other), tokens


def _run(nodes, scope):
    text = ""
    for node in nodes:
        kind, what, *rest = node
        if kind == "text":
            text += what
        elif kind == "if":
            text += _run(rest[0] if _is_true(what, scope) else rest[1], scope)
        elif kind == "range":
            for role, words in scope[what]:
                scope[".Role"], scope[".Content"] = role, words
                text += _run(rest[0], scope)
        elif ":=" in what or " = " in what:
            name, value = re.split(r" :?= ", what)
            scope[name] = _value(value, scope)
        else:
            text += _value(what, scope)
    return text


def _is_true(what, scope):
    if what.startswith("not "):
        return not _value(what.removeprefix("not "), scope)
    if what.startswith("eq "):
        _, left, right = what.split(" ", 2)
        return _value(left, scope) == _value(right, scope)
    return bool(_value(what, scope))


def _value(what, scope):
    return what[1:-1] if what.startswith('"') else scope[what]
