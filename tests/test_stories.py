"""Stories: what the grammar tells, what the judge finds, and where load_stories takes its stories from."""

import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.model_hub import Answering
from utils import grammar
from utils.grammar import ADJECTIVES, BOYS, GIRLS, NOUNS
from utils.sources import hub as hub_source
from utils.stories import builtin_stories, judge_story, load_stories, story_faults

ROOT = Path(__file__).parent.parent
END = "<|endoftext|>"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test of this process may use the reader's own data or the real hub."""
    monkeypatch.delenv("TINYSTORIES_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def tokens(text):
    return re.findall(r"\w+|[^\w\s]", text.lower())


# ----------------------------------------------------------------------------------- the grammar


@pytest.fixture(scope="module")
def many():
    return builtin_stories(20_000)


def test_builtin_length_and_vocabulary(many):
    lengths = [len(story.split()) for story in many]
    assert min(lengths) >= 60 and max(lengths) <= 150
    assert 80 <= sum(lengths) / len(lengths) <= 120
    assert 400 <= len({token for story in many for token in tokens(story)}) <= 800
    assert max(len(tokens(story)) for story in many) < grammar.MAX_TOKENS


def test_builtin_openings_dialogue_and_contractions(many):
    once = sum(story.startswith("Once upon a time") for story in many)
    assert len(many) / 2 < once < len(many)
    assert any("don't" in story.lower() for story in many) and any("it's" in story.lower() for story in many)
    assert sum('"' in story for story in many) > len(many) / 2
    assert len(set(many)) == len(many)


def test_builtin_tells_the_thread_of_the_course(many):
    assert any("Lily lost her red ball." in story for story in many)


def test_builtin_spelling(many):
    for story in many[:5000]:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", story, re.I), story
        assert not re.search(r'(^|[.!?]"? )"?[a-z]', re.sub(r'[!?]" [a-z]', '," x', story)), story
        assert story.count('"') % 2 == 0 and "{" not in story and "  " not in story
        assert story[-1] == "."


def test_builtin_is_deterministic_and_extends():
    random.seed(1)
    state = random.getstate()
    five, fifty = builtin_stories(5, 3), builtin_stories(50, 3)
    assert five == fifty[:5] and fifty == builtin_stories(50, 3) and fifty != builtin_stories(50, 4)
    assert random.getstate() == state
    assert builtin_stories(0) == []
    with pytest.raises(ValueError, match="-1"):
        builtin_stories(-1)


def test_templates_name_hero_and_thing_and_write_no_pronoun():
    after = grammar.STAGES.index("problem")
    for number, (stage, templates) in enumerate(grammar.TEMPLATES.items()):
        assert 6 <= len(templates) <= 12, stage
        for template in templates:
            words = re.findall(r"\w+", re.sub(r"\{\w+\}", "", template).lower())
            assert not {"he", "she", "him", "her", "his", "hers"} & set(words), template
            if number >= after:
                assert "{hero}" in template and re.search(r"\{(a_)?thing\}", template), template


# ------------------------------------------------------------------------------------- the judge


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_judge_accepts_every_builtin_story(seed):
    for story in builtin_stories(1000, seed):
        assert story_faults(story) == []
        assert judge_story(story)


def test_judge_ignores_case_spacing_and_the_end_mark():
    for story in builtin_stories(100, 7):
        spaced = " ".join(tokens(story))
        for form in (spaced, story.upper(), story.replace(" ", " \n "), f"{story}\n{END}\n", f"{spaced} {END}"):
            assert judge_story(form)
        assert not judge_story(story + END + story)


def sentences(story):
    """Cut after . ! ? and a closing quotation mark, where a capital or a quotation mark follows."""
    return re.split(r'(?<=[.!?])(?<!\s)(?=\s+["A-Z])|(?<=[.!?]")\s*(?=\s["A-Z])', story)


def others(word, words):
    return [other for other in words if other != word]


def replaced_from(story, pattern, new, rng):
    """The story with `new` for every match of `pattern` from some later match on."""
    spots = [match.start() for match in re.finditer(pattern, story)]
    at = rng.choice(spots[1:])
    return story[:at] + re.sub(pattern, new, story[at:])


def hero_of(story):
    return min((name for name in GIRLS + BOYS if re.search(rf"\b{name}\b", story)),
               key=lambda name: re.search(rf"\b{name}\b", story).start())  # fmt: skip


def thing_of(story):
    return re.search(rf"\b({'|'.join(ADJECTIVES)}) ({'|'.join(NOUNS)})\b", story).groups()


def hero_renamed(story, rng):
    hero = hero_of(story)
    return replaced_from(story, rf"\b{hero}\b", rng.choice(others(hero, GIRLS + BOYS)), rng)


def hero_renamed_same_gender(story, rng):
    hero = hero_of(story)
    names = GIRLS if hero in GIRLS else BOYS
    return replaced_from(story, rf"\b{hero}\b", rng.choice(others(hero, names)), rng)


def pronoun_swapped(story, rng):
    swaps = {"he": ["she"], "she": ["he"], "his": ["her"], "him": ["her"], "her": ["his", "him"]}
    match = rng.choice(list(re.finditer(r"\b(he|she|his|him|her)\b", story, re.I)) or [None])
    if match is None:
        return None
    new = rng.choice(swaps[match[0].lower()])
    return story[: match.start()] + (new.title() if match[0][0].isupper() else new) + story[match.end() :]


def sentences_exchanged(story, rng):
    parts = [part.strip() for part in sentences(story)]
    i, j = rng.sample(range(len(parts)), 2)
    parts[i], parts[j] = parts[j], parts[i]
    return " ".join(parts)


def noun_changed(story, rng):
    adjective, noun = thing_of(story)
    new = rng.choice(others(noun, NOUNS))
    return replaced_from(story, rf"\b{adjective} {noun}\b", f"{adjective} {new}", rng)


def adjective_changed(story, rng):
    adjective, noun = thing_of(story)
    new = rng.choice(others(adjective, ADJECTIVES))
    return replaced_from(story, rf"\b{adjective} {noun}\b", f"{new} {noun}", rng)


def cut_at_word(story, rng):
    words = story.split()
    return " ".join(words[: round(len(words) * rng.uniform(0.3, 0.95))])


def cut_at_sentence_end(story, rng):
    parts = sentences(story)
    return "".join(parts[: rng.randrange(1, len(parts))])


DAMAGES = [hero_renamed, hero_renamed_same_gender, pronoun_swapped, sentences_exchanged, noun_changed,
           adjective_changed, cut_at_word, cut_at_sentence_end]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_judge_rejects_damage(damage, record_property):
    rng = random.Random(5)
    pairs = [(story, damage(story, rng)) for story in builtin_stories(1000, 11)]
    damaged = [text for story, text in pairs if text not in (None, story)]
    assert len(damaged) >= 950
    rejected = sum(not judge_story(text) for text in damaged) / len(damaged)
    record_property("rejected", rejected)
    print(f"{damage.__name__}: {rejected:.1%} of {len(damaged)} rejected")
    assert rejected >= 0.95


LILY = (
    "Once upon a time, there was a little girl called Lily. One sunny day, Lily went to the park with her red ball. "
    "Lily lost her red ball. Lily looked under the bench, but the red ball wasn't there. "
    "Then Lily met an old owl and asked him about the red ball. "
    "\"Don't worry, Lily! I'll help you find your red ball,\" said the old owl. "
    '"Hooray, my red ball is behind a rock!" Lily told the old owl. '
    "In the end, Lily was happy because her red ball was back."
)


@pytest.mark.parametrize(
    "old, new, fault",
    [
        ("", "", None),
        ("Lily told the old owl. In the end, Lily", "Tom told the old owl. In the end, Tom",
         "the hero is lily, later tom"),
        ("asked him", "asked her", "the helper is an old owl, later her"),
        ("my red ball is", "my red boat is", "a red ball was lost, but a red boat was found"),
        ("In the end, Lily was happy because her red ball was back.", "", "the story stops before its ending"),
        ("Lily lost her red ball. ", "", "the problem is missing before the search"),
        ("Lily lost her red ball.", "Lily lost her red ball. " * 2, "the problem comes twice"),
        ("because her red ball was back.", "because her red ball was back. Lily lost her red ball.",
         "the problem comes after the ending"),
        ("Lily lost her red ball.", "Lily ate her red ball.",
         'no sentence of the grammar begins "lily ate her red ball ."'),
    ],
)  # fmt: skip
def test_faults_are_plain_sentences(old, new, fault):
    assert old in LILY
    assert story_faults(LILY.replace(old, new)) == ([] if fault is None else [fault])


def test_judge_on_noise():
    rng = random.Random(0)
    noise = ["", " \n", END, ".", '"', "a" * 1_000_000, '. "' * 300_000, "\x00\ud800{hero} (?P<", LILY * 5000,
             "".join(map(chr, (rng.randrange(0x3000) for _ in range(100_000)))),
             " ".join(rng.choices(tokens(" ".join(builtin_stories(50))), k=200_000))]  # fmt: skip
    for text in noise:
        faults = story_faults(text)
        assert 1 <= len(faults) <= grammar.MAX_FAULTS and not judge_story(text)
        assert all("\n" not in fault for fault in faults)


# --------------------------------------------------------------------------------- built-in stories


@pytest.mark.parametrize("arguments", [{"split": "test"}, {"split": "valid"}, {"n": 0}, {"n": -5}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=str(*arguments.values())):
        load_stories(**{"n": 1, "source": "builtin"} | arguments)


def test_builtin_source(capsys):
    train, valid = (load_stories(200, split, "builtin") for split in ("train", "validation"))
    assert train.source == valid.source == "builtin"
    assert train == builtin_stories(200) and len(valid) == 200 and not set(train) & set(valid)
    assert capsys.readouterr().out.splitlines() == [
        "stories: 200 built-in stories (train)", "stories: 200 built-in stories (validation)"]  # fmt: skip


# --------------------------------------------------------------------------------------- the hub


def write_parquet(path, columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    return path


REPO, COMMIT = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"


class StandIn(Answering):
    """The few routes of the hub that `datasets` asks for one public dataset, counting what it sends."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        files, route = self.server.files, unquote(urlsplit(self.path).path)
        folder = {"type": "directory", "path": "data", "oid": "f" * 40}
        entries = [{"type": "file", "path": path, "size": len(data), "oid": f"{number:040x}"}
                   for number, (path, data) in enumerate(files.items())]  # fmt: skip
        if route == "/break":
            self.server.broken = 2
            self.reply_json({})
        elif route in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/{COMMIT}"):
            self.reply_json({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})
        elif route == f"/api/datasets/{REPO}/tree/{COMMIT}":
            self.reply_json([folder] + [entry for entry in entries if "/" not in entry["path"]])
        elif route == f"/api/datasets/{REPO}/tree/{COMMIT}/data":
            self.reply_json([entry for entry in entries if entry["path"].startswith("data/")])
        elif route.startswith(f"/datasets/{REPO}/resolve/") and route.split("/", 6)[6] in files:
            self.reply_file(route.split("/", 6)[6])
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    do_HEAD = do_POST = do_GET

    def reply_file(self, path):
        data, code, headers = self.server.files[path], 200, {"ETag": f'"{path}"', "X-Repo-Commit": COMMIT}
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, code = data[first : last + 1], 206
        if self.command == "GET":
            self.server.sent[path] = self.server.sent.get(path, 0) + len(data)
        if self.server.broken > 0 and path.startswith("data/"):
            self.server.broken -= 1
            return self.reply(403, b"", {})
        self.reply(code, data, headers)


def shard_names(split, shards):
    return [f"data/{split}-{i:05}-of-{shards:05}-2d5a1467fff1081b.parquet" for i in range(shards)]


@pytest.fixture(scope="module")
def hub():
    """A hub on this machine with 4 training shards of 1,500 stories and a validation shard of 300."""
    pytest.importorskip("datasets")
    files = {"README.md": b"---\nlicense: cdla-sharing-1.0\n---\n", "TinyStories-train.txt": b"another format"}
    for seed, name in enumerate(shard_names("train", 4) + shard_names("validation", 1), 100):
        texts = builtin_stories(300 if "valid" in name else 1500, seed)
        shard = io.BytesIO()
        write_parquet(shard, {"text": ["", *texts]})  # the real data has empty stories too
        files[name] = shard.getvalue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.files, server.sent, server.broken = files, {}, 0  # broken: how many requests for data it refuses
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load_in_new_python(home, endpoint, code, timeout=60, **variables):
    """Run `code` where nothing is imported or cached yet; (exit status, printed text, error output)."""
    keep = {name: value for name, value in os.environ.items()
            if not re.match(r"HF_|HUGGING|TINYSTORIES|.*proxy", name, re.I)}  # fmt: skip
    environment = keep | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"} | variables
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom utils.stories import load_stories\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, timeout=timeout,
                          capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_hub_fetches_only_the_shards_it_needs(hub, tmp_path):
    hub.sent.clear()
    code = (
        "import json; first = load_stories(1_000); json.dump(first, open('first.json', 'w'))\n"
        "valid = load_stories(1_000, 'validation', 'hub'); json.dump(valid, open('valid.json', 'w'))"
    )
    status, out, err = load_in_new_python(tmp_path, f"http://127.0.0.1:{hub.server_port}", code)
    assert status == 0, err
    assert out.splitlines() == [
        f"stories: 1,000 from the hub ({REPO}, train)", f"stories: 300 from the hub ({REPO}, validation)"]  # fmt: skip
    assert json.loads((tmp_path / "first.json").read_text()) == builtin_stories(1000, 100)
    assert json.loads((tmp_path / "valid.json").read_text()) == builtin_stories(300, 104)
    first, *rest = shard_names("train", 4)
    assert hub.sent[first] > 0
    assert not any(hub.sent.get(shard) for shard in [*rest, "TinyStories-train.txt"])


def test_a_hub_that_keeps_failing_is_asked_again_before_anything_falls_back(hub, tmp_path):
    hub.broken = 10**9
    code = (
        "from utils.sources import hub; hub.PATIENCE = (0.1, 0.2)\n"
        "assert load_stories(5).problem == 'the hub failed'\n"
        "try: load_stories(5, source='hub')\n"
        "except ConnectionError as error: print(type(error).__name__, error)"
    )
    try:
        status, out, err = load_in_new_python(tmp_path, f"http://127.0.0.1:{hub.server_port}", code)
    finally:
        hub.broken = 0
    lines = out.splitlines()
    assert status == 0, err
    assert [line[-26:] for line in lines if line.startswith("hub: ")] == [
        "; once more in 0.1 seconds", "; once more in 0.2 seconds"] * 2  # fmt: skip
    assert lines[2].startswith("stories: the hub failed, so 5 built-in stories (")
    assert lines[5].startswith("ConnectionError the hub failed: ")


def test_one_failed_request_is_forgiven(hub, tmp_path):
    hub.broken = 1
    code = "from utils.sources import hub; hub.PATIENCE = (0.1,)\nassert load_stories(5).source == 'hub'"
    try:
        status, out, err = load_in_new_python(tmp_path, f"http://127.0.0.1:{hub.server_port}", code)
    finally:
        hub.broken = 0
    assert status == 0, err
    assert out.splitlines()[-1] == f"stories: 5 from the hub ({REPO}, train)"


def test_another_dataset_and_another_column_are_named(hub, tmp_path):
    code = (
        f"assert load_stories(5, 'validation', 'hub:{REPO}') == load_stories(5, 'validation', 'hub')\n"
        "for column in ('text', 'story'):\n"
        f"  try: print(len(load_stories(5, source='hub:{REPO}', text_column=column)))\n"
        "  except ValueError as error: print(error)"
    )
    status, out, err = load_in_new_python(tmp_path, f"http://127.0.0.1:{hub.server_port}", code)
    assert status == 0, err
    assert out.splitlines()[-2:] == ["5", f"{REPO} has no column of text 'story', it must be one of 'text'"]


STREAMED = """
from itertools import islice
from utils.corpus import Corpus
from utils.sources import hub
from utils.stories import NoValidationSplit
hub.PATIENCE = (0.1, 0.1)
corpus = Corpus(4_000, 'train', 'hub')
texts = iter(corpus)
first = list(islice(texts, 1_400))  # of the first shard's 1,500
urllib.request.urlopen(urllib.request.Request(break_now))
whole = first + list(texts)
assert whole == list(corpus) and len(whole) == 4_000
json.dump([whole, corpus.identity()], open('whole.json', 'w'))
"""


def test_a_stream_from_the_hub_goes_on_where_it_broke(hub, tmp_path):
    """Each text once, in order; what names the corpus is the dataset's commit."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    code = f"import json, urllib.request; break_now = {endpoint + '/break'!r}\n{STREAMED}"
    status, out, err = load_in_new_python(tmp_path, endpoint, code)
    assert status == 0, err
    whole, identity = json.loads((tmp_path / "whole.json").read_text())
    assert whole == [story for seed in (100, 101, 102) for story in builtin_stories(1500, seed)][:4000]
    assert identity["n"] == 4000 and identity["parts"] == [["hub", REPO, "train", COMMIT, "text"]]
    assert out.count("once more in") == 2


@pytest.fixture
def silent_port():
    """A server that takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


FALL_BACK = """
import time
started = time.monotonic()
stories = load_stories(20)
seconds = time.monotonic() - started
from utils.stories import builtin_stories
assert stories == builtin_stories(20) and seconds < 5, seconds
assert "datasets" not in sys.modules and "pyarrow" not in sys.modules
try: load_stories(20, source="hub")
except ConnectionError as error: print(error)
"""


@pytest.mark.parametrize("port", ["closed_port", "silent_port"])
def test_without_a_network_the_stories_are_built_in(port, request, tmp_path):
    endpoint = f"http://127.0.0.1:{request.getfixturevalue(port)}"
    status, out, err = load_in_new_python(tmp_path, endpoint, FALL_BACK)
    assert status == 0, err
    first, second = out.splitlines()
    assert first.startswith(f"stories: no network, so 20 built-in stories ({endpoint}")
    assert second.startswith(f"no network: {endpoint}")


BLOCKED = """
import threading
from utils.sources import hub
hub.PROBE_SECONDS = 0.2
hub.urllib.request.urlopen = lambda *_, **__: threading.Event().wait()
load_stories(3)
"""


def test_a_name_look_up_that_blocks_is_left_behind(tmp_path):
    status, out, err = load_in_new_python(tmp_path, "http://127.0.0.1", BLOCKED, timeout=20)
    assert status == 0, err
    assert "does not answer within 0.2 seconds" in out and out.count("\n") == 1


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_is_believed_at_once(variable, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(hub_source.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert load_stories(3, "validation") == load_stories(3, "validation", "builtin")
    assert capsys.readouterr().out.startswith(
        f"stories: no network, so 3 built-in stories ({variable} is set)\n")  # fmt: skip
    with pytest.raises(ConnectionError, match=variable):
        load_stories(3, source="hub")


@pytest.mark.parametrize("code, reachable", [(401, True), (429, True), (403, False), (404, False), (503, True)])
def test_answers_of_the_hub(code, reachable, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def refuse(url, **_):
        raise hub_source.urllib.error.HTTPError(url, code, "no", {}, None)

    monkeypatch.setattr(hub_source.urllib.request, "urlopen", refuse)
    assert (hub_source.hub_problem() is None) == reachable
