"""Whatever looks at a model gives it back as it was: its mode, its weights, and the global random numbers."""

import pytest
import torch

from tests.helpers import every_architecture, storyteller
from utils.course.watch import look
from utils.data import TokenData
from utils.evaluate import evaluate, validation_loss
from utils.generation import generate, next_token_probabilities, stream, tell_stories
from utils.hf import export_hf
from utils.model import Kimi, eval_view
from utils.panel.reading import Reading
from utils.training import TrainConfig, train

TEXT = (
    "Once upon a time, Lily lost her red ball. Tom lost his red ball. There was a little girl, a boy named had an it."
)
LOOKS = {
    "generate": lambda model, data, folder: generate(model, "once", 20, seed=0),
    "a stream left half-way": lambda model, data, folder: [
        next(pieces) for pieces in [stream(model, "once", seed=0)] * 2
    ],
    "tell_stories": lambda model, data, folder: tell_stories(model, 3, max_new_tokens=9),
    "next_token_probabilities": lambda model, data, folder: next_token_probabilities(model, "once"),
    "a reading": lambda model, data, folder: list(Reading(model, "once").tell(9)),
    "evaluate": lambda model, data, folder: evaluate(model, data, n_stories=2),
    "validation_loss": lambda model, data, folder: validation_loss(model, data),
    "look": lambda model, data, folder: look(model, n_stories=2),
    "export_hf": lambda model, data, folder: model.config.architecture == "nano" or export_hf(model, folder),
}


def a_model(architecture: str) -> Kimi:
    return storyteller(TEXT, architecture, block_size=32)


def data_for(model: Kimi) -> TokenData:
    return TokenData.from_stories([TEXT] * 20, model.tokenizer)


@every_architecture
@pytest.mark.parametrize("name", LOOKS)
def test_looking_at_a_model_changes_nothing(architecture, name, tmp_path):
    """Fault of the first edition: after `generate`, a training loop of one's own went on in eval mode, without
    dropout, QK-Clip and balancing, and said nothing."""
    model = a_model(architecture)
    for training in (True, False):
        model.train(training)
        model.blocks[0].eval()  # a part may be in another mode than the whole
        modes = {part: part.training for part in model.modules()}
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        random = torch.get_rng_state()
        LOOKS[name](model, data_for(model), tmp_path)
        assert {part: part.training for part in model.modules()} == modes
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
        assert torch.equal(torch.get_rng_state(), random)


@every_architecture
def test_training_gives_the_mode_back_and_leaves_the_global_random_numbers(architecture):
    model = a_model(architecture)
    model.eval()
    model.blocks[0].train()
    modes = {part: part.training for part in model.modules()}
    random = torch.get_rng_state()
    seen = []
    config = TrainConfig(steps=2, batch_size=2, block_size=16, eval_interval=1, eval_batches=1)
    train(model, data_for(model), config, watch=lambda view: seen.append(view.training) or {})
    assert {part: part.training for part in model.modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert seen == [False, False, False]


@every_architecture
def test_a_view_has_no_dropout_and_knows_what_the_model_learns(architecture):
    changes = {"dropout": 0.5} if architecture == "nano" else {}
    model = storyteller(TEXT, architecture, block_size=32, **changes).train()
    view, tokens = eval_view(model), torch.tensor([model.tokenizer.encode(TEXT)])
    with torch.no_grad():
        assert torch.equal(view(tokens), view(tokens))
        before = view(tokens)
        model.head.weight.mul_(2)
        torch.testing.assert_close(view(tokens), 2 * before)


def test_making_a_model_leaves_the_global_random_numbers_where_they_are():
    """Fault of the first edition: torch's own initialisation was drawn first and thrown away."""
    random = torch.get_rng_state()
    models = [a_model("k2"), a_model("nano")]
    assert torch.equal(torch.get_rng_state(), random)
    for model in models:
        again = Kimi(model.config, seed=0)
        once_more = Kimi(model.config, seed=0)
        for ours, theirs in zip(again.parameters(), once_more.parameters(), strict=True):
            assert torch.equal(ours, theirs)
