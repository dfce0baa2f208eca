# SPDX-License-Identifier: Apache-2.0
"""The container recipe and the DaemonSet agree with the package, the unit, and the commands that they call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from ghostbpf.tools.cli import ghostbpf
from ghostbpf.tools.metrics.command import command as metrics
from ghostbpf.tools.service.config import read
from ghostbpf.tools.version import version
from ghostbpf.vm.images import SUITE

PACKAGING = Path(__file__).parents[2] / "packaging"
MANIFEST = PACKAGING / "kubernetes" / "ghostbpf.yaml"
RECIPE = PACKAGING / "container" / "Containerfile"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The objects of the manifest by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["DaemonSet"]["spec"]["template"]["spec"]
    return spec


def commands(pod: dict[str, Any]) -> Iterator[list[str]]:
    """What each container runs, and the image by default."""
    yield from (container["args"] for container in pod["containers"])
    yield json.loads(re.findall(r"^CMD (.*)$", RECIPE.read_text(), re.MULTILINE)[0])


def test_config_map_is_a_file_that_can_be_applied(objects: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    (name, text) = next(iter(objects["ConfigMap"]["data"].items()))
    file = tmp_path / name
    file.write_text(text)
    config = read(str(file))
    assert list(config.enclaves) == [1]
    assert [profile.name for profile in config.profiles] == ["busy"]


def test_containers_call_commands_as_they_are(pod: dict[str, Any]) -> None:
    for name, *arguments in commands(pod):
        ctx = ghostbpf.make_context("ghostbpf", [name], resilient_parsing=True)
        command = ghostbpf.get_command(ctx, name)
        assert command is not None, name
        command.make_context(name, [*arguments], parent=ctx)


def test_file_of_the_command_is_where_the_config_map_is_mounted(
    objects: dict[str, dict[str, Any]], pod: dict[str, Any]
) -> None:
    (service,) = (one for one in pod["containers"] if one["name"] == "service")
    mounts = {mount["name"]: mount["mountPath"] for mount in service["volumeMounts"]}
    (key,) = objects["ConfigMap"]["data"]
    assert service["args"][1] == f"{mounts['config']}/{key}"
    (volume,) = (one for one in pod["volumes"] if one["name"] == "config")
    assert volume["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    unit = (PACKAGING / "ghostbpf.service").read_text()
    assert f"ExecStart=/usr/bin/ghostbpf {' '.join(service['args'])}\n" in unit


def test_each_mount_has_a_volume_and_each_volume_a_mount(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_capabilities_are_those_of_the_unit_without_process_events(pod: dict[str, Any]) -> None:
    line = re.findall(r"^CapabilityBoundingSet=(.*)$", (PACKAGING / "ghostbpf.service").read_text(), re.MULTILINE)[0]
    # The kernel sends process events only to the node's own network namespace: rules scan instead.
    expected = {name.removeprefix("CAP_") for name in line.split()} - {"NET_ADMIN"}
    service, exporter = (container["securityContext"]["capabilities"] for container in pod["containers"])
    assert (service["drop"], set(service["add"])) == (["ALL"], expected)
    assert exporter == {"drop": ["ALL"]}


def test_port_is_that_of_the_exporter_and_of_the_annotation(objects: dict[str, dict[str, Any]]) -> None:
    template = objects["DaemonSet"]["spec"]["template"]
    (exporter,) = (one for one in template["spec"]["containers"] if one["name"] == "metrics")
    (port,) = exporter["ports"]
    with metrics.make_context("metrics", [*exporter["args"][1:]]) as ctx:
        assert ctx.params["listen"] == ("0.0.0.0", port["containerPort"])
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_selector_matches_the_pods(objects: dict[str, dict[str, Any]]) -> None:
    spec = objects["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_image_is_of_the_suite_and_the_package_that_are_tested() -> None:
    text = RECIPE.read_text()
    assert f"FROM docker.io/library/debian:{SUITE}-slim\n" in text
    (pattern,) = re.findall(r"^COPY dist/(\S+) /tmp/$", text, re.MULTILINE)
    assert fnmatch(f"ghostbpf_{version()}_all.deb", pattern)
    assert f"/tmp/{pattern}" in text
