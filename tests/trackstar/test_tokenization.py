"""Text to examples: long documents, queries' supervised tokens, and what cannot be used."""

import pytest

from tests.tiny_models import tiny_tokenizer
from trackstar.corpus import Record
from trackstar.tokenization import Tokenization, UnusableRecordError


def make(max_length: int = 64, long_documents: str = "truncate", append_eos: bool = False, vocabulary: int = 300):
    return Tokenization(tiny_tokenizer(), vocabulary, max_length, long_documents, append_eos)


def record(text: str | None = None, input_ids: tuple[int, ...] | None = None) -> Record:
    return Record("doc", "shard", 17, text, input_ids)


def test_a_document_is_one_example() -> None:
    [example], cut = make().documents(record("The capital of France is Paris."))
    assert not cut
    assert tiny_tokenizer().decode(list(example.input_ids)) == "The capital of France is Paris."
    assert (example.example_id, example.position, example.first_target) == ("doc", 17, 1)
    [with_eos], _ = make(append_eos=True).documents(record("The capital of France is Paris."))
    assert with_eos.input_ids == (*example.input_ids, tiny_tokenizer().eos_token_id)


def test_truncation_is_told_and_keeps_the_text_that_was_seen() -> None:
    text = "The capital of France is Paris. " * 20
    [example], cut = make(max_length=10).documents(record(text))
    assert cut
    assert len(example.input_ids) == 10
    assert text.startswith(example.text) and len(example.text) < 60


def test_splitting_predicts_every_token_once() -> None:
    text = "The capital of Italy is Rome, which is a city. " * 9
    whole = tuple(tiny_tokenizer()(text)["input_ids"])
    for max_length in (2, 5, 16, len(whole), len(whole) + 1):
        examples, cut = make(max_length, "split").documents(record(text))
        assert not cut
        assert all(2 <= len(example.input_ids) <= max_length for example in examples)
        predicted = [token for example in examples for token in example.input_ids[example.first_target :]]
        assert tuple(predicted) == whole[1:]
        if len(examples) > 1:
            assert [example.example_id for example in examples] == [f"doc#{i}" for i in range(len(examples))]
            assert "".join(e.text.strip() for e in examples).replace(" ", "") == text.replace(" ", "")


def test_token_ids_need_no_tokenizer() -> None:
    tokenization = Tokenization(None, 50, 4, "split", False)
    examples, _ = tokenization.documents(record(input_ids=(1, 2, 3, 4, 5, 6)))
    assert [example.input_ids for example in examples] == [(1, 2, 3, 4), (4, 5, 6)]
    assert examples[0].text is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"input_ids": (3,)}, r"1 token\(s\): no token to predict"),
        ({"input_ids": ()}, r"0 token\(s\)"),
        ({"input_ids": (3, 300, 4)}, "token 300 lies outside the model's vocabulary of 300"),
        ({"input_ids": (3, -1, 4)}, "token -1 lies outside"),
        ({"text": "a"}, r"1 token\(s\)"),
    ],
)
def test_unusable_documents(given: dict, reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        make().documents(record(**given))


def test_a_model_of_another_vocabulary_is_suspected() -> None:
    with pytest.raises(UnusableRecordError, match="is the model of another vocabulary"):
        make(vocabulary=20).documents(record("The capital of France is Paris."))


@pytest.mark.parametrize(
    ("prompt", "target", "supervised"),
    [
        ("The capital of France is", " Paris", " Paris"),
        ("The capital of France is", "Paris", " Paris"),
        ("The capital of France is ", "Paris", " Paris"),
        ("The capital of France is", " Paris.", " Paris."),
        ("Rome is a city in", "Italy", " Italy"),
    ],
)
def test_queries_supervise_the_target_alone(prompt: str, target: str, supervised: str) -> None:
    query = make().query("q", prompt, target)
    assert tiny_tokenizer().decode(list(query.input_ids[query.first_target :])) == supervised
    assert tiny_tokenizer().decode(list(query.input_ids[: query.first_target])) == prompt.rstrip()


def test_long_prompts_lose_their_beginning_not_the_target() -> None:
    query = make(max_length=12).query("q", "The capital of Italy is Rome. " * 10 + "The capital of France is", " Paris")
    assert len(query.input_ids) == 12
    assert tiny_tokenizer().decode(list(query.input_ids)).endswith("The capital of France is Paris")
    assert tiny_tokenizer().decode(list(query.input_ids[query.first_target :])) == " Paris"


@pytest.mark.parametrize(
    ("prompt", "target", "reason"),
    [("The", " ", "target is empty"), ("", "a", "give a prompt"), ("The", " capital of France" * 20, "the target has")],
)
def test_unusable_queries(prompt: str, target: str, reason: str) -> None:
    with pytest.raises(UnusableRecordError, match=reason):
        make(max_length=8).query("q", prompt, target)


def test_an_end_of_text_token_that_the_tokenizer_adds_is_not_supervised() -> None:
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    query = Tokenization(tokenizer, 300, 64, "truncate", False).query("q", "The capital of France is", " Paris")
    assert query.input_ids[0] == 0
    assert tiny_tokenizer().decode(list(query.input_ids[query.first_target :])) == " Paris"


@pytest.mark.parametrize("unit", ["The capital of Italy is Rome. ", "x", " ", "\0\u2028é"])
def test_of_a_very_long_text_only_the_beginning_is_tokenized(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer takes up to 1 kB a token, so a line of 64 MiB would take all memory that there is."""
    asked: list[int] = []
    tokens_of = Tokenization.tokens

    def counted(self: Tokenization, text: str):
        asked.append(len(text))
        return tokens_of(self, text)

    text = unit * (300_000 // len(unit))
    [expected], cut = make(append_eos=True).documents(record(text))
    monkeypatch.setattr(Tokenization, "tokens", counted)
    monkeypatch.setattr("trackstar.tokenization._HEAD_CHARACTERS", 2000)
    assert make(append_eos=True).documents(record(text)) == ([expected], cut) == ([expected], True)
    assert len(expected.input_ids) == 64
    assert asked == [2000]


def test_a_text_of_few_tokens_is_read_as_far_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thousand characters are one token, the beginning has to be longer."""
    monkeypatch.setattr("trackstar.tokenization._HEAD_CHARACTERS", 100)
    text = "The capital of Italy is Rome. " * 100
    expected = make(max_length=6).documents(record(text))
    monkeypatch.setattr("trackstar.tokenization._HEAD_CHARACTERS_PER_TOKEN", 1)
    assert make(max_length=6).documents(record(text)) == expected
    whole = tiny_tokenizer()(text)["input_ids"]
    examples, _ = make(max_length=6, long_documents="split").documents(record(text))
    assert sum(len(example.input_ids) - 1 for example in examples) == len(whole) - 1
