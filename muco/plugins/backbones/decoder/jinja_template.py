"""The chat template of an exported model, in Jinja: it renders what `pieces_of` renders, up to one token."""

from __future__ import annotations

import json
from dataclasses import dataclass

from muco.plugins.backbones.decoder.chat import EMB
from muco.plugins.backbones.decoder.chat_templates import Template


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and how it writes images and the ends of texts."""

    template: Template
    image: str
    """The placeholder of an image, with the text around it."""
    text_end: str = ""
    """Follows a text that is not empty."""
    leading: str = ""
    """Follows the token that opens every text, for tokenizers that put a space there."""


_SYSTEM = """\
{{- BEGINNING -}}
{%- set chat = namespace(system=SYSTEM, follows=false) -%}
{%- for message in messages if message.role == "system" -%}
  {%- if message.content is string -%}
    {%- set chat.system = message.content -%}
  {%- else -%}
    {%- set chat.system = message.content | map(attribute="text") | join("\\n") -%}
  {%- endif -%}
{%- endfor -%}
{%- if chat.system -%}
  {{- BEFORE_SYSTEM + chat.system + AFTER_SYSTEM -}}
{%- endif -%}
"""
_TURNS = """\
{%- for message in messages if message.role != "system" -%}
  {%- if message.role != "user" -%}
    {{- raise_exception("this model embeds user messages; the role " + message.role + " is not supported") -}}
  {%- endif -%}
  {{- (AFTER_EMBEDDING if chat.follows else "") + BEFORE_USER -}}
  {%- set turn = namespace(text="", gap=GAP, parts=0) -%}
  {%- if message.content is string -%}
    {%- set turn.text = message.content -%}
  {%- else -%}
    {%- for item in message.content if item.type not in ["image", "text"] -%}
      {{- raise_exception("this model embeds texts and images, not " + item.type) -}}
    {%- endfor -%}
    {%- for item in message.content if item.type == "image" -%}
      {{- (turn.gap if GAP_BEFORE_IMAGE else "") + IMAGE -}}
      {%- set turn.gap = "" -%}
    {%- endfor -%}
    {%- for item in message.content if item.type == "text" -%}
      {%- set turn.text = turn.text + ("\\n" if turn.parts else "") + item.text -%}
      {%- set turn.parts = turn.parts + 1 -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if turn.text -%}
    {%- set body = turn.text[:-1] if turn.text.endswith("\\n") else turn.text -%}
    {{- (turn.gap + body if body else "") + TEXT_END -}}
  {%- endif -%}
  {{- AFTER_USER + BEFORE_EMBEDDING + EMBEDDING -}}
  {%- set chat.follows = true -%}
{%- endfor -%}
"""


def jinja_template(chat: ChatFormat, *, system: str, beginning: str = "", ends_turn: bool = False) -> str:
    """Return the template. A chat of several user messages is a dialogue of causal turns.

    In a message, images come first whatever the order of its parts. Several texts are joined by line breaks.

    Args:
        chat: the format.
        system: the system text of chats without one; empty for none.
        beginning: the token that opens every text; empty for none.
        ends_turn: whether the text that closes the last turn follows its embedding token.
    """
    template = chat.template
    opening, closing = template.assistant
    values = {
        "BEGINNING": beginning,
        "SYSTEM": system,
        "BEFORE_SYSTEM": template.system[0],
        "AFTER_SYSTEM": template.system[1],
        "BEFORE_USER": template.user[0],
        "AFTER_USER": template.user[1] + template.between,
        "BEFORE_EMBEDDING": opening,
        "EMBEDDING": EMB,
        "AFTER_EMBEDDING": closing + template.between,
        "GAP": template.gap,
        "IMAGE": chat.image,
        "TEXT_END": chat.text_end,
    }
    lines = [f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items()]
    lines.append(f"{{%- set GAP_BEFORE_IMAGE = {str(template.gap_before_image).lower()} -%}}")
    end = f"{{{{- {_literal(closing)} -}}}}\n" if ends_turn and closing else ""
    return "\n".join(lines) + "\n" + _SYSTEM + _TURNS + end


def _literal(text: str) -> str:
    """Return a string literal of Jinja, with the escapes that JSON and Python share."""
    return json.dumps(text, ensure_ascii=False)
