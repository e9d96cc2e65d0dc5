"""Speak to one server: the only wire formats, the only sockets."""

from .llama_server import Embedded, LlamaServer
from .ollama import Ollama
from .openai import OpenAI
from .provider import Provider

__all__ = ["KINDS", "Embedded", "Provider"]

KINDS: dict[str, type[Provider]] = {
    "embedded": Embedded,
    "llama-server": LlamaServer,
    "ollama": Ollama,
    "openai": OpenAI,
}
