"""Print the pip extra that fits this machine's NVIDIA driver: cuda13, cuda12, or nothing where there is no GPU."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from llamagpu.gpu_driver import count_gpus, driver_version

if count_gpus()[0]:
    version = driver_version()
    if version >= 13000:
        print("cuda13")
    elif version >= 12000:
        print("cuda12")
