"""What can go wrong that a user can mend. Each message is one line and says what to do."""

from __future__ import annotations

from pathlib import Path


class LlamaGPUError(Exception):
    """Base of every error that is not a bug in llamagpu. The command line prints it as one line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(LlamaGPUError):
    """A command or a call that cannot be carried out as given."""


class ContextFullError(UsageError):
    """More tokens than the context has room for."""


class OutOfMemoryError(UsageError):
    """Less memory than what was asked for needs."""


class TemplateError(UsageError):
    """A model's chat template that is damaged, computes too much, or refuses the conversation."""


class DeviceError(LlamaGPUError):
    """The device that was asked for cannot be used. Never answered by silently using another one."""


class HubError(LlamaGPUError):
    """A model that the Hugging Face Hub does not give: no network, no such model, no access, no room on the disk."""


class ModelFormatError(LlamaGPUError):
    """A model or tokenizer file that cannot be read: which file, which field of it, what is wrong, what to do."""

    def __init__(self, path: str | Path, field: str, problem: str, remedy: str) -> None:
        self.path, self.field, self.problem, self.remedy = Path(path), field, problem, remedy
        super().__init__(f"{path}: {field}: {problem}; {remedy}")


def printable(text: str) -> str:
    """``text`` on one line: a file name, or a text from a hostile file, may hold newlines or terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
