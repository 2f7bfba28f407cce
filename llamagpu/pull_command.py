"""llamagpu pull: downloads a model of the Hugging Face Hub before it is used."""

from __future__ import annotations


def pull(model: str) -> None:
    """Download a model of the Hugging Face Hub into its cache. stdout is its path.

    Args:
        model: hf:owner/name or owner/name; with several models inside hf:owner/name:FILE, or a part such as Q4_K_M.
    """
    from llamagpu.hub import fetch

    print(fetch(model))
