import csv
import gzip
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from fairpriv.data import texts as module
from fairpriv.data.sources import Files
from fairpriv.data.texts import Example, Texts, choose, mix
from fairpriv.errors import InputError

PAIR = {"prompt": "prompt", "response": "response"}
ROWS = [
    {"prompt": "Café?", "response": "Yes.\r\nTwo\nmore lines."},
    {"prompt": 'A "quote", a comma', "response": " kept "},
]


def texts(tmp_path, name, content, columns=PAIR, where=None):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Texts(Files([name], folder=str(tmp_path)), columns, where or {})


def refused(tmp_path, name, content, columns=PAIR, where=None):
    with pytest.raises(InputError) as error:
        texts(tmp_path, name, content, columns, where).load()
    message = str(error.value)
    assert "\n" not in message
    return message


def write_table(path, delimiter):
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["prompt", "response"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    "a.csv": lambda path: write_table(path, ","),
    "a.tsv": lambda path: write_table(path, "\t"),
    "a.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "a.ndjson": lambda path: path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_pairs_character_for_character(tmp_path, name, packed):
    path = tmp_path / name
    WRITERS[name](path)
    if packed and name != "a.parquet":
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    found = Texts(Files([path.name], folder=str(tmp_path)), PAIR).load()
    assert [(e.prompt, e.response) for e in found] == [(row["prompt"], row["response"]) for row in ROWS]


def test_text_file_is_a_prompt_a_line(tmp_path):
    found = texts(tmp_path, "a.txt", "\ufeffOne?\r\n\n Two? \n", {"prompt": "prompt"}).load()
    assert found == [Example("One?", None, "a.txt, line 1"), Example(" Two? ", None, "a.txt, line 3")]


BLOCKS = "# head\n<1>\nOne?\nTwo?\n</1>\n\n<2>\nThree?\n</2>\n"


def test_a_table_under_the_name_of_a_text_file_is_refused_since_its_bytes_do_not_tell(tmp_path):
    columns = {"prompt": "prompt"}
    for header in ("prompt", '"prompt"', "id,prompt", "prompt\tsafe"):
        told = refused(tmp_path, "a.txt", f"\n{header}\nWhy?\n", columns)
        assert f"a.txt, line 2 is {header!r}, as a table begins: name the file .csv or .tsv" in told
    for first in ("Prompt me, please.", "A prompt.", "Say: prompt, then stop."):
        assert [one.prompt for one in texts(tmp_path, "a.txt", f"{first}\nWhy?", columns).load()] == [first, "Why?"]


def test_a_class_of_the_same_name_reads_for_itself(tmp_path):
    def made(suffix):
        def load(self, paths):
            return [replace(one, prompt=one.prompt + suffix) for one in Texts._load(self, paths)]

        return type("Texts", (Texts,), {"_load": load, "__module__": f"of{suffix}"})

    (tmp_path / "a.txt").write_text("Who?")
    for suffix in ("", "!", "?"):
        read = made(suffix)(Files(["a.txt"], folder=str(tmp_path)), {"prompt": "prompt"}).load()
        assert [one.prompt for one in read] == [f"Who?{suffix}"]


def test_text_file_of_blocks_is_read_by_a_pattern_that_says_what_it_passes_over(tmp_path, caplog):
    blocks = texts(tmp_path, "a.txt", BLOCKS, {"prompt": "prompt", "number": "n"})
    blocks.pattern = r"(?s)<(?P<n>\d)>\n(?P<prompt>.*?)\n</\d>"
    found = blocks.load()
    assert [(e.prompt, e.fields["number"], e.row) for e in found] == [
        ("One?\nTwo?", "1", "a.txt, line 2"),
        ("Three?", "2", "a.txt, line 7"),
    ]
    assert "the pattern passes over 1 line of no row" in caplog.text
    blocks.pattern = "(?P<prompt>x+)"
    with pytest.raises(InputError, match="nothing in it matches the pattern"):
        blocks.load()


def test_a_template_is_asked_and_is_part_of_the_content(tmp_path):
    plain = texts(tmp_path, "a.csv", "q\nOne {prompt}?\n", {"prompt": "q"})
    wrapped = Texts(plain.source, plain.columns, template="Say: {prompt} {other}")
    (one,) = wrapped.load()
    assert (one.prompt, one.asked) == ("One {prompt}?", [{"role": "user", "content": "Say: One {prompt}? {other}"}])
    assert wrapped.digest() != plain.digest()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"template": "no place"}, "must hold {prompt}"),
        ({"pattern": "(?P<a>"}, "is no regular expression"),
        ({"pattern": "(a)"}, "names no column"),
    ],
)
def test_a_pattern_or_template_that_cannot_work_is_refused(tmp_path, more, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Texts(Files(["a.txt"]), {"prompt": "prompt"}, **more)


def test_several_files_follow_one_another_and_rows_say_where_they_stand(tmp_path):
    (tmp_path / "b.jsonl").write_text('\n{"q": "three"}\n')
    (tmp_path / "a.csv").write_text('q\n"one\nand more"\n\ntwo\n')
    found = Texts(Files(["a.csv", "b.jsonl"], folder=str(tmp_path)), {"prompt": "q"}).load()
    assert [e.row for e in found] == ["a.csv, line 2", "a.csv, line 5", "b.jsonl, line 2"]
    assert found[0].prompt == "one\nand more"


BEAVER = [
    {
        "prompt": "1",
        "response": "x",
        "is_safe": True,
        "category": {"privacy": True, "hate": False},
        "tags": ["S1", "C"],
    },
    {"prompt": "2", "response": "x", "is_safe": False, "category": {"privacy": True, "hate": True}, "tags": ["S2"]},
    {"prompt": "3", "response": "x", "is_safe": True, "category": {"privacy": False, "hate": True}, "tags": []},
    {"prompt": "4", "response": "x", "is_safe": True, "category": {"privacy": None, "hate": False}, "tags": None},
    {"prompt": "5", "response": "x", "is_safe": None, "category": None, "tags": None},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"category.privacy": True, "is_safe": True}, "1"),
        ({"category.privacy": "true"}, "12"),
        ({"category.privacy": {"not_in": [True]}}, "3"),  # null and absent never match
        ({"is_safe": [True, False]}, "1234"),
        ({"prompt": 2}, "2"),
        ({"prompt": {"in": [1, 2.0, "3"], "not_in": ["1"]}}, "23"),
        ({"tags": {"contains": "s1"}}, "1"),
        ({"tags": {"not_contains": ["S1", "s2"]}}, "3"),
    ],
)
def test_filter_reads_nested_columns_and_leaves_out_what_is_null(tmp_path, name, where, kept):
    if name == "a.parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(BEAVER), tmp_path / name)
        found = Texts(Files([name], folder=str(tmp_path)), PAIR, where).load()
    else:
        found = texts(tmp_path, name, "\n".join(map(json.dumps, BEAVER)), where=where).load()
    assert "".join(e.prompt for e in found) == kept


