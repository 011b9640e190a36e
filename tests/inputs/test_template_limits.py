"""Chat templates that never end or fill the memory are refused within seconds, in one line."""

from __future__ import annotations

import re
from time import process_time

import pytest

from vlkv.errors import PromptError
from vlkv.inputs.prompt import render

R = "range(100000)"
M = "('x' * 1000000)"
DOUBLED = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"


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
        "{{ '%100000000000d'|format(1) }}",
        "{{ '%*d'|format(99999999999, 1) }}",
        "{{ '{:100000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, '100000000000') }}",
        "{{ '{a:100000000000}'.format_map({'a': 1}) }}",
        "{{ 'x'.encode().ljust(100000000000) }}",
        "{{ (1).to_bytes(100000000000, 'big') }}",
        "{{ [1]|tojson(indent=100000000000) }}",
        "{{ 9 ** 9999999 }}",
        f"{{% set a = {M} %}}{{{{ a|replace('x', a) }}}}",
        f"{{% set a = {M} %}}{{{{ a.replace('x', a) }}}}",
        f"{{% set a = {M} %}}{{{{ a.translate({{120: a}}) }}}}",
        f"{{{{ {M}.join(['y'] * 100000) }}}}",
        f"{{{{ (['y'] * 100000)|join({M}) }}}}",
        f"{{{{ ([{M}] * 100)|join }}}}",
        "{{ ('\t' * 100000).expandtabs(100000) }}",
        "{{ ('\n' * 100000)|indent(100000) }}",
        "{{ ([[1]] * 100000)|sum(start=[]) }}",
        "{{ (range(100000)|list * 150)|sort|length }}",
        "{{ (['a'] * 100000)|map('center', 1000000)|list|length }}",
        f"{{% set a = {M} %}}{{% for i in range(100000) %}}{{{{ a }}}}{{% endfor %}}",
        f"{{% set a = {M} %}}{{% set b %}}{{% for i in range(100000) %}}{{{{ a }}}}{{% endfor %}}{{% endset %}}",
        f"{{% set n = namespace(x=[]) %}}{{% for i in {R} %}}{{% set n.x = n.x + [{M} ~ i] %}}{{% endfor %}}",
        DOUBLED + "{{ n.x|tojson }}",
        DOUBLED + "{{ n.x }}",
        DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)") + "{{ n.x == n.x|list }}",
        DOUBLED.replace("[n.x, n.x]", "{'a': n.x, 'b': n.x}") + "{{ n.x|string|length }}",
        "x" * 300_000,
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
        "{{ '%02d'|format(3) }}{{ '{:>3}'.format(4) }}{{ 'a b'.replace(' ', '-')|replace('-', '_') }}"
        "{{ {'a': [1, (2, 3)]}|tojson(indent=1)|length }}{{ ['x', 'y']|join(',') }}{{ [1, 2]|sum }}"
    )
    content = [{"type": "image"}, {"type": "text", "text": "hi"}]
    messages = [{"role": "user", "content": content}, {"role": "x", "content": []}]
    assert render(template, messages, {}) == "0:user: <image>, hi---3  a  32ab  |03  4a_b38x,y3"
    assert re.fullmatch("none3.*", render(template, [], {}))
    for _ in range(3):
        render("{% for a in range(900) %}{% for b in range(900) %}{% endfor %}{% endfor %}", [], {})
