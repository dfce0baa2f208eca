# SPDX-License-Identifier: Apache-2.0
"""ghOSt's microbenchmarks: how a global agent scales, what scheduling costs, and its simple experiments."""
