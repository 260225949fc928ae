"""Llama 3's own tokenizer, built from the ranks that the package `llama-models` ships: no hub needed."""

from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

# What Llama 3.2's template renders for a conversation without tools, in our own words.
CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
)


@cache
def reference_tokenizer():
    """Meta's tokenizer (tiktoken), an implementation of its own: the slow twin."""
    from llama_models.llama3.tokenizer import Tokenizer

    return Tokenizer.get_instance()


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """The text tokenizer of Llama 3.2 (128,256 tokens), new each time since tests extend it."""
    import llama_models.llama3

    special = sorted(reference_tokenizer().special_tokens.items(), key=lambda item: item[1])
    ranks = Path(llama_models.llama3.__file__).parent / "tokenizer.model"
    converter = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=[name for name, _ in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