def test_filter_compares_the_text_of_a_table_with_booleans_and_numbers(tmp_path):
    table = "prompt,safe,n,about.x\na,True,1,Race\nb,FALSE,2,AGE\nc,true,1,age and race\n"
    for where, kept in [
        ({"safe": True}, "ac"),
        ({"safe": False}, "b"),
        ({"n": 1}, "ac"),
        ({"about.x": {"contains": "AGE"}}, "bc"),  # a dot in the column's own name
        ({"about.x": {"contains": ["zzz", "age"], "not_contains": "race"}}, "b"),
    ]:
        found = texts(tmp_path, "a.csv", table, {"prompt": "prompt"}, where).load()
        assert "".join(e.prompt for e in found) == kept


def test_filter_finds_whole_numbers_that_a_table_writes_with_decimals(tmp_path):
    """As pandas does where a cell of the column is empty."""
    table = "prompt,unsafe\na,1.0\nb,0.0\nc,\nd,1\ne,0.5\nf,v1.0\n"
    for where, kept in [
        ({"unsafe": 1}, "ad"),
        ({"unsafe": "1.00"}, "ad"),
        ({"unsafe": [0, 0.5]}, "be"),
        ({"unsafe": {"not_in": [1]}}, "bcef"),
        ({"unsafe": {"contains": "1.0"}}, "af"),  # a part of a text stays as it is written
    ]:
        found = texts(tmp_path, "a.csv", table, {"prompt": "prompt"}, where).load()
        assert "".join(e.prompt for e in found) == kept


def test_values_that_the_filter_does_not_name_for_their_spelling_only_are_told(tmp_path, caplog):
    content = "prompt,kind\na,Gender\nb,gender\nc,gender \nd,race\ne,sexual orientation\nf,sexual-orientation\n"
    where = {"kind": ["gender", "sexual-orientation"]}
    found = texts(tmp_path, "p.csv", content, {"prompt": "prompt"}, where).load()
    assert [example.prompt for example in found] == ["b", "c", "f"]
    assert [line.split(", which")[0] for line in caplog.messages] == [
        "where.kind does not name 'Gender' (1 row)",
        "where.kind does not name 'sexual orientation' (1 row)",
    ]
    caplog.clear()
    texts(tmp_path, "p.csv", content, {"prompt": "prompt"}, {"kind": {"not_in": ["race"]}}).load()
    assert caplog.messages == []
    texts(tmp_path, "p.csv", content, {"prompt": "prompt"}, {"kind": {"not_in": ["gender"]}}).load()
    assert [line.split(", which")[0] for line in caplog.messages] == ["where.kind does not name 'Gender' (1 row)"]


def test_nan_is_an_empty_value_and_no_text(tmp_path):
    content = '{"prompt": "a", "kind": NaN}\n{"prompt": "b", "kind": "x"}\n'
    columns = {"prompt": "prompt", "kind": "kind"}
    assert "line 1: 'kind' is empty" in refused(tmp_path, "p.jsonl", content, columns)
    assert len(texts(tmp_path, "p.jsonl", content, columns, {"kind": {"not_in": ["y"]}}).load()) == 1


@pytest.mark.parametrize(("name", "form"), [("p.jsonl", "{}"), ("p.json", "[{}]")])
def test_a_key_that_stands_twice_is_refused(tmp_path, name, form):
    row = '{"prompt": "a", "prompt": "b"}'
    assert "the key 'prompt' stands twice" in refused(tmp_path, name, form.format(row), {"prompt": "prompt"})


def test_missing_column_names_the_nearest_and_what_there_is(tmp_path):
    message = refused(tmp_path, "a.csv", "promt,answer\na,b\n")
    assert "columns.prompt: no column 'prompt' in a.csv; the nearest is promt; there are promt, answer" in message
    message = refused(tmp_path, "a.jsonl", json.dumps(BEAVER[0]), where={"category.privat": True})
    assert "where.category.privat" in message
    assert "nearest is category.privacy" in message
    assert "columns.response: no column 'response' in a.txt; there are prompt" in refused(tmp_path, "a.txt", "One?")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'prompt,response\n"a\nb",c\nd,\xe9\n', 4),
        (b"\xef\xbb\xbfprompt,response\n\xff,b\n", 2),
        ("prompt,response\n".encode("utf-16"), 1),
    ],
)
def test_file_that_is_not_utf8_names_file_and_line(tmp_path, content, line):
    message = refused(tmp_path, "a.csv", content)
    assert f"{tmp_path / 'a.csv'}, line {line} is not UTF-8" in message


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.csv", 'prompt,response\n"two\nlines",yes\nno, \n', "a.csv, line 4: 'response' is empty"),
        ("a.csv", 'prompt,response\na,b\n"",b\n', "a.csv, line 3: 'prompt' is empty"),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n\n{"prompt": "a"}\n', "a.jsonl, line 3: 'response' is empty"),
        (
            "a.jsonl",
            '{"prompt": "a", "response": null}\n{"prompt": "a", "response": "b"}',
            "line 1: 'response' is empty",
        ),
        ("a.json", '[{"prompt": "a", "response": ["b"]}]', "a.json, item 1: 'response' holds a list, not text"),
    ],
)
def test_row_without_text_names_file_and_line(tmp_path, name, content, place):
    assert place in refused(tmp_path, name, content)


