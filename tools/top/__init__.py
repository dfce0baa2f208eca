# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf top`` and ``ghostbpf status``: enclaves, CPUs and tasks as they are now.

``sample``    what is read at one moment
``frame``     what two samples say: rates, what each CPU runs, how deep the queues are
``columns``   a frame as text, in columns, for the screen and for ``--once``
``drawing``   bars and sparklines of characters
``document``  a frame as JSON, as schema.json describes it
``health``    what needs attention, in words
``questions`` what the screen asks
``changes``   the commands that the keys run
``command``   ``ghostbpf top``, and ``status`` is ``ghostbpf status``
``app``       the screen, with ``listing``, a table; these two alone import textual
"""
