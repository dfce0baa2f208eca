# SPDX-License-Identifier: Apache-2.0
"""Scheduler tracers: one BPF file and about a page of Python each, on one frame.

``tracer`` loads and attaches, ``filters`` says what of, ``loop`` runs it and prints, ``report`` is what can be
printed: histograms, tables and stacks, as text, JSON or a plot.
"""