def test_row_without_text_may_be_filtered_out(tmp_path):
    found = texts(tmp_path, "a.csv", "prompt,response,ok\na,,no\nb,c,yes\n", where={"ok": "yes"}).load()
    assert [e.prompt for e in found] == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", " \n\n", "a.jsonl is empty"),
        ("a.csv", "prompt,response\n", "a.csv has no rows"),
        ("a.json", "[]", "a.json has no rows"),
        ("a.csv", 'prompt,response\na,b\nc,"d\ne\n', "a.csv, line 3 cannot be read"),  # a quote that is not closed
        ("a.csv", 'prompt,response\n"a\nb",c\nd,e,f\n', "a.csv, line 4 has 3 fields, its header 2"),
        ("a.csv", "prompt,prompt\na,b\n", "two columns 'prompt'"),
        ("a.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": "a",\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '["a"]\n', "a.jsonl, line 1 is not an object"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', "a.json is not JSON: Extra data"),
        ("a.json", '{"prompt": "a"}', "a.json is not a list of objects"),
        ("a.parquet", "prompt,response\n", "a.parquet cannot be read as parquet"),
        ("a.csv.gz", "prompt,response\na,b\n", "a.csv.gz cannot be read"),
        ("a.csv.gz", gzip.compress(b"prompt,response\na,b\n", mtime=0)[:-9], "a.csv.gz cannot be read"),
        ("a.xlsx", "x", "not a known format; it may end in .parquet, .csv"),
    ],
)
def test_malformed_file_says_where_and_what(tmp_path, name, content, message):
    assert message in refused(tmp_path, name, content)


def test_no_row_left_says_how_many_there_were(tmp_path):
    message = refused(tmp_path, "a.csv", "prompt,response\na,b\nc,d\n", where={"prompt": "x"})
    assert "none of the 2 rows of a.csv is left; it asks for {'prompt': 'x'}" in message


def test_wrong_description_is_refused_before_any_file_is_opened():
    source = Files(["no.csv"])
    with pytest.raises(InputError, match=r"d\.train\.columns names no prompt, only response; it takes prompt, "):
        Texts(source, {"response": "a"}).takes(["prompt"], ["response"], "d.train")
    with pytest.raises(InputError, match=r"columns\.respons: there is no such name \(did you mean 'response'\?\)"):
        Texts(source, {"prompt": "a", "respons": "b"}).takes(["prompt"], ["response"], "d.train")
    with pytest.raises(InputError, match=r"columns\.prompt=\['a', 'b'\]: must be one column"):
        Texts(source, {"prompt": ["a", "b"]})
    with pytest.raises(InputError, match=r"where\.a\.is: there is no such condition, only in, not_in"):
        Texts(source, {"prompt": "a"}, {"a": {"is": 1}})
    with pytest.raises(InputError, match=r"where\.a has no value"):
        Texts(source, {"prompt": "a"}, {"a": None})


def test_the_message_on_a_column_map_names_what_the_file_has(tmp_path):
    described = texts(tmp_path, "a.csv", "question,answer\na,b\n", {"response": "answer"})
    with pytest.raises(InputError, match=r"names no prompt, only response; .*; a\.csv has question, answer$"):
        described.takes(["prompt"], ["response"], "d.train")


def test_files_are_read_once_till_they_change(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_read", lambda path, *rest, read=module._read: asked.append(path) or read(path, *rest))
    described = texts(tmp_path, "a.csv", "prompt,response\na,b\nc,d\n")
    found = described.load()
    found.pop()  # which is nobody else's
    assert [e.prompt for e in described.load()] == ["a", "c"]
    assert [e.prompt for e in texts(tmp_path, "a.csv", "prompt,response\nlonger,b\n").load()] == ["longer"]
    assert len(asked) == 2
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes())
    assert [e.row for e in Texts(Files(["b.csv"], folder=str(tmp_path)), PAIR).load()] == ["b.csv, line 2"]
    assert [e.response for e in Texts(Files(["b.csv"], folder=str(tmp_path)), {"prompt": "prompt"}).load()] == [None]


