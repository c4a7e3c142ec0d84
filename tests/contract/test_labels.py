"""Files of labels, as people have them."""

import json

import pytest

from clothing_contract import ContractError
from clothing_contract.labels import read_file, read_list

BEES = ("bees", "wasps")


@pytest.mark.parametrize(
    "data",
    [
        b"bees\nwasps\n",
        b"bees\r\nwasps\r\n",
        b"bees\rwasps",
        b"\n bees \n\n wasps\n\n",
        b"\xef\xbb\xbfbees\r\nwasps\r\n",
        "bees\r\nwasps\r\n".encode("utf-16"),
        b"\xfe\xff" + "bees\nwasps\n".encode("utf-16-be"),
        b'["bees", "wasps"]',
        b'\xef\xbb\xbf["bees", "wasps"]',
        b'{"bees": 0, "wasps": 1}',
        b'{"wasps": 1, "bees": 0}',
        b'{"0": "bees", "1": "wasps"}',
        b"0 bees\n1 wasps\n",
        b"0,bees\n1,wasps\n",
        b"0: bees\n1: wasps\n",
        b"bees,0\nwasps,1\n",
        b"bees\t0\nwasps\t1\n",
        b"id,label\n0,bees\n1,wasps\n",
        b"label;index\r\nbees;0\r\nwasps;1\r\n",
        b"- bees\n- wasps\n",
        b'"bees"\n"wasps"\n',
        b'0,"bees"\n1,"wasps"\n',
        b'{"model_type": "vit", "id2label": {"0": "bees", "1": "wasps"}}',
    ],
)
def test_the_forms_that_people_have(data):
    assert read_file(data) == BEES


def test_teachable_machine():
    assert read_file(b"0 Class 1\n1 Class 2\n") == ("Class 1", "Class 2")


@pytest.mark.parametrize(
    "lines",
    [
        ("1 litre", "2 litres"),
        ("0 of these", "one"),
        ("3 cats",),
        ("0", "1"),
        ("hat, straw", "1, 2", "cap"),
        ("room:0", "room:1"),
    ],
)
def test_numbers_that_belong_to_the_label(lines):
    assert read_file("\n".join(lines).encode()) == lines


def test_more_than_ten_indices_are_sorted_by_number():
    labels = [f"class-{number}" for number in range(12)]
    assert read_file(json.dumps({str(at): label for at, label in enumerate(labels)}).encode()) == tuple(labels)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "none"),
        (b"a\na\n", "each only once: a"),
        (b"caf\xe9\n", "neither UTF-8 nor UTF-16"),
        ("bees\nwasps\n".encode("utf-16-le"), "control characters: save them as UTF-8"),
        ("bees\nwasps\n".encode("utf-32"), "control characters: save them as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "is a Git LFS pointer: run"),
        (b"<!DOCTYPE html>\n<title>labels.txt</title>", "is a page or XML"),
        (b'["a", 1]', "JSON labels are a list"),
        (b'{"a": 0, "b": 2}', "with numbers from 0 up"),
        (b'{"a": "b"}', "JSON labels are"),
        (b'["a"', "begin like JSON and are none"),
    ],
)
def test_what_is_refused(data, words):
    with pytest.raises(ContractError, match=words):
        read_file(data)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("bees,wasps", BEES),
        (" bees , wasps ", BEES),
        ('["bees", "wasps"]', BEES),
        ('{"bees": 0, "wasps": 1}', BEES),
        ('["hat, straw", "cap"]', ("hat, straw", "cap")),
        ("bees", ("bees",)),
    ],
)
def test_lists_of_options_and_settings(text, labels):
    assert read_list(text) == labels


@pytest.mark.parametrize("text", ["a,a", "a,,b", ",", '["a", ""]', '["a"', "[]", '["a", "a"]', "[" * 100_000])
def test_lists_that_are_refused(text):
    with pytest.raises(ContractError):
        read_list(text)
