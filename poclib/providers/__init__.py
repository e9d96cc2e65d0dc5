"""Speak to one server: the only wire formats, the only sockets."""

from .ollama import Ollama
from .openai import Embedded, LlamaServer, OpenAI
from .provider import Provider

__all__ = ["KINDS", "Embedded", "Provider"]

KINDS: dict[str, type[Provider]] = {
    "embedded": Embedded,
    "llama-server": LlamaServer,
    "ollama": Ollama,
    "openai": OpenAI,
    "sharded": Embedded,
}
