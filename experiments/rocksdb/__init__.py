# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment``: ghOSt's workloads, RocksDB and the antagonist, alone and in sweeps."""
