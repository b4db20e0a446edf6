"""A long stream with spikes on disk: memory over time, a kill at a random step, and the same files after it.

    python tools/endurance.py [--steps 1000000] [--folder FOLDER]

K 512, M 256, B 4, a still input of random numbers. One run goes through; a second is killed at a random
moment and resumed. The exit status is 1 where resident memory grew by more than 1 % after the first tenth, or
a file differs. Prints what it measured, sizes on disk against dense floats included.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

B, K, M = 4, 512, 256
RUN = f"""
import json, sys, time, torch
from pathlib import Path
from ipvae import IPVAE, IPVAEConfig, Stream
folder, steps, samples = Path(sys.argv[1]), int(sys.argv[2]), []
torch.manual_seed(0)
model = IPVAE(IPVAEConfig(n_inputs={M}, n_latents={K}, init_scale=0.05)).eval()
x = torch.randn({B}, {M})
resumes = (folder / "state.safetensors").exists()
stream = Stream.resume(model, folder) if resumes else Stream(model, seed=1, record=folder)
begin = time.perf_counter()
while stream.steps < steps:
    stream.run(x, min(steps // 50, steps - stream.steps))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    samples.append((stream.steps, pages * 4096))
print(json.dumps({{"seconds": time.perf_counter() - begin, "memory": samples}}))
"""


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    """A process that streams into a folder, from where it stands."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(steps)], stdout=subprocess.PIPE, text=True
    )


def through(folder: Path, steps: int) -> dict[str, float]:
    """Runs to the end; seconds, and the growth of resident memory after the first tenth."""
    found = json.loads(start(folder, steps).communicate()[0])
    first = next(size for step, size in found["memory"] if step >= steps // 10)
    largest = max(size for step, size in found["memory"] if step >= steps // 10)
    return {"seconds": found["seconds"], "growth": largest / first - 1, "MiB": largest / 2**20}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10**6)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        found = through(whole, options.steps)
        print(f"{options.steps:,} steps, K {K}, M {M}, B {B}: {found['seconds']:.0f} s")
        print(f"memory {found['MiB']:.0f} MiB, grown by {found['growth']:.2%} after the first tenth")
        size = sum(path.stat().st_size for path in whole.iterdir())
        dense = 4 * options.steps * B * K
        print(f"on disk {size / 2**20:.0f} MiB, dense floats would be {dense / 2**20:.0f} MiB")
        process = start(cut, options.steps)
        time.sleep(random.uniform(0.2, 0.9) * found["seconds"] + 3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = len(list(cut.glob("part-*")))
        through(cut, options.steps)
        names = sorted(path.name for path in whole.iterdir() if not path.name.startswith("."))
        same, different, missing = filecmp.cmpfiles(whole, cut, names, shallow=False)
        print(f"killed after {killed} of {len(names) - 1} files of spikes, and resumed")
        print(f"{len(same)} files equal, {len(different)} differ, {len(missing)} missing")
        sys.exit(bool(different or missing or found["growth"] > 0.01))


if __name__ == "__main__":
    main()
