"""The tokenizer, the processor and the prompt: one token per character, whole words for the question."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlkv.eval.forms import CELL, KEYS, SIDE, VALUE_CHARACTERS

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
PAD, BOS, EOS, UNK, IMAGE = range(len(SPECIAL))
WORDS = ["\n", "?", ":", "what", " is", " the"]
VOCABULARY = {
    token: i for i, token in enumerate([*SPECIAL, *WORDS, *(f" {k}" for k in KEYS), *VALUE_CHARACTERS])
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\\nA:' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nA:' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a fast word-level tokenizer. A word carries the blank before it; unknown words become `<unk>`."""
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Z]?[a-z]+|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    core.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> LlavaProcessor:
    """Makes the Hugging Face processor. Pictures are not resized; white becomes 0 and black -4."""
    pictures = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[1.0, 1.0, 1.0],
        image_std=[0.25, 0.25, 0.25],
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=make_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def prompt(processor: LlavaProcessor, text: str) -> str:
    """Returns the text that the model sees for one picture and one question, by the chat template."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


KEY_ROW = 3  # where the key stands in a question's tokens


def question_ids(key: str, times: int = 1) -> list[int]:
    """Returns the tokens after the picture for a question about a key. There are eight, and the fourth is the key.

    A longer prompt asks several times, once per line.
    """
    asked = ["what", " is", " the", f" {key}", "?", "\n"]
    return [VOCABULARY[t] for t in (*asked * times, "A", ":")]


def question_words(times: int = 1) -> str:
    """Returns the question as text with `{key}` in place of the key. The chat template adds the rest."""
    return "\n".join(["what is the {key}?"] * times)


def answer_ids(value: str) -> list[int]:
    """Returns the answer's tokens: the characters of the value, then EOS."""
    return [*(VOCABULARY[c] for c in value), EOS]
