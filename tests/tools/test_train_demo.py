"""The demo model's training script on a few kB of text: what it writes loads, repeats, resumes and can be a teacher."""

import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn"]
THINGS = ["a ball", "a red kite", "an old hat", "the big dog", "two apples"]


@pytest.fixture(scope="module", autouse=True)
def tools_on_path() -> Iterator[None]:
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories of two paragraphs, parted by single line breaks as in the TinyStories files."""
    file = tmp_path_factory.mktemp("text") / "stories.txt"
    stories = [
        f'Once upon a time, {a} had {b}.\n\n{c} came and said, "May I have {b}, {a}?"\nOne day {c} gave it back.'
        for a in NAMES
        for b in THINGS
        for c in NAMES
    ]
    file.write_text("\n".join(stories), encoding="utf-8")
    return file


def train(text: Path, out: Path, state: Path, *more: str) -> None:
    from train_demo import main

    sizes = {
        "steps": 3,
        "save-every": 2,
        "batch": 2,
        "context": 128,
        "vocabulary": 300,
        "blocks": 2,
        "streams": 4,
        "threads": 1,
    }
    paths = {"text": text, "out": out, "state": state}
    main([*(f"--{name}={value}" for name, value in (paths | sizes).items()), *more])


def digest(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(text, folder / "model", folder / "state")
    return folder


def test_writes_a_directory_that_transformers_loads(trained: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings and model.config.vocab_size == len(tokenizer)
    assert all(p.shape[-1] % 256 == 0 for p in model.parameters())
    for string in ("Once upon a time", "tabs\tand\n\nlines", "naïve – 日本 🙂"):
        ids = tokenizer(string).input_ids
        assert ids[0] == model.config.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == string


def test_resumes_to_the_same_weights(trained: Path, text: Path) -> None:
    # The state still holds the checkpoint of step 2, so this run does step 3 alone.
    train(text, trained / "again", trained / "state")
    assert digest(trained / "again") == digest(trained / "model")
    train(text, trained / "other", trained / "fresh", "--seed", "2")
    assert digest(trained / "other") != digest(trained / "model")


def test_refuses_the_checkpoint_of_another_run(trained: Path, text: Path) -> None:
    with pytest.raises(SystemExit, match="other settings"):
        train(text, trained / "never", trained / "state", "--seed", "2")
    assert not (trained / "never").exists()


def test_samples_text_from_a_teacher(trained: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher", str(trained / "model")]
    train(text, trained / "taught", trained / "taught-state", *teacher)
    assert "sampling: block 2/2" in capsys.readouterr().out
    assert digest(trained / "taught") != digest(trained / "model")

    (trained / "taught-state" / "training.safetensors").unlink()
    train(text, trained / "taught-again", trained / "taught-state", *teacher)
    assert "sampling:" not in capsys.readouterr().out, "the sampled tokens are kept"
    assert digest(trained / "taught-again") == digest(trained / "taught")


def test_makes_models_of_other_sizes(text: Path, tmp_path: Path) -> None:
    train(text, tmp_path / "wide", tmp_path / "state", "--hidden", "128", "--ffn", "512", "--layers", "1")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "wide")
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (128, 512, 1)
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    with pytest.raises(SystemExit, match="--hidden a multiple of 128"):
        train(text, tmp_path / "never", tmp_path / "other", "--hidden", "192")


def test_bits_per_byte_counts_every_byte(trained: Path, tmp_path: Path) -> None:
    from bits_per_byte import bits_per_byte, windows

    ids = list(range(1000))
    scored = [token for window, count in windows(ids, 63) for token in window[len(window) - count :]]
    assert scored == ids, "each token is scored once, in order"

    # By hand, for a text that fits one window.
    model = transformers.AutoModelForCausalLM.from_pretrained(trained / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained / "model")
    sentence = "Ann had a ball. Ünd?"
    tokens = torch.tensor([tokenizer(sentence).input_ids])
    nats = model(input_ids=tokens, labels=tokens).loss.item() * (tokens.shape[1] - 1)
    figure, count = bits_per_byte(trained / "model", sentence, None, True, False)
    assert count == tokens.shape[1] - 1
    assert figure == pytest.approx(nats / torch.log(torch.tensor(2.0)).item() / len(sentence.encode()), rel=1e-5)


def test_the_shipped_model_is_what_the_script_makes() -> None:
    from bits_per_byte import bits_per_byte
    from demo.training import Shape, architecture

    from irlab.demo import path

    weights = path() / "model.safetensors"
    assert weights.stat().st_size < 8_000_000
    with safe_open(weights, "pt") as file:
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (a safe_open is no mapping)
        assert {tensor.get_dtype() for tensor in stored.values()} == {"BF16"}
        assert 2_000_000 < sum(math.prod(tensor.get_shape()) for tensor in stored.values()) < 4_000_000
    shipped = transformers.AutoConfig.from_pretrained(path())
    made = architecture(Shape(vocabulary=shipped.vocab_size, context=shipped.max_position_embeddings))
    differing = {key for key, value in made.to_dict().items() if shipped.to_dict()[key] != value}
    assert differing <= {"_name_or_path", "architectures", "dtype", "transformers_version"}

    story = (
        "Once upon a time, there was a little boy named Tim. Tim had a red ball. He liked to play with the ball in the "
        'park.\nOne day, the ball rolled under a big tree. Tim was sad. A kind bird saw him and said, "Do not be sad. '
        'I can help you." The bird pushed the ball back to Tim. Tim was very happy and said, "Thank you!"'
    )
    figure, _ = bits_per_byte(path(), story, window=None, use_bos=True, by_story=False)
    assert figure < 1.1, "it knows stories (a uniform guess over its tokens needs about 3.3)"
