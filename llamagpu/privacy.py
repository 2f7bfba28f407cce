"""Libraries that llamagpu uses report nothing about their users."""

from __future__ import annotations

import os

# huggingface_hub reads these when it is imported. DO_NOT_TRACK is a convention that other programs follow, too.
NO_REPORTS = {
    "DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}


def turn_off_usage_reports() -> None:
    """Set the environment variables that turn usage reports and checks for updates off. What is set already stays."""
    for name, value in NO_REPORTS.items():
        os.environ.setdefault(name, value)
