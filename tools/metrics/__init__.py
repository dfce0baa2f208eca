# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf metrics``: what the core counts, for Prometheus and for the tools of scx.

``declarations``  every metric, with its name, its type and where its value comes from
``exposition``    the metrics as OpenMetrics: for prometheus-client, over HTTP, into a file
``scx_stats``     the same metrics in scx's statistics protocol
``stats_socket``  the server of that protocol, on a UNIX socket
"""
