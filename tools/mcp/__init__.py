# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf mcp``: the commands of ghostbpf as tools of the Model Context Protocol.

``catalog``    which commands are tools, with the schema of each, from the click definitions
``arguments``  a tool's arguments: what is refused, and the command line
``child``      one run of a command, bounded in time and output
``server``     the protocol, on stdin and stdout; it alone imports the SDK
``command``    ``ghostbpf mcp``
"""
