"""Which files of the package do too few tests run? Reads what `coverage` measured; exit code 1 where a file is below the floor.

python tools/coverage_floor.py 85
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(floor: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(report)], check=True)
        measured = json.loads(report.read_text(encoding="utf-8"))
    by_file = {name: found["summary"] for name, found in measured["files"].items() if found["summary"]["num_statements"]}
    low = {name: summary["percent_covered"] for name, summary in by_file.items() if summary["percent_covered"] < floor}
    for name, percent in sorted(low.items(), key=lambda item: item[1]):
        missing = measured["files"][name]["missing_lines"]
        print(f"{percent:5.1f} %  {name}  lines {', '.join(map(str, missing[:40]))}{' ...' if len(missing) > 40 else ''}")
    print(
        f"{measured['totals']['percent_covered']:.1f} % of {measured['totals']['num_statements']} statements in {len(by_file)} files; ",
        end="",
    )
    print(f"{len(low)} files below {floor:g} %")
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
