"""Chat templates that never end or fill the memory are refused within seconds, in one line."""

from __future__ import annotations

import re
from time import process_time

import pytest

from vlkv.errors import PromptError
from vlkv.inputs.prompt import render

R = "range(100000)"


@pytest.mark.parametrize(
    "template",
    [
        f"{{% for a in {R} %}}{{% for b in {R} %}}{{% for c in {R} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
        f"{{% set r = {R}|list %}}{{% for a in r %}}{{% for b in r if b < 0 %}}x{{% endfor %}}{{% endfor %}}",
        "{% for x in range(10) recursive %}{{ loop(range(10)) if loop.depth < 30 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 100000000000 }}",
        "{{ [1] * 100000000000 }}",
        "{{ 'x'.ljust(100000000000) }}",
        "{{ 'x'|center(100000000000) }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%100000000000d' % 1 }}",
        "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x|length }}",
        "{% set n = namespace(x='xx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x|length }}",
        "{{ lipsum(n=100000) }}",
    ],
)
def test_a_template_that_does_not_end_is_refused(template):
    start = process_time()
    with pytest.raises(PromptError, match=r"^chat template: ") as caught:
        render(template, [], {})
    assert process_time() - start < 30
    assert "\n" not in str(caught.value)


def test_what_templates_do_is_left_alone():
    template = (
        "{% macro part(p) %}{{ '<image>' if p.type == 'image' else p.text }}{% endmacro %}"
        "{% for m in messages if m.role != 'x' %}{{ loop.index0 ~ ':' ~ m.role + ': ' }}"
        "{% for p in m.content %}{{ part(p) }}{{ '' if loop.last else ', ' }}{% endfor %}{{ '-' * 3 }}"
        "{% else %}none{% endfor %}"
        "{{ 7 % 4 }}{{ 'a'|center(5) }}{{ 2 ** 5 }}{{ 'ab'.ljust(4) ~ '|' }}"
    )
    content = [{"type": "image"}, {"type": "text", "text": "hi"}]
    messages = [{"role": "user", "content": content}, {"role": "x", "content": []}]
    assert render(template, messages, {}) == "0:user: <image>, hi---3  a  32ab  |"
    assert re.fullmatch("none3.*", render(template, [], {}))
    for _ in range(3):
        render("{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}", [], {})
