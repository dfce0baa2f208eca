# SPDX-License-Identifier: Apache-2.0
"""Scheduler tracers: each is one BPF file and about a page of Python on a common frame.

``tracer`` loads and attaches programs, ``filters`` selects events, ``loop`` runs a tool and prints, ``report`` has
histograms, tables and stacks, as text, JSON or a plot.
"""
