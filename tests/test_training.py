"""Training: the schedule, learning, stopping and going on, and never losing a run."""

import json
import math
import os
import signal

import pytest
import torch

from tests.helpers import tiny_k2_model, tiny_model, visible
from utils.checkpoint import load_checkpoint, load_model, save_checkpoint
from utils.config import TrainConfig
from utils.data import TokenData
from utils.evaluate import validation_loss
from utils.muonclip import AdamW
from utils.plots import BLUE, COLOUR, VERMILION, LossFigure
from utils.run_state import RunState
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer
from utils.train_command import loss_figure
from utils.training import History, TrainingDiverged, learning_rate, train

CONFIG = TrainConfig(
    steps=12, batch_size=4, block_size=16, lr=1e-2, eval_interval=5, eval_batches=2, number_format="fp32"
)
STORIES = builtin_stories(60, seed=1)
TOK = WordTokenizer.train(STORIES)
DATA = TokenData.from_stories(STORIES, TOK)
TIMES = ("tokens_per_second", "seconds")  # the only parts of a history that differ between equal runs


def new_model(make=tiny_model, **changes):
    model = make(len(TOK), **changes)
    model.tokenizer = TOK
    return model


def without_times(history):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history.rows]


def changed(**fields):
    return TrainConfig(**{**vars(CONFIG), **fields})


def test_the_rate_warms_up_and_falls_on_a_cosine():
    config = TrainConfig(steps=100, warmup=0.1, decay=0.9, lr=1.0, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[54] == pytest.approx(0.55) and rates[99] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_the_rate_can_stay_between_warm_up_and_decay():
    config = TrainConfig(steps=100, warmup=0.1, decay=0.3, lr=2.0, final_lr=0.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert set(rates[10:70]) == {2.0} and rates[70] < 2.0 and rates[84] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.0, abs=1e-12)
    assert {learning_rate(step, changed(decay=0.0, warmup=0.0)) for step in range(12)} == {CONFIG.lr}


def test_kimi_k2s_own_schedule():
    """Report, sec. 2.5: 500 steps up to 2e-4, held for 10T tokens, a cosine to 2e-5 over 5.5T."""
    tokens_per_step = 2**26
    steps = round(15.5e12 / tokens_per_step)
    config = TrainConfig(steps=steps, warmup=500 / steps, decay=5.5 / 15.5, lr=2e-4, final_lr=0.1)
    expected = {500: 2e-4, 10e12 / tokens_per_step: 2e-4, 12.75e12 / tokens_per_step: 1.1e-4, steps: 2e-5}
    for step, rate in expected.items():
        assert learning_rate(round(step) - 1, config) == pytest.approx(rate, rel=1e-4)
    assert learning_rate(249, config) == pytest.approx(1e-4)


def test_training_learns_and_leaves_its_files(tmp_path):
    model = new_model()
    figure = LossFigure(tmp_path / "loss.png")
    history = train(model, DATA, changed(steps=60, eval_interval=20), out_dir=tmp_path, show=figure)
    assert history.step == 60 and [row["step"] for row in history.rows] == [0, 20, 40, 60]
    assert history.losses[-1] < history.losses[0] - 1
    assert visible(tmp_path) == ["checkpoint.safetensors", "history.json", "loss.png"]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert History.load(tmp_path / "history.json") == history
    loaded, step = load_model(tmp_path)
    assert step == 60 and not loaded.training
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), model.parameters(), strict=True))


def test_the_validation_split_is_measured_and_never_trained_on(monkeypatch):
    """Fault of the original notebook: its validation split was never evaluated."""
    drawn = []
    batch = TokenData.batch
    monkeypatch.setattr(TokenData, "batch", lambda self, split, *a: drawn.append(split) or batch(self, split, *a))
    history = train(new_model(), DATA, CONFIG)
    assert (
        drawn == ["val"] * 2 + ["train"] * 5 + ["val"] * 2 + ["train"] * 5 + ["val"] * 2 + ["train"] * 2 + ["val"] * 2
    )
    assert history.rows[-1]["val_loss"] < history.rows[0]["val_loss"]


def test_the_same_seed_gives_the_same_run_and_outside_randomness_has_no_say():
    losses = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = new_model(dropout=0.2)
        torch.manual_seed(noise)
        losses.append(train(model, DATA, changed(seed=seed)).losses)
        after_training = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(torch.rand(1), after_training)  # nothing was taken from the outside
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    "make, changes, optimizer",
    [(tiny_model, {}, "adamw"), (tiny_model, {"dropout": 0.3}, "muonclip"), (tiny_k2_model, {}, "muonclip")],
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path, make, changes, optimizer, monkeypatch):
    """Fault of the original notebook: it had no checkpoint."""
    config = changed(optimizer=optimizer, tau=2.0, accumulation=2)
    whole = new_model(make, **changes)
    expected = train(whole, DATA, config)

    interrupt_at(monkeypatch, 7)
    stopped = train(new_model(make, **changes), DATA, config, out_dir=tmp_path)
    assert stopped.step == 7
    monkeypatch.undo()
    resumed = new_model(make, **changes, seed=9)  # its own weights do not matter
    history = train(resumed, DATA, config, out_dir=tmp_path, resume=True)

    assert history.losses == expected.losses and without_times(history) == without_times(expected)
    ours, theirs = whole.state_dict(), resumed.state_dict()  # the experts' biases among them
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def interrupt_at(monkeypatch, step):
    """Press Ctrl-C in the middle of a step."""
    calls = []
    batch = TokenData.batch

    def batch_with_interrupt(self, split, *args):
        calls.append(split)
        if calls.count("train") == 2 * step - 1:  # two batches make a step
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, split, *args)

    monkeypatch.setattr(TokenData, "batch", batch_with_interrupt)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 3)
    handler = signal.getsignal(signal.SIGINT)
    history = train(new_model(), DATA, changed(accumulation=2), out_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert history.step == load_checkpoint(tmp_path)["step"] == 3
    assert f"stopped after step 3 of 12: it is saved in {tmp_path}; go on with --resume" in capsys.readouterr().out


def test_resuming_where_nothing_is_starts_a_run_and_a_finished_one_stays(tmp_path):
    model = new_model()
    history = train(model, DATA, CONFIG, out_dir=tmp_path, resume=True)
    again = train(new_model(seed=5), DATA, CONFIG, out_dir=tmp_path, resume=True)
    assert again == history


def test_a_run_is_never_overwritten_unasked(tmp_path):
    train(new_model(), DATA, CONFIG, out_dir=tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds another run: continue it with --resume or replace it"):
        train(new_model(), DATA, CONFIG, out_dir=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert train(new_model(), DATA, changed(steps=3), out_dir=tmp_path, overwrite=True).step == 3


def test_a_run_is_only_continued_as_it_began(tmp_path):
    train(new_model(), DATA, CONFIG, out_dir=tmp_path)
    others = TokenData.from_stories(STORIES[:30], TOK)
    for model, data, config, message in (
        (new_model(), DATA, changed(lr=0.5), "saved run has lr=0.01, to continue it must stay so, not 0.5"),
        (new_model(d_ff=40), DATA, CONFIG, "saved model has d_ff=48"),
        (new_model(), others, CONFIG, "the stories are not those the run began with"),
    ):
        with pytest.raises(ValueError, match=message):
            train(model, data, config, out_dir=tmp_path, resume=True)
    assert load_checkpoint(tmp_path)["step"] == 12
    save_checkpoint(tmp_path, new_model(), 12)
    with pytest.raises(ValueError, match="no run to continue"):
        train(new_model(), DATA, CONFIG, out_dir=tmp_path, resume=True)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    monkeypatch.setattr("utils.training.refuse_too_much", lambda *_: None)  # it runs the model as well
    model = new_model()
    steps = []

    def break_at_step_8(embedding, args):
        if embedding.training:  # not in a validation, which reads a view of the model
            steps.append(1)
            if len(steps) == 8:
                if where == "loss":
                    with torch.no_grad():
                        model.head.weight[0, 0] = math.nan
                else:
                    model.head.weight.register_hook(lambda grad: grad * math.inf)

    model.embedding.register_forward_pre_hook(break_at_step_8)
    with pytest.raises(
        TrainingDiverged,
        match=r"at step 8, the largest attention logit of each layer was .*, .*the checkpoint of step \d is kept",
    ):
        train(model, DATA, changed(checkpoint_minutes=1e-9), out_dir=tmp_path)
    state = load_checkpoint(tmp_path)
    assert 1 <= state["step"] < 8
    assert all(weight.isfinite().all() for weight in state["model"].values())


HARMLESS = {"a spike of the loss": 30.0, "a large gradient": 1e12, "no gradient": 0.0, "a tiny gradient": 1e-30}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_a_failure_is_no_alarm(tmp_path, monkeypatch, name):
    monkeypatch.setattr("utils.training.refuse_too_much", lambda *_: None)  # it runs the model as well
    model, factor, seen = new_model(), HARMLESS[name], []

    def disturb(norm, args, output):
        if norm.training:
            seen.append(1)
        if not norm.training or len(seen) != 5:
            return output
        if name == "a spike of the loss":
            return output * factor
        output.register_hook(lambda grad: grad * factor)
        return output

    model.norm.register_forward_hook(disturb)
    history = train(model, DATA, changed(checkpoint_minutes=1e-9), out_dir=tmp_path)
    assert history.step == 12 == load_checkpoint(tmp_path)["step"] and all(map(math.isfinite, history.losses))
    assert (history.losses[4] > history.losses[3] + 1) == (name == "a spike of the loss")


def test_an_average_of_the_optimizer_that_is_no_number_is_not_saved(tmp_path):
    """The weights are still whole: they would break in the first step after a resume."""
    model, made = new_model(), []
    step = AdamW.step

    def note(optimizer, *args):
        made.append(optimizer)
        return step(optimizer, *args)

    def poison(history):
        if history.step == 5:
            next(iter(made[-1].state.values()))["square"].view(-1)[0] = math.inf

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingDiverged, match=r"optimizer\.0\.square is not"):
        patch.setattr(AdamW, "step", note)
        train(model, DATA, changed(optimizer="adamw"), out_dir=tmp_path, show=poison)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_accumulating_halves_equals_the_whole_batch(monkeypatch):
    """Two batches of 4 windows make the loss and the gradient of one batch of 8."""
    generator = torch.Generator().manual_seed(CONFIG.seed)
    halves = [DATA.batch("train", 4, 16, generator) for _ in range(2)]
    x, y = (torch.cat(parts) for parts in zip(*halves, strict=True))
    model = new_model(balance_coef=0.0)
    loss = model.loss(x, y)
    expected = torch.autograd.grad(loss, list(model.parameters()))

    seen = {}
    monkeypatch.setattr(
        "utils.muonclip.clip_gradients_",
        lambda params, max_norm: seen.update({p: p.grad.clone() for p in params}) or torch.ones(()),
    )
    twin = new_model(balance_coef=0.0)
    history = train(twin, DATA, changed(steps=1, accumulation=2))
    assert history.losses[0] == pytest.approx(loss.item(), rel=1e-5)
    for p, whole in zip(twin.parameters(), expected, strict=True):
        torch.testing.assert_close(seen[p], whole, atol=1e-6, rtol=1e-4)


def test_a_history_row_says_how_many_tokens_each_expert_got():
    history = train(new_model(), DATA, changed(accumulation=3))
    names = ("expert_load", "dead_experts", "max_logits")
    assert [history.rows[0][name] for name in names] == [None] * 3  # nothing was trained on yet
    for row in history.rows[1:]:
        assert [sum(layer) for layer in row["expert_load"]] == [3 * 4 * 16 * 2] * 2  # of one step, all its batches
        assert row["dead_experts"] == sum(n == 0 for layer in row["expert_load"] for n in layer) / 8


def test_a_history_row_says_how_large_the_logits_of_each_head_are():
    """They are of the step before, and QK-Clip keeps them near tau."""
    largest = {}
    for tau in (1.0, math.inf):
        history = train(new_model(), DATA, changed(optimizer="muonclip", lr=0.1, tau=tau, steps=20))
        logits = [row["max_logits"] for row in history.rows[1:]]
        assert [[len(layer) for layer in row] for row in logits] == [[4, 4]] * 4
        largest[tau] = max(map(max, logits[-1]))
    assert largest[1.0] < 2 and largest[math.inf] > 5


@pytest.mark.parametrize("make", [tiny_model, tiny_k2_model])
def test_a_part_of_the_model_keeps_the_mode_that_it_was_in(make):
    """Validation reads a view: whoever froze a part, or looks at the model meanwhile, finds it as it was."""
    model = new_model(make)
    model.train()
    model.blocks[1].eval()
    modes, seen = [part.training for part in model.modules()], []
    train(model, DATA, CONFIG, watch=lambda view: seen.append((view.training, model.training)) or {})
    assert [part.training for part in model.modules()] == modes
    assert seen == [(False, True)] * 4


def test_the_validation_loss_predicts_every_token_once():
    model = new_model().eval()
    ids = torch.from_numpy(DATA.split("val").astype(int))
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        x, y = ids[start : start + 16][: len(ids) - 1 - start], ids[start + 1 : start + 17]
        total += model(x[None], targets=y[None])[1].item() * len(y)
    assert validation_loss(model, DATA, batch_size=3) == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_a_block_longer_than_the_models_is_named():
    with pytest.raises(ValueError, match=r"block_size is 32, the model's is 16"):
        train(new_model(), DATA, changed(block_size=32))


# Checkpoints


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        load_model(tmp_path / "nowhere")


def test_a_history_is_plain_json(tmp_path):
    train(new_model(), DATA, CONFIG, out_dir=tmp_path)
    assert set(json.loads((tmp_path / "history.json").read_text())) == {"losses", "rows"}


def test_a_watcher_sees_the_model_at_each_validation_and_its_findings_are_kept(tmp_path):
    seen = []

    def watch(model):
        seen.append(model.training)
        return {"weight": model.head.weight[0, 0].item()}

    model = new_model()
    history = train(model, DATA, CONFIG, out_dir=tmp_path, watch=watch)
    assert seen == [False] * 4  # steps 0, 5, 10, 12
    assert history.rows[-1]["weight"] == model.head.weight[0, 0].item() != history.rows[0]["weight"]
    state = load_checkpoint(tmp_path)
    assert (
        History.load(tmp_path / "history.json")
        == history
        == History(state["tensors"]["losses"].tolist(), state["training"]["rows"])
    )


def test_watching_changes_nothing_of_the_run():
    plain, watched = new_model(dropout=0.2), new_model(dropout=0.2)
    one = train(plain, DATA, CONFIG)
    other = train(watched, DATA, CONFIG, watch=lambda model: {"chance": torch.rand(3).tolist()})
    assert one.losses == other.losses


def test_the_first_checkpoint_comes_early(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.keeping.Keeper.FIRST_SAVE_SECONDS", 0)
    saved, save = [], RunState.save
    monkeypatch.setattr(RunState, "save", lambda self, folder: saved.append(self.step) or save(self, folder))
    train(new_model(), DATA, changed(checkpoint_minutes=1000.0), out_dir=tmp_path)
    assert saved == [1, 12]  # the first step, then nothing for 1,000 minutes, and the end


def test_a_continued_run_keeps_its_notes_and_shows_at_once_how_far_it_had_come(tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 3)
    train(new_model(), DATA, changed(accumulation=2), out_dir=tmp_path, recipe={"source": "here"})
    monkeypatch.undo()
    drawn = []

    def show(history):
        drawn.append(history.step)

    train(new_model(), DATA, changed(accumulation=2), out_dir=tmp_path, resume=True, show=show)
    assert drawn == [3, 5, 10, 12]
    state = load_checkpoint(tmp_path)
    assert state["step"] == 12 and state["training"]["recipe"] == {"source": "here"}


@pytest.mark.parametrize("steps", [12, 14])
def test_history_and_picture_come_back_on_every_resume(tmp_path, steps):
    train(new_model(), DATA, CONFIG, out_dir=tmp_path)
    (tmp_path / "history.json").unlink()
    history = train(new_model(), DATA, changed(steps=steps), tmp_path, True, show=LossFigure(tmp_path / "loss.png"))
    assert history.step == steps and History.load(tmp_path / "history.json") == history
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_baselines_are_lines_of_the_loss_figure_and_each_architecture_has_its_colour(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.plots.draw_loss", lambda axes, history, *settings: drawn.append(settings))
    for make in (tiny_model, tiny_k2_model):
        model = new_model(make)
        figure = LossFigure(tmp_path / "loss.png", {"trigram": 1.5}, COLOUR[model.config.architecture])
        train(model, DATA, changed(steps=5), tmp_path, overwrite=True, show=figure)
        train(model, DATA, changed(steps=5), show=loss_figure(tmp_path, model))  # the command line's
    assert drawn == [({"trigram": 1.5}, BLUE), (None, BLUE), ({"trigram": 1.5}, VERMILION), (None, VERMILION)]
