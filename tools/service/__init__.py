# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf apply FILE`` and ``ghostbpf service FILE``: enclaves as a TOML file describes them.

``config``    the file: enclaves, join rules and profiles
``plan``      what differs between the file and the kernel, and steps that change CPUs without a conflict
``applied``   what was applied last, where the kernel does not know it
``changes``   making the changes, all or none
``command``   ``ghostbpf apply``
``profiles``  which profile holds now
``state``     the one service of this machine, as other commands see it
``notify``    messages to systemd
``health``    what is wrong with enclaves that were applied
``joining``   tasks that join by rule while the service runs
``service``   ``ghostbpf service``
"""
