# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf bench``: schedulers compared on workloads, in rounds."""
