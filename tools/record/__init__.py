# SPDX-License-Identifier: Apache-2.0
"""Recordings of the scheduler: ``ghostbpf record``, ``explain`` and ``compare``.

events.py has what is recorded, source.py reads it from the kernel, perfetto.py writes it to a file and reads it back,
and timeline.py makes of it what each task did: which ``explain`` and ``compare`` then show.
"""
