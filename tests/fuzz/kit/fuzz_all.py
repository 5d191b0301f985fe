"""Every target."""

import fuzz_chunks
import fuzz_files
import fuzz_medmnist
import fuzz_native
import fuzz_records
import fuzz_rpc
import fuzz_site
from fuzz_target import SPECS

__all__ = [
    "SPECS",
    "fuzz_chunks",
    "fuzz_files",
    "fuzz_medmnist",
    "fuzz_native",
    "fuzz_records",
    "fuzz_rpc",
    "fuzz_site",
]
