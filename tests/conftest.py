import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SENTENCES = [
    "Who may see my medical file? Only those who treat you may see it.",
    "A nurse can be a man or a woman, and so can a doctor.",
    "I cannot help with that: it would be unfair to people, and it would harm their privacy.",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# Tests whose processes need not be started from nothing fork them from one that has the heavy imports behind it.
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(
    ["fairpriv.run", "fairpriv.classifiers.experiment", "fairpriv.language_models.experiment", "fairpriv.report.page"]
)


@pytest.fixture(scope="session")
def in_two_processes() -> Callable[..., None]:
    """Calls a function in two processes, with 0 and 1 and the arguments given, and waits for both."""

    def call(function: Callable[..., None], *args: object) -> None:
        torch.multiprocessing.start_processes(function, args, nprocs=2, start_method="forkserver")

    return call


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small tensors on shared cores: more threads only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _frozen():
    """Take what was imported to collect tests out of the garbage collector's sight: some tests, and cells, collect."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def imported(_frozen) -> None:
    """Take what cells import out of its sight, too: every language model's cell collects several times."""
    import fairpriv.classifiers.experiment
    import fairpriv.language_models.experiment  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_lms(tmp_path_factory) -> dict[str, Path]:
    """Folders of random language models with two layers, by family, as ``save_pretrained`` leaves them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, chat_template=CHATML, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # wide enough that answers differ
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    families = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    folders = {}
    for family, (config, architecture) in families.items():
        folders[family] = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            architecture(config(**sizes)).save_pretrained(folders[family])
        tokenizer.save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="session")
def tiny_lm(tiny_lms) -> Path:
    """The folder of one of them: a Llama. Never written to."""
    return tiny_lms["llama"]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """The folder of a random BERT with one layer that knows a few words. Never written to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "he", "she", "is", "a", "nurse", "surgeon", "and"]
    words += ["not", "works", "with", "people"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder
