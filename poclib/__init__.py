"""Measure what is gained when independent prompts are spread over several LLM servers."""

__version__ = "0.1.0"