def test_digest_follows_content_columns_and_filter(tmp_path):
    base = texts(tmp_path, "a.csv", "prompt,response\na,b\n").digest()
    assert texts(tmp_path, "a.csv", "prompt,response\na,b\n").digest() == base
    assert texts(tmp_path, "b.csv", "prompt,response\na,b\n").digest() == base  # not the name
    others = [
        texts(tmp_path, "a.csv", "prompt,response\na,c\n").digest(),
        texts(tmp_path, "a.csv", "prompt,response\na,b\n", {"prompt": "prompt"}).digest(),
        texts(tmp_path, "a.csv", "prompt,response\na,b\n", where={"prompt": "a"}).digest(),
        texts(tmp_path, "a.csv", "prompt,response\na,b\n", where={"prompt": {"not_in": ["a"]}}).digest(),
    ]
    assert len({base, *others}) == 5


def examples(name, count):
    return [Example(f"{name}{i}", "x", f"{name}.csv, line {i + 2}") for i in range(count)]


def test_smaller_choices_are_prefixes_of_larger_ones():
    pool = examples("a", 64)
    everything = choose(pool, None, seed=3)
    assert sorted(everything, key=pool.index) == pool
    assert everything != pool
    for n in (1, 10, 64):
        assert choose(pool, n, seed=3) == everything[:n]
    assert choose(pool, 10, seed=4) != everything[:10]


def test_choosing_more_than_there_are_names_key_and_file():
    with pytest.raises(InputError, match=r"^dataset\.samples=200: there are 64 in a\.csv$"):
        choose(examples("a", 64), 200, seed=0)
    with pytest.raises(InputError, match=r"^evaluation\.prompts=2: there are 0 in it$"):
        choose([], 2, seed=0, key="evaluation.prompts")
    with pytest.raises(InputError, match=r"^dataset\.samples=0: must be at least 1"):
        choose(examples("a", 64), 0, seed=0)


@pytest.mark.parametrize(
    ("shares", "n", "counts"),
    [
        ({"a": 1, "b": 1, "c": 1}, 10, (4, 3, 3)),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, 10, (5, 3, 2)),
        ({"a": 2, "b": 0, "c": 6}, 8, (2, 0, 6)),
        ({"c": 0.47, "a": 0.16, "b": 0.37}, 10, (1, 4, 5)),  # quotas 4.7, 1.6, 3.7
        ({"b": 1.0}, 7, (0, 7, 0)),
    ],
)
def test_mix_counts_by_largest_remainder(shares, n, counts):
    sets = {name: examples(name, 20) for name in "abc"}
    mixed = mix(sets, shares, n, seed=1)
    assert tuple(sum(e.prompt[0] == name for e in mixed) for name in "abc") == counts
    assert len(set(mixed)) == n


def test_mix_is_shuffled_together_and_repeats_by_seed():
    sets = {name: examples(name, 50) for name in "ab"}
    mixed = mix(sets, {"a": 1, "b": 1}, 60, seed=1)
    assert {e.prompt[0] for e in mixed[:20]} == {"a", "b"}
    assert mix(sets, {"a": 1, "b": 1}, 60, seed=1) == mixed
    assert mix(sets, {"a": 1, "b": 1}, 60, seed=2) != mixed
    assert {e for e in mixed if e.prompt[0] == "a"} == set(choose(sets["a"], 30, seed=1))


@pytest.mark.parametrize(
    ("shares", "n", "message"),
    [
        ({"a": 1, "z": 1}, 4, "no set z; there are a, b"),
        ({"a": -1, "b": 2}, 4, "must be at least 0"),
        ({"a": 0, "b": 0}, 4, "not all of them 0"),
        ({"a": float("nan"), "b": 1}, 4, "shares"),
        ({"a": 3, "b": 1}, 12, r"mix\.a: asked for 9 of 12, there are 5 \(dataset\.samples\)"),
    ],
)
def test_mix_refuses_shares_that_cannot_be_had(shares, n, message):
    with pytest.raises(InputError, match=message):
        mix({name: examples(name, 5) for name in "ab"}, shares, n, seed=0)


