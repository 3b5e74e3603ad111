"""Messages to token ids, through the model's own chat template."""

from __future__ import annotations

from schema.errors import InputError
from schema.generation import Generator
from schema.wire.chat import ChatBody

TAKEN = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""What the template's own machinery is told; a request may only set the switches inside a template."""


def read_conversation(generator: Generator, body: ChatBody) -> list[int]:
    """The conversation's token ids, up to where the answer begins.

    Raises:
        InputError: the model has no chat template, or it does not take these messages.
    """
    switches = body.chat_template_kwargs or {}
    wrong = next((name for name in switches if name in TAKEN or not name.isidentifier()), None)
    if wrong is not None:
        raise InputError(f"chat_template_kwargs: {wrong[:60]!r} is no switch of a template; leave it out")
    messages = [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": message.text,
            **({} if message.name is None else {"name": message.name}),
        }
        for message in body.messages
    ]
    return generator.chat(messages, **switches)
