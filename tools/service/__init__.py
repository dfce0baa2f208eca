# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf apply FILE``: enclaves as a TOML file describes them.

``config``    the file: enclaves, join rules and profiles
``plan``      what differs between the file and the kernel, and steps that change CPUs without a conflict
``applied``   what was applied last, where the kernel does not know it
``changes``   making the changes, all or none
``command``   ``ghostbpf apply``
"""