def test_texts_import_nothing_heavy():
    code = (
        "import sys, fairpriv.data.texts; "
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_further_columns_are_kept_as_they_are_and_several_make_a_list(tmp_path):
    content = '{"q": "Who?", "a": "x", "b": "", "info": {"tag": ["u", "v"]}, "n": 2}\n'
    columns = {"prompt": "q", "choices": ["a", "b"], "tag": "info.tag", "label": "n"}
    [example] = texts(tmp_path, "a.jsonl", content, columns).load()
    assert example == Example("Who?", None, "a.jsonl, line 1", {"choices": ["x"], "tag": ["u", "v"], "label": 2})
    [example] = texts(tmp_path, "a.jsonl", content, {"prompt": "q", "choices": ["b", "a"]}).load()
    assert example.fields == {"choices": ["", "x"]}  # places are kept
    [example] = texts(tmp_path, "a.jsonl", content, {"label": "n"}).load()
    assert (example.prompt, example.fields) == ("", {"label": 2})
    message = refused(tmp_path, "a.jsonl", content, {"prompt": "q", "choices": ["a", "c"]})
    assert "columns.choices: no column 'c' in a.jsonl; " in message
    assert "there are q, a, b, info.tag, n" in message
    assert "line 1: 'b' is empty" in refused(tmp_path, "a.jsonl", content, {"prompt": "q", "choices": ["b"]})


def test_rows_inside_a_json_file_are_named_by_where_they_lie(tmp_path):
    content = '{"data": {"one": [{"q": "Who?"}], "two": [{"q": "Why?"}], "n": 3}}'
    source = Files(["a.json"], folder=str(tmp_path))
    (tmp_path / "a.json").write_text(content)
    found = Texts(source, {"prompt": "q"}, under=["data.two", "data.one"]).load()
    assert [(e.prompt, e.row) for e in found] == [
        ("Why?", "a.json, item 1 of data.two"),
        ("Who?", "a.json, item 1 of data.one"),
    ]
    for under in ("data.three", "data.n", "date"):
        with pytest.raises(InputError, match=rf"a\.json of {under} is not a list of objects"):
            Texts(source, {"prompt": "q"}, under=[under]).load()
    with pytest.raises(InputError, match=r"is not a list of objects: .* wanted; under names a list inside it"):
        Texts(source, {"prompt": "q"}).load()


def test_a_conversation_is_asked_as_messages_and_read_as_text(tmp_path):
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    talk.append({"role": "user", "content": "Why?"})
    (tmp_path / "talk.jsonl").write_text("\n".join(json.dumps({"turns": turns}) for turns in (talk, talk[:1])))
    texts = Texts(Files(["talk.jsonl"], str(tmp_path)), {"prompt": "turns"})
    first, second = texts.load()
    assert first.asked == talk
    assert first.prompt == "user: Hi.\n\nassistant: Hello.\n\nuser: Why?"
    assert (second.asked, second.prompt) == (talk[:1], "Hi.")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([{"role": "user"}], "message 1 of its prompt is not {role: ..., content: text}"),
        (["Hi."], "message 1 of its prompt is not {role: ..., content: text}"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "has the role system, not user or"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "is not the user's"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": " "}], "message 2 of its prompt is empty"),
        ('[{"role": "user", "content": "a"}]', "is a conversation written as text"),
        ("[{'content': 'a', 'role': 'user'}]", "is a conversation written as text"),
    ],
)
def test_a_conversation_that_cannot_be_asked_names_its_row(tmp_path, turns, message):
    (tmp_path / "talk.json").write_text(json.dumps([{"turns": turns}]))
    with pytest.raises(InputError, match=rf"^talk\.json, item 1: .*{re.escape(message)}"):
        Texts(Files(["talk.json"], str(tmp_path)), {"prompt": "turns"}).load()
