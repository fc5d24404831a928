"""Published models opened lazily: the same numbers as transformers, nothing read that is not used, nothing believed."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
import pytest
import tiktoken
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file

from tests.model_hub import COMMIT, DROPS, REPO, SHORT, TOO_MANY, WHOLE, serving
from tests.test_hf import random_model
from utils.bpe import PATTERNS, BPETokenizer
from utils.config import KimiConfig
from utils.device import autocast
from utils.generation import generate
from utils.hf import export_hf, import_hf
from utils.hf_names import published_tensors
from utils.model import Kimi, count_parameters, eval_view
from utils.published.keeping import Kept
from utils.published.lazy import LazyKimi
from utils.published.opening import open_published, read_ranks
from utils.published.source import Folder
from utils.published.streaming import reading, stream_layers
from utils.published.tensors import Tensors, read_header
from utils.sources import hub as hub_source
from utils.tokenizer import WordTokenizer

TEXT = "once upon a time there was a cat , and the cat saw a dog ."
SHAPES = {
    "Kimi K2": dict(yarn_factor=32.0, yarn_original=64, block_size=2048, qk_rope_head_dim=16),
    "Moonlight": dict(q_lora_rank=0, n_shared_experts=2, top_k=3, routed_scaling_factor=2.446),
}
BLOCK = 16  # of fp8 scales, instead of 128: these matrices are small


def model_of(shape):
    tok = WordTokenizer.train([TEXT])
    model = random_model("plain", vocab_size=len(tok), **SHAPES[shape])
    model.tokenizer = tok
    return model


def in_fp8(folder):
    """Write the linear layers of an exported folder anew, as Kimi K2's are published."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if re.search(r"(self_attn\.\w+_proj\w*|mlp\.(experts\.\d+|shared_experts)?\.?\w+_proj)\.weight$", name):
            n, m = weight.shape
            scales = torch.ones(-(-n // BLOCK), -(-m // BLOCK))
            eight = torch.empty(n, m, dtype=torch.float8_e4m3fn)
            for i in range(len(scales)):
                for j in range(len(scales[0])):
                    part = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
                    scales[i, j] = weight[part].abs().max() / 448
                    eight[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            weights[name], weights[f"{name}_scale_inv"] = eight, scales
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, quantization_config=dict(
        quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[BLOCK, BLOCK]))  # fmt: skip


def change_config(folder, **changes):
    state = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(state | changes))
    (folder / "SHA256SUMS").unlink(missing_ok=True)


@pytest.fixture(scope="module", params=[(shape, how) for shape in SHAPES for how in ("bf16 shards", "fp8")], ids=str)
def published(request, tmp_path_factory):
    """(a folder as it would be published, the same model by transformers in fp32)."""
    shape, how = request.param
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("published")
    export_hf(model_of(shape).to(torch.bfloat16) if "bf16" in how else model_of(shape), plain)
    if how == "fp8":
        in_fp8(plain)
        shutil.copytree(plain, folder, dirs_exist_ok=True)
        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if name.endswith("_scale_inv")]:  # as DeepSeek's own converter does it
            scales = weights.pop(name).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            name = name.removesuffix("_scale_inv")
            n, m = weights[name].shape
            weights[name] = weights[name].float() * scales[:n, :m]
        save_file(weights, plain / "model.safetensors", {"format": "pt"})
        change_config(plain, quantization_config=None)
    theirs = transformers.DeepseekV3ForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    if how != "fp8":
        stored = transformers.DeepseekV3ForCausalLM.from_pretrained(plain, dtype="auto")
        stored.save_pretrained(folder, max_shard_size="100KB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(plain / name, folder / name)
    return folder, theirs


PROMPT = "once upon a time there was a cat"


def test_the_logits_are_those_of_transformers(published):
    folder, theirs = published
    model = open_published(folder)
    ids = torch.tensor([model.tokenizer.encode(PROMPT), model.tokenizer.encode("a dog saw the cat and a dog")])
    with torch.inference_mode():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5


def test_layer_by_layer_it_is_the_same(published):
    folder, theirs = published
    model = open_published(folder)
    *_, last = stream_layers(model, PROMPT)
    ids = torch.tensor([model.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        wanted = theirs(ids, output_hidden_states=True)
        assert (model.head(model.norm(last.x)) - wanted.logits[0]).abs().max() < 1e-5
        for layer, states in zip(stream_layers(model, PROMPT, 2), wanted.hidden_states[1:], strict=False):
            torch.testing.assert_close(layer.x, states[0], rtol=1e-5, atol=1e-5)


def test_a_story_goes_on_as_the_whole_model_tells_it(published):
    folder, _ = published
    whole, lazy = import_hf(folder), open_published(folder)
    for settings in (dict(temperature=0.0), dict(seed=3)):
        assert generate(lazy, PROMPT, 12, **settings) == generate(whole, PROMPT, 12, **settings)


def test_in_bf16_it_is_the_whole_model_in_bf16(published):
    """Where two experts are nearly as good, rounding chooses: so it is held against the same arithmetic."""
    folder, _ = published
    lazy = open_published(folder)
    whole = Kimi(lazy.config, fast=False)
    whole.load_state_dict(import_hf(folder).state_dict())
    ids = torch.tensor([lazy.tokenizer.encode(PROMPT)])
    with torch.inference_mode(), autocast(torch.device("cpu"), "bf16"):
        logits = [eval_view(model, torch.bfloat16)(ids) for model in (lazy, whole)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-3 * logits[1].abs().max()


def test_what_is_read_is_what_the_plan_says(published, capsys):
    folder, _ = published
    model = open_published(folder)
    plan, before = reading(model, PROMPT), model.tensors.bytes_read
    layers = list(stream_layers(model, PROMPT))
    assert capsys.readouterr().out.strip() == str(plan)
    model.head(model.norm(layers[-1].x))
    experts = [len(layer.record.chosen.unique()) for layer in layers if layer.record.chosen is not None]
    one = sum(place.bytes for place in model.blocks[-1].ffn.experts.places(0))
    assert model.tensors.bytes_read - before == plan.always + sum(experts) * one
    assert plan.experts_least <= sum(experts) * one <= plan.experts_most
    assert len(experts) * one * model.config.top_k == plan.experts_least and plan.speed is None


def test_only_chosen_experts_are_read(published, monkeypatch):
    folder, _ = published
    model, names = open_published(folder), []
    read = Tensors.__getitem__
    monkeypatch.setattr(Tensors, "__getitem__", lambda self, name: (names.append(name), read(self, name))[1])
    for layer in stream_layers(model, "cat"):
        read_ones = {
            int(e) for name in names for e in re.findall(rf"layers\.{layer.index}\.mlp\.experts\.(\d+)\.", name)
        }
        chosen = layer.record.chosen
        assert read_ones == (set() if chosen is None else set(chosen.flatten().tolist()))


def test_a_lazy_model_counts_as_the_whole_one(published):
    folder, _ = published
    assert count_parameters(open_published(folder)) == count_parameters(import_hf(folder))


# --------------------------------------------------------------------------------------------- as published


@pytest.mark.parametrize("config, n_tensors, total", [
    # embedding, norm, head; 9 or 7 of every layer; 3 of the dense one; experts, router, bias and the shared expert
    (KimiConfig.k2(), 3 + 61 * 9 + 3 + 60 * (3 * 384 + 5), 1_026_408_209_408),
    (KimiConfig.moonlight(), 3 + 27 * 7 + 3 + 26 * (3 * 64 + 5), 15_960_108_544),
])  # fmt: skip
def test_all_tensors_of_the_published_sizes_have_their_names(config, n_tensors, total):
    with torch.device("meta"):
        model = Kimi(config, fast=False)
    tensors = published_tensors(model)
    biases = sum(t.numel() for name, t in tensors.items() if name.endswith("e_score_correction_bias"))
    assert len(tensors) == n_tensors
    assert sum(t.numel() for t in tensors.values()) - biases == total


# --------------------------------------------------------------------------------------------- memory

SPARSE = """
import json, math, resource, sys
from pathlib import Path
import torch
from utils.config import KimiConfig
from utils.hf_config import config_json
from utils.hf_names import published_tensors
from utils.model import Kimi
from utils.tokenizer import WordTokenizer

folder = Path(sys.argv[1])
config = KimiConfig.k2_mini(40_000, d_model=2048, n_heads=8, n_layers=8, n_experts=48, d_ff=1024, dense_ff=2048)
with torch.device("meta"):
    model = Kimi(config, fast=False).to(torch.bfloat16)
header, end = {}, 0
for name, tensor in published_tensors(model).items():
    begin, end = end, end + tensor.numel() * 2
    header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
data = json.dumps(header).encode()
with open(folder / "model.safetensors", "wb") as file:
    file.write(len(data).to_bytes(8, "little") + data)
    file.truncate(8 + len(data) + end)  # zeros that need no disk
(folder / "config.json").write_text(json.dumps(config_json(model)))
"""
RUNS = """
import sys
from utils.published.opening import open_published
from utils.published.streaming import stream_layers
from utils.tokenizer import WordTokenizer

model = open_published(sys.argv[1])
model.tokenizer = WordTokenizer.train(["once upon a time there was a cat"])
for layer in stream_layers(model, "once upon a time there was a cat"):
    pass
model.head(model.norm(layer.x))
status = open("/proc/self/status").read()
print("peak", int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_model_of_4_gb_runs_in_1_gb(tmp_path):
    for code in (SPARSE, RUNS):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").stat().st_size > 4e9
    assert int(done.stdout.split("peak ")[1]) < 1e9


# --------------------------------------------------------------------------------------------- the hub


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    export_hf(model_of("Kimi K2"), folder)
    return folder


@pytest.fixture(scope="module")
def server(small):
    with serving(small) as hub:
        yield hub


@pytest.fixture
def hub(server, small, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))  # it is patient for minutes
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(hub_source, "PATIENCE", (0.01, 0.01))
    server.commits = {COMMIT: small}
    server.sent.clear()
    server.sizes, server.fault, server.n_faults, server.slow = {}, "", 0, 0.0
    return server


def test_the_hub_gives_what_the_folder_gives(hub, small, tmp_path):
    near, far = open_published(small), open_published(REPO, cache=tmp_path)
    ids = torch.tensor([near.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        assert torch.equal(near(ids), far(ids))
    assert far.tensors.source.commit == COMMIT


def test_of_the_shards_only_the_pieces_that_are_used_are_sent_and_once(hub, small, tmp_path):
    model = open_published(REPO, cache=tmp_path)
    header = int.from_bytes((small / "model.safetensors").read_bytes()[:8], "little") + 8
    for _ in range(2):
        layers = list(stream_layers(model, "cat"))
    row = norm = 4 * model.config.d_model
    pieces = header + norm + row + sum(layer.bytes_read for layer in layers)
    assert hub.sent["model.safetensors"] == pieces < (small / "model.safetensors").stat().st_size * 0.8
    again = open_published(REPO, cache=tmp_path)
    list(stream_layers(again, "cat"))
    assert hub.sent["model.safetensors"] == pieces + header


def test_nothing_but_what_describes_the_model_is_read_at_first(hub, small, tmp_path):
    (small / "modeling_deepseek.py").write_text("raise SystemExit('executed')")
    try:
        open_published(REPO, cache=tmp_path)
    finally:
        (small / "modeling_deepseek.py").unlink()
    assert set(hub.sent) <= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert hub.sent["model.safetensors"] < (small / "model.safetensors").stat().st_size / 20


@pytest.mark.parametrize("fault", [TOO_MANY, DROPS, SHORT, WHOLE])
def test_what_goes_wrong_once_or_twice_is_tried_again(hub, tmp_path, fault, capsys):
    model = open_published(REPO, cache=tmp_path)
    hub.fault, hub.n_faults = fault, 2
    wanted = len(list(stream_layers(model, PROMPT)))
    assert wanted == model.config.n_layers and hub.n_faults == 0


@pytest.mark.parametrize("fault", [TOO_MANY, DROPS, SHORT, WHOLE])
def test_a_hub_that_keeps_failing_is_one_error_and_leaves_nothing_wrong_behind(hub, tmp_path, fault):
    model = open_published(REPO, cache=tmp_path)
    hub.fault, hub.n_faults = fault, 10**9
    with pytest.raises(ConnectionError, match="the hub failed"):
        list(stream_layers(model, PROMPT))
    hub.n_faults = 0
    assert len(list(stream_layers(model, PROMPT))) == model.config.n_layers


def test_a_slow_hub_is_waited_for_and_the_plan_knows_its_speed(hub, tmp_path):
    hub.slow = 0.05
    model = open_published(REPO, cache=tmp_path)
    plan = reading(model, PROMPT)
    rest = plan.always - plan.kept + plan.experts_least
    assert plan.minutes()[0] == pytest.approx(rest / plan.speed / 60)
    assert 0 < plan.kept < plan.always
    assert plan.speed < plan.kept / 0.05  # after its first wait, all that it measured with came


def test_a_repository_that_changes_in_between_is_read_as_it_was(hub, small, tmp_path):
    model = open_published(REPO, cache=tmp_path / "cache")
    other = tmp_path / "other"
    export_hf(random_model("plain", seed=5, vocab_size=model.config.vocab_size, **SHAPES["Kimi K2"]), other)
    hub.push("b" * 40, other)
    ids = torch.tensor([model.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        assert torch.equal(model(ids), open_published(small)(ids))
        newer = open_published(REPO, cache=tmp_path / "cache")
        assert newer.tensors.source.commit == "b" * 40 and not torch.equal(newer(ids), model(ids))
        assert torch.equal(open_published(f"{REPO}@{COMMIT}", cache=tmp_path / "cache")(ids), model(ids))


@pytest.mark.parametrize("size", [100, 10**9])
def test_a_hub_that_lies_about_a_size_is_found_out(hub, tmp_path, size):
    hub.sizes["model.safetensors"] = size
    with pytest.raises(ValueError, match=r"model\.safetensors of somebody/small-model (has|is no)"):
        open_published(REPO, cache=tmp_path)


def test_what_is_not_there_is_said(hub, tmp_path):
    with pytest.raises(ConnectionError, match=r"somebody/else is no folder, and on the hub it .* answers 404"):
        open_published("somebody/else", cache=tmp_path)
    with pytest.raises(FileNotFoundError, match="no repository somebody/small-model with the revision v9"):
        open_published(f"{REPO}@v9", cache=tmp_path)


def test_a_corrupted_piece_that_is_no_number_is_refused_and_so_is_damage_on_this_disk(hub, small, tmp_path):
    model = open_published(REPO, cache=tmp_path)
    ids = torch.tensor([model.tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        before = model(ids)
    pieces = [file for file in tmp_path.rglob("*") if file.parent.name == "tensors"]
    for file in pieces:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    sent = hub.sent["model.safetensors"]
    with torch.inference_mode():
        assert torch.equal(model(ids), before)
    assert hub.sent["model.safetensors"] > 1.9 * sent - 10_000  # all was fetched anew
    damaged = tmp_path / "damaged"
    shutil.copytree(small, damaged)
    place = Tensors(Folder(damaged)).place("model.layers.1.self_attn.o_proj.weight")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[place.start : place.start + 4] = b"\xff\xff\xff\xff"
    (damaged / "model.safetensors").write_bytes(data)
    hub.push("c" * 40, damaged)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.o_proj\.weight of .* not finite"):
        list(stream_layers(open_published(REPO, cache=tmp_path / "other"), PROMPT))


# --------------------------------------------------------------------------------------------- what is kept


def test_what_is_kept_never_exceeds_its_bound(tmp_path):
    kept = Kept(tmp_path / "kept", 1000)
    for i in range(50):
        kept.put(str(i), bytes([i]) * (20 + 7 * i % 200))
        on_disk = sum(file.stat().st_size for file in (tmp_path / "kept").iterdir())
        assert on_disk == kept.bytes <= 1000
    assert kept.get("49") == bytes([49]) * (20 + 7 * 49 % 200) and kept.bytes > 600
    kept.put("large", bytes(2000))
    assert "large" not in kept and "49" in kept


def test_in_passes_that_do_not_fit_some_pieces_are_found_again(tmp_path):
    kept, found = Kept(tmp_path, 10 * 132), 0
    for _ in range(20):
        for i in range(14):  # 14 pieces, room for 10
            found += kept.get(str(i)) is not None
            kept.put(str(i), bytes(100))
    assert found > 20 * 14 * 0.3  # the one used longest ago is never found


def test_somebody_who_tidies_up_is_no_error(tmp_path):
    kept = Kept(tmp_path, 1000)
    kept.put("a", b"data")
    next(tmp_path.iterdir()).unlink()
    assert kept.get("a") is None and "a" not in kept
    assert Kept(tmp_path, 1000).get("a") is None


def test_a_folder_that_takes_nothing_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Kept(tmp_path / "file" / "kept", 1000)
    with pytest.warns(UserWarning, match="what is fetched is not kept"):
        kept.put("a", b"data")
    assert kept.get("a") is None


# --------------------------------------------------------------------------------------------- what is refused


def file_of(tmp_path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text + data)
    return Folder(tmp_path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("header, length", [
    (b"{", None), (b"[1]", None), ({"a": 3}, None), ({"a": ENTRY}, 10**15), ({"a": ENTRY}, 0),
    ({"a": ENTRY | {"dtype": "I64"}}, None), ({"a": ENTRY | {"shape": [3]}}, None),
    ({"a": ENTRY | {"shape": [-2, -1]}}, None), ({"a": ENTRY | {"data_offsets": [8, 0]}}, None),
    ({"a": ENTRY | {"data_offsets": [0, 8, 9]}}, None), ({"a": ENTRY | {"shape": 2}}, None),
    ({"a": ENTRY | {"other": 2}}, None), ({"a": ENTRY | {"data_offsets": [8, 16]}}, None), (b"[" * 100_000, None),
])  # fmt: skip
def test_a_header_that_cannot_be_is_refused(tmp_path, header, length):
    with pytest.raises(ValueError, match=r"model\.safetensors of"):
        read_header(file_of(tmp_path, header, bytes(8), length), "model.safetensors")


@pytest.mark.parametrize("data", [b"", b"12345678", b"1234567"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="no safetensors file, or is cut off"):
        read_header(Folder(tmp_path), "model.safetensors")


def test_our_header_says_what_safetensors_says(small):
    tensors = Tensors(Folder(small))
    wanted = load_file(small / "model.safetensors")
    assert set(tensors.names()) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(tensors[name], tensor)
    name = "lm_head.weight"
    assert torch.equal(tensors.rows(name, 2, 5), wanted[name][2:5])
    with pytest.raises(ValueError, match=r"has \d+ rows, asked for were 3 to 99"):
        tensors.rows(name, 3, 99)
    with pytest.raises(ValueError, match=r"has no tensor lm_foot\.weight"):
        tensors["lm_foot.weight"]


@pytest.mark.parametrize("changes, message", [
    (dict(num_hidden_layers=900), "num_hidden_layers is 900 in .*, its files have"),
    (dict(n_routed_experts=10**9), "n_routed_experts is 1000000000 in .*, its files have"),
    (dict(num_hidden_layers=4), "has no tensor model.layers.3.input_layernorm.weight, by config.json"),
    (dict(num_hidden_layers=2), "has the tensor model.layers.2.input_layernorm.weight, which a model with"),
    (dict(hidden_size=32), "model.norm.weight of .* has the shape .64., by config.json it must be .32."),
    (dict(quantization_config={"quant_method": "mxfp4"}), "quantization_config.quant_method is 'mxfp4'"),
    (dict(tie_word_embeddings=True), "tie_word_embeddings is True"),
])  # fmt: skip
def test_a_config_that_does_not_fit_its_files_is_refused(small, tmp_path, changes, message):
    folder = tmp_path / "changed"
    shutil.copytree(small, folder)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        open_published(folder)


def test_a_second_head_is_left_out_with_a_sentence(small, tmp_path):
    folder = tmp_path / "with a second head"
    shutil.copytree(small, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.eh_proj.weight"] = torch.zeros(64, 128)
    save_file(weights, folder / "model.safetensors")
    change_config(folder, num_nextn_predict_layers=1)
    with pytest.warns(UserWarning, match="that predict later tokens are left out: 3"):
        model = open_published(folder)
    assert generate(model, PROMPT, 5, seed=0) == generate(open_published(small), PROMPT, 5, seed=0)


def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="it must be a plain name"):
        Tensors(Folder(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor"):
        Tensors(Folder(tmp_path / "empty"))


@pytest.mark.parametrize("n_layers", [0, 4, -1])
def test_layers_that_are_not_there_cannot_be_streamed(small, n_layers):
    with pytest.raises(ValueError, match=f"n_layers is {n_layers}, it must be from 1 to 3"):
        list(stream_layers(open_published(small), PROMPT, n_layers))


# --------------------------------------------------------------------------------------------- the tokenizer


def test_moonshots_two_files_make_the_tokenizer_that_tiktoken_makes(tmp_path):
    texts = ["Once upon a time, Lily lost her red ball. 猫 went home!", "Don't cry, she said. 12345 balls."]
    trained = BPETokenizer.train(texts * 20, 320, "kimi")
    trained.save_ranks(tmp_path / "tiktoken.model")
    n = len(trained.ranks)
    named = {str(n): {"content": "[BOS]"}, str(n + 1): {"content": "[EOS]"}, str(n + 3): {"content": "<|im_end|>"}}
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"added_tokens_decoder": named, "eos_token": "[EOS]"}))
    tok = read_ranks(tmp_path / "tiktoken.model", settings, n + 6)
    assert len(tok) == n + 6 and tok.eos_id == n + 1
    assert tok.specials[f"<|reserved_token_{n + 2}|>"] == n + 2 and tok.specials["<|im_end|>"] == n + 3
    theirs = tiktoken.Encoding(
        "kimi", pat_str=PATTERNS["kimi"], mergeable_ranks=trained.ranks, special_tokens=tok.specials
    )
    for text in [*texts, "[EOS]", "  a\n\nB猫c 99"]:
        assert tok.encode(text) == theirs.encode(text, disallowed_special=())
    settings.write_text(json.dumps({"added_tokens_decoder": named, "eos_token": "</s>"}))
    with pytest.raises(ValueError, match="has the eos_token '</s>', which is none of its tokens"):
        read_ranks(tmp_path / "tiktoken.model", settings, n + 6)
    settings.write_text(json.dumps({"added_tokens_decoder": {"one": 1}}))
    with pytest.raises(ValueError, match="has the token 'one': 1, it must have a number and a content"):
        read_ranks(tmp_path / "tiktoken.model", settings, n + 6)


def test_a_copy_of_a_lazy_model_reads_the_same_files(small):
    model = open_published(small)
    assert isinstance(model, LazyKimi) and copy.deepcopy(model).tensors is model.tensors


@pytest.mark.parametrize("name", ["runs/mine/hf", "model", "", "../secret/model", "a/b/c", "a /b"])
def test_what_is_no_folder_and_no_name_is_said(name):
    with pytest.raises(FileNotFoundError, match="is neither a folder nor OWNER/NAME"):
        open_published(name)


def test_a_hub_that_names_no_commit_writes_nowhere(hub, small, tmp_path):
    hub.commits = {"../../somewhere": small}
    with pytest.raises(ValueError, match=r"is at the commit '../../somewhere', it must be"):
        open_published(REPO, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_nearly_full_is_left_alone(hub, tmp_path, monkeypatch):
    model = open_published(REPO, cache=tmp_path)
    before = model.tensors.kept.bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.warns(UserWarning, match="what is fetched is not kept: .* is on a disk that is nearly full"):
        assert len(list(stream_layers(model, "cat"))) == model.config.n_layers
    assert model.tensors.kept.bytes == before


def test_fp8_without_its_factors_or_with_wrong_ones_is_refused(tmp_path):
    export_hf(model_of("Kimi K2"), tmp_path)
    in_fp8(tmp_path)
    whole, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.experts.0.up_proj.weight"
    scales = whole[f"{name}_scale_inv"]
    for factors, message in [
        (None, f"has no tensor {name}_scale_inv"), (scales[:1], "scale_inv has the shape"),
        (-scales, f"{name}_scale_inv of .* holds factors that are not above 0"), (scales * torch.nan, "not above 0"),
        (scales * torch.inf, f"{name} of .* holds numbers that are not finite"),
    ]:  # fmt: skip
        changed = {**whole, f"{name}_scale_inv": factors}
        save_file({key: t for key, t in changed.items() if t is not None}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            open_published(tmp_path).tensors[name]
    save_file(whole, tmp_path / "model.safetensors")
    change_config(tmp_path, quantization_config=None)
    with pytest.raises(ValueError, match=r"is in fp8, of which its config\.json says nothing"):
        open_published(tmp_path).tensors[name]
    with pytest.raises(ValueError, match="is in fp8: it is read whole"):
        open_published(tmp_path).tensors.rows(name, 0, 1)
