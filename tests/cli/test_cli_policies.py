"""`vlkv policies`, and `vlkv run` under each of them."""

from __future__ import annotations

from dataclasses import fields

import msgspec
import pytest

from vlkv import POLICIES, Policy
from vlkv.cli.main import main


def run(capfd, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), *capfd.readouterr()


def test_table_has_every_field_of_every_policy(capfd):
    code, out, err = run(capfd, "policies")
    assert (code, err) == (0, "")
    table, auto, protected = out.split("\n\n")
    assert auto.startswith("auto takes one by the prompt: picture-once for")
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["field", *POLICIES]
    assert [line[0] for line in lines[1:]] == [field.name for field in fields(Policy) if field.name != "name"]
    assert all(len(line) == 1 + len(POLICIES) for line in lines)
    cells = {line[0]: dict(zip(POLICIES, line[1:], strict=True)) for line in lines[1:]}
    assert cells["merge"]["elastic"] == "nearest_mean"
    assert cells["recent"]["vl-cache"] == "0.1"
    assert cells["keep_observed"]["snapkv"] == "yes"
    assert (cells["recall"]["snapkv"], cells["recall"]["recall-question"]) == ("None", "0.25/16")
    assert protected.splitlines()[0] == "Stays whatever its score:"
    said = dict(line.strip().split(": ") for line in protected.splitlines()[1:])
    assert said == {name: policy.protected for name, policy in POLICIES.items()}
    assert said["full"] == "every token"
    assert said["elastic"] == "the first token; the last token"
    assert "text before image tokens, up to 50% of a layer's share" in said["shared-question"]


def test_json_gives_the_records_back(capfd):
    code, out, _ = run(capfd, "policies", "--json")
    assert code == 0
    assert msgspec.json.decode(out, type=dict[str, Policy]) == POLICIES


@pytest.mark.parametrize("name", POLICIES)
def test_run_under_each(capfd, built_of, pictures, name):
    budget = () if name == "full" else ("--budget", "0.2")
    # pages of evicted tokens do not go with sliding windows
    shape = "mistral" if POLICIES[name].recall is None else "llama-gqa-tied"
    code, out, _ = run(
        capfd, "run", built_of(shape), "--image", pictures[0], "--prompt", "what is the total of form",
        "--policy", name, *budget, "--max-new-tokens", 6, "--json",
    )  # fmt: skip
    got = msgspec.json.decode(out)
    assert (code, got["policy"], len(got["token_ids"])) == (0, name, 6)
    assert got["budget"] == (1.0 if name == "full" else 0.2)
    share = sum(got["kept_tokens"]) / len(got["kept_tokens"]) / got["prompt_tokens"]
    assert share == pytest.approx(got["budget"], abs=1 / got["prompt_tokens"])


def test_a_budget_that_full_does_not_take(capfd, built_of):
    code, _, err = run(
        capfd, "run", built_of("mistral"), "--prompt", "what", "--policy", "full", "--budget", "0.5"
    )
    assert code == 2
    assert "does not fit policy 'full', which keeps everything" in err
