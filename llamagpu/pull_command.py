"""llamagpu pull: a model of the Hugging Face Hub, downloaded ahead of its use."""

from __future__ import annotations


def pull(model: str) -> None:
    """Download a model of the Hugging Face Hub into its cache. stdout is where it lies.

    Args:
        model: hf:owner/name or owner/name; with several models inside hf:owner/name:FILE, or a part such as Q4_K_M.
    """
    from llamagpu.hub import fetch

    print(fetch(model))
