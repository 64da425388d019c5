"""Write the profiles that `scripts/check_gpu.py` measured to where `--profile` finds them by name.

python scripts/ship_profiles.py out/gpu/profiles.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlbatch.envs.profiles import MEASURED, DeviceProfile
from rlbatch.files import write_atomically


def main() -> None:
    """Write one file a profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="profiles.json of the check")
    parser.add_argument("--out", type=Path, default=MEASURED, help="folder for the profiles")
    arguments = parser.parse_args()
    values = json.loads(arguments.measured.read_text(encoding="utf-8"))["values"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in values.items():
        profile = DeviceProfile.from_json(json.dumps(content["profile"]))
        write_atomically(arguments.out / f"{name}.json", profile.to_json() + "\n")
        print(arguments.out / f"{name}.json")


if __name__ == "__main__":
    main()
