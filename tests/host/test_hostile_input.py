# SPDX-License-Identifier: Apache-2.0
"""Whatever a parser gets, it returns a value or names the mistake: no other exception, and no value out of range."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from ghostbpf.hints.layout import CLASS, ITEM, ClassFlags, Item, ItemFlags, WorkClass
from ghostbpf.schedulers import hierarchy, stay_alive
from ghostbpf.schedulers.agents import AgentPolicySpec
from ghostbpf.schedulers.classes import SchedulingClass
from ghostbpf.schedulers.cpuset import CpuListError, CpuSet
from ghostbpf.schedulers.eject import Dump, explain
from ghostbpf.schedulers.policy import Option, OptionError, duration_ns
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.tools.record.events import Raw
from hypothesis import example, given, settings
from hypothesis import strategies as st

EXAMPLES = Path(__file__).parents[2] / "examples"
DUMPS = [path.read_text() for path in sorted((Path(__file__).parent / "dumps").iterdir())]
TREE = (EXAMPLES / "co-location.toml").read_text()

#: Text as it may come from a command line or a file, and text made of the characters that parsers look at.
TEXTS = st.text() | st.text("0123456789-+,:/%.eE_ xnmusinfNaA\n")


def options_of(name: str) -> tuple[Option, ...]:
    return POLICIES[name].options


def scrambled(text: str, seed: int) -> str:
    """``text`` with lines dropped, doubled, swapped and cut, and characters replaced."""
    choose = random.Random(seed)
    lines = text.splitlines(keepends=True)
    for _ in range(choose.randrange(1, 8)):
        at, other = choose.randrange(len(lines)), choose.randrange(len(lines))
        line = lines[at]
        cut = choose.randrange(len(line) + 1)
        lines[at : at + 1] = choose.choice(
            (
                [],
                [line, line],
                [lines[other]],
                [line[:cut]],
                [line[:cut] + choose.choice("\0\"'[]{}=.#,-9\N{SNOWMAN}\n") + line[cut + 1 :]],
                [line[:cut] + "9" * choose.choice((1, 25, 5000)) + line[cut:]],
            )
        )
        lines = lines or [text]
    return "".join(lines)


@given(TEXTS)
@example("0-" + "9" * 5000)
@example("0-99999999999")
@example("\u0661-\u0663")
def test_cpu_list_is_a_set_or_named(text: str) -> None:
    try:
        cpus = CpuSet.parse(text)
    except CpuListError:
        return
    assert CpuSet.parse(str(cpus)) == cpus


@given(TEXTS | st.text("0123456789abcdefABCDEF,x"))
def test_cpu_mask_is_a_set_or_named(text: str) -> None:
    with contextlib.suppress(CpuListError):
        assert CpuSet.from_mask(CpuSet.from_mask(text).mask()) == CpuSet.from_mask(text)


@pytest.mark.parametrize("name", POLICIES)
@given(data=st.data())
@settings(max_examples=40)
def test_option_fits_the_policys_parameters_or_is_named(name: str, data: st.DataObject) -> None:
    policy = POLICIES[name]
    option = data.draw(st.sampled_from(options_of(name)))
    text = data.draw(TEXTS | st.integers().map(str) | st.sampled_from(["nan", "1e999s", "-1", "9" * 5000, "0x10"]))
    named: list[str | None] = []
    try:
        value = policy.parse({option.name: text}).values[option.field]
    except OptionError as error:
        named = [error.option]
    if named:
        assert named == [option.name]
        return
    ffi, struct = policy.params_type
    members = dict(ffi.typeof(struct).fields or ())
    if option.field in members:
        setattr(ffi.new(f"{struct} *"), option.field, value)  # OverflowError if it does not fit
    else:
        assert isinstance(policy, AgentPolicySpec)
        ffi.new("s64 *", value)


@given(TEXTS)
def test_other_words_of_the_command_line_are_values_or_named(text: str) -> None:
    for parse in (duration_ns, stay_alive.timeout_ns, SchedulingClass.parse):
        with contextlib.suppress(ValueError):
            parse(text)


@given(st.integers(0, 2**32) | st.none(), st.text())
@example(None, "a = " + "[" * 5000)
@example(None, "child = [" + "{ child = [" * 2000)
@example(None, "arbiter = 1979-05-27")
@settings(max_examples=100)
def test_tree_is_read_or_its_mistake_named(
    tmp_path_factory: pytest.TempPathFactory, seed: int | None, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.toml"
    path.write_bytes((text if seed is None else scrambled(TREE, seed)).encode(errors="surrogatepass"))
    try:
        tree = hierarchy.read(str(path), POLICIES)
    except hierarchy.TreeError:
        return
    assert tree.leaves


@given(st.integers(0, 2**32), st.sampled_from(DUMPS))
@settings(max_examples=100)
def test_damaged_dump_is_explained(seed: int, text: str) -> None:
    damaged = scrambled(text, seed)
    first, _, dump = damaged.partition("\n")
    for message in (first, first.partition("(")[2].removesuffix(")")):
        why = explain(first, message, dump, POLICIES)
        assert why.decision
        assert why.remedy


@given(st.text() | st.text(" *+-[]0123456789abcpudsqenclRS:=\n"))
def test_any_text_is_a_dump(text: str) -> None:
    Dump.parse(text)


@given(st.binary(min_size=ITEM.size, max_size=ITEM.size), st.integers(1, 64))
def test_item_of_any_bytes_names_a_class_that_exists(content: bytes, classes: int) -> None:
    item = Item.checked(ITEM.unpack(content)[1:], classes)
    assert 0 <= item.work_class < classes
    assert item.flags & ~ItemFlags.RUNNABLE == 0


@given(st.binary(min_size=CLASS.size, max_size=CLASS.size))
def test_class_of_any_bytes_is_one_shot_or_repeating_or_unused(content: bytes) -> None:
    found = WorkClass.checked(CLASS.unpack(content)[1:])
    assert found.flags in (0, ClassFlags.ONE_SHOT, ClassFlags.REPEATING)
    assert found.period_ns or not found.repeating


@given(st.binary(max_size=64))
def test_name_of_any_bytes_is_text(content: bytes) -> None:
    [name] = {Raw(4)._text((int.from_bytes(content[:8], "little"), int.from_bytes(content[8:16], "little")))}
    assert "\0" not in name
