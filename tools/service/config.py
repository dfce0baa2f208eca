# SPDX-License-Identifier: Apache-2.0
"""The file of ``ghostbpf apply`` and ``ghostbpf service``.

[enclave.1]                     # by its id, as in ghostbpf enclave ls
cpus = "2-3"
policy = "biff"                 # or "./mine.py", beside this file
options = { slice = "5ms" }
runnable-timeout = "15s"        # and other settings of an enclave
join = [{ comm = "nginx*" }, { cgroup = "batch.slice", uid = "www-data" }]

[[profile]]                     # the first whose conditions all hold
name = "busy"
when = { load-above = 0.8, for = "30s" }

[profile.enclave.1]             # what then differs
cpus = "2-5"
"""

from __future__ import annotations

import hashlib
import itertools
import pwd
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...loaders.errors import GhostError
from ...schedulers import cgroups, stay_alive
from ...schedulers.cpuset import CpuListError, CpuSet
from ...schedulers.lending import RECLAIM, Lending
from ...schedulers.policy import OptionError, Policy, PolicyOptions, duration_ns, find
from ...schedulers.processes import COMM_CHARS, Rule
from ...schedulers.registry import POLICIES, from_file, is_file
from ...schedulers.toml_file import FileError, TomlFile
from ..version import version

MAX_ID = 63
_KEYS = ("enclave", "profile")
_SETTINGS = (
    *("cpus", "policy", "options", "runnable-timeout", "cgroup-limits"),
    *("lend", "borrow", "reclaim"),
)
_ENCLAVE_KEYS = (*_SETTINGS, "join")
_JOIN_KEYS = ("comm", "cgroup", "uid")
_PROFILE_KEYS = ("name", "when", "enclave")
_WHEN_KEYS = ("running", "load-above", "load-below", "for")
#: How long a condition must hold, and must not hold for a profile to end, by default and at most.
DEFAULT_FOR_S, MOST_FOR_S = 10.0, 3600.0


class ConfigError(FileError):
    """A file for ``ghostbpf apply`` is wrong."""


@dataclass(frozen=True)
class Join:
    """A rule by which tasks join: each kind that is given must match; see schedulers/processes.py."""

    comms: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()

    @property
    def rule(self) -> Rule:
        """The rule, with cgroups by the directories that they have now. Raises GhostError."""
        return Rule(self.comms, tuple(map(cgroups.directory_of, self.cgroups)), self.uids)


@dataclass(frozen=True)
class EnclaveConfig:
    """One enclave as the file has it; what the file leaves out is as in a new enclave.

    ``policy`` is as the file names it. ``fingerprint`` changes with the policy's code: an upgrade changes it.
    """

    id: int
    cpus: CpuSet
    policy: str
    options: PolicyOptions[Policy]
    texts: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    runnable_timeout_ns: int = stay_alive.timeout_ns(stay_alive.DEFAULT)
    cgroup_limits: bool = True
    lending: Lending = field(default_factory=Lending)
    joins: tuple[Join, ...] = ()

    @property
    def shown(self) -> str:
        """Its policy and the options that the file sets, for people."""
        return " ".join([self.policy, *(f"{name}={text}" for name, text in self.texts.items())])


@dataclass(frozen=True)
class Conditions:
    """When a profile holds: all that are given must, for ``for_s`` seconds; load is the share of CPU time in use."""

    running: tuple[str, ...] = ()
    load_above: float | None = None
    load_below: float | None = None
    for_s: float = DEFAULT_FOR_S


@dataclass(frozen=True)
class Profile:
    """Enclaves that are different while the conditions hold."""

    name: str
    when: Conditions
    enclaves: Mapping[int, EnclaveConfig]


@dataclass(frozen=True)
class Config:
    """The file: its enclaves by id, and its profiles in order of precedence."""

    path: str
    text: str
    enclaves: Mapping[int, EnclaveConfig]
    profiles: tuple[Profile, ...] = ()

    def under(self, profile: str | None) -> dict[int, EnclaveConfig]:
        """The enclaves under ``profile``; None: under none. Raises GhostError if there is no such profile."""
        if profile is None:
            return dict(self.enclaves)
        for one in self.profiles:
            if one.name == profile:
                return {**self.enclaves, **one.enclaves}
        names = ", ".join(one.name for one in self.profiles)
        raise GhostError(f'{self.path} has no profile "{profile}"', hint=f"choose from: {names}" if names else None)


def read(path: str, text: str | None = None) -> Config:
    """The file at ``path``, or its ``text``; raises ConfigError, which names the line and the key."""
    return _Reader(TomlFile(path, ConfigError, text)).config()


class _Reader:
    """Checks the document of one file."""

    def __init__(self, file: TomlFile) -> None:
        self._file, self._error = file, file.error

    def config(self) -> Config:
        document = self._file.document
        self._file.check_keys(document, _KEYS, "")
        enclaves = {
            id: self._enclave(id, table, at) for id, table, at in self._tables(document.get("enclave", {}), "enclave")
        }
        if not enclaves:
            raise self._error("enclave", "there is none", 'write for example [enclave.1], and below it cpus = "0-3"')
        self._check_disjoint(enclaves, enclaves, "enclave")
        listed = document.get("profile", [])
        if not isinstance(listed, list) or not all(isinstance(table, dict) for table in listed):
            raise self._error("profile", "not an array of tables", "write each profile as [[profile]]")
        profiles: list[Profile] = []
        for number, table in enumerate(listed):
            at = f"profile[{number}]"
            profiles.append(self._profile(table, at, enclaves))
            if profiles[-1].name in (one.name for one in profiles[:-1]):
                raise self._error(f"{at}.name", f'two profiles are named "{profiles[-1].name}"')
        return Config(self._file.path, self._file.text, enclaves, tuple(profiles))

    def _tables(self, tables: Any, at: str) -> Iterator[tuple[int, dict[str, Any], str]]:
        """The tables of enclaves, each with the id and where it is."""
        if not isinstance(tables, dict):
            raise self._error(at, "not a table of enclaves by id", f"write each as [{at}.1]")
        for name, table in tables.items():
            here = f"{at}.{name}"
            if not (name.isascii() and name.isdecimal() and name[0] != "0" and int(name) <= MAX_ID):
                raise self._error(here, f'"{name}" is not the id of an enclave', f"write a number from 1 to {MAX_ID}")
            if not isinstance(table, dict):
                raise self._error(here, "not a table", f"write it as [{here}]")
            yield int(name), table, here

    def _enclave(self, id: int, table: Mapping[str, Any], at: str) -> EnclaveConfig:
        self._file.check_keys(table, _ENCLAVE_KEYS, f"{at}.")
        for key, example in (("cpus", '"0-3"'), ("policy", '"biff"')):
            if key not in table:
                raise self._error(at, f"it has no {key}", f"add for example {key} = {example}")
        cpus = self._cpus(table, at)
        new = EnclaveConfig(id, cpus, "", PolicyOptions(POLICIES["biff"], {}), joins=self._joins(table, at))
        return self._change(new, table, at)

    def _change(self, enclave: EnclaveConfig, table: Mapping[str, Any], at: str) -> EnclaveConfig:
        """``enclave`` with the settings in ``table``."""
        if "cpus" in table:
            enclave = replace(enclave, cpus=self._cpus(table, at))
        if "policy" in table or "options" in table:
            enclave = self._with_policy(enclave, table, at)
        if "runnable-timeout" in table:
            ns = self._parsed(table, "runnable-timeout", at, lambda value: stay_alive.timeout_ns(str(value)))
            enclave = replace(enclave, runnable_timeout_ns=ns)
        if "cgroup-limits" in table:
            enclave = replace(enclave, cgroup_limits=self._flag(table, "cgroup-limits", at))
        if table.keys() & {"lend", "borrow", "reclaim"}:
            lend, borrow = (self._flag(table, key, at) if key in table else None for key in ("lend", "borrow"))
            reclaim = table.get("reclaim")
            if reclaim not in (None, *RECLAIM):
                raise self._error(f"{at}.reclaim", f"not one of {', '.join(RECLAIM)}")
            enclave = replace(enclave, lending=enclave.lending.replace(lend, borrow, reclaim))
        try:
            enclave.options.policy.check(enclave.options.values, enclave.cpus)
        except GhostError as error:
            raise self._error(f"{at}.policy" if "policy" in table else at, str(error), error.hint) from None
        return enclave

    def _with_policy(self, enclave: EnclaveConfig, table: Mapping[str, Any], at: str) -> EnclaveConfig:
        name, options = table.get("policy", enclave.policy), table.get("options", {})
        if not isinstance(name, str):
            raise self._error(f"{at}.policy", "not a name")
        fingerprint = f"ghostbpf {version()}"
        try:
            if is_file(name):
                name = str(Path(self._file.path).absolute().parent / name)
                fingerprint = _fingerprint(name)
                policy: Policy = from_file(name)
            else:
                policy = find(name, POLICIES)
        except GhostError as error:
            raise self._error(f"{at}.policy", str(error), error.hint) from None
        if not isinstance(options, dict):
            raise self._error(f"{at}.options", "not a table", 'write for example options = { slice = "5ms" }')
        texts = {option: str(text) for option, text in options.items()}
        try:
            parsed = policy.parse(texts)
        except OptionError as error:
            where = f"{at}.options" + (f".{error.option}" if error.option else "")
            raise self._error(where, str(error)) from None
        return replace(enclave, policy=name, options=parsed, texts=texts, fingerprint=fingerprint)

    def _joins(self, table: Mapping[str, Any], at: str) -> tuple[Join, ...]:
        listed = table.get("join", [])
        if not isinstance(listed, list) or not all(isinstance(rule, dict) for rule in listed):
            raise self._error(f"{at}.join", "not an array of rules", 'write for example join = [{ comm = "nginx*" }]')
        return tuple(self._join(rule, f"{at}.join[{number}]") for number, rule in enumerate(listed))

    def _join(self, table: Mapping[str, Any], at: str) -> Join:
        self._file.check_keys(table, _JOIN_KEYS, f"{at}.")
        if not table:
            raise self._error(at, "a rule that every task fits", f"give one of {', '.join(_JOIN_KEYS)}")
        comms = self._names(table, "comm", at)
        uids = frozenset(self._uid(user, f"{at}.uid") for user in self._texts(table, "uid", at))
        return Join(comms, self._texts(table, "cgroup", at), uids)

    def _names(self, table: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        """Globs of names of processes, of which the kernel keeps the first characters."""
        globs = self._texts(table, key, at)
        for glob in globs:
            if len(glob) > COMM_CHARS and not set("*?[") & set(glob):
                hint = f'write "{glob[:COMM_CHARS]}"'
                raise self._error(f"{at}.{key}", f"a process's name has {COMM_CHARS} characters at most", hint)
        return globs

    def _uid(self, user: str, at: str) -> int:
        if user.isdecimal():
            return int(user)
        try:
            return pwd.getpwnam(user).pw_uid
        except KeyError:
            raise self._error(at, f'there is no user "{user}"') from None

    def _profile(self, table: Mapping[str, Any], at: str, enclaves: Mapping[int, EnclaveConfig]) -> Profile:
        self._file.check_keys(table, _PROFILE_KEYS, f"{at}.")
        name = table.get("name")
        if not isinstance(name, str) or not name or not name.isprintable():
            raise self._error(f"{at}.name" if "name" in table else at, "a profile needs a name", 'name = "busy"')
        when = self._conditions(table.get("when", {}), f"{at}.when")
        changed = {}
        for id, one, here in self._tables(table.get("enclave", {}), f"{at}.enclave"):
            self._file.check_keys(one, _SETTINGS, f"{here}.")
            if id not in enclaves:
                ids = ", ".join(map(str, enclaves))
                raise self._error(here, f"there is no [enclave.{id}]", f"a profile changes enclaves of the file: {ids}")
            changed[id] = self._change(enclaves[id], one, here)
        if not changed:
            raise self._error(at, "it changes no enclave", "add for example [profile.enclave.1] below it")
        self._check_disjoint({**enclaves, **changed}, changed, f"{at}.enclave")
        return Profile(name, when, changed)

    def _conditions(self, table: Any, at: str) -> Conditions:
        if not isinstance(table, dict) or not table.keys() - {"for"}:
            raise self._error(at, "a profile needs a condition", 'write for example when = { running = "ffmpeg" }')
        self._file.check_keys(table, _WHEN_KEYS, f"{at}.")
        above, below = (self._share(table, key, at) for key in ("load-above", "load-below"))
        if above is not None and below is not None and above >= below:
            raise self._error(f"{at}.load-above", "no load is above that and below load-below")
        seconds = DEFAULT_FOR_S
        if "for" in table:
            seconds = self._parsed(table, "for", at, lambda value: duration_ns(str(value), most_s=MOST_FOR_S) / 1e9)
        return Conditions(self._names(table, "running", at), above, below, seconds)

    def _share(self, table: Mapping[str, Any], key: str, at: str) -> float | None:
        value = table.get(key)
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
            raise self._error(f"{at}.{key}", "not a share from 0 to 1", f"write for example {key} = 0.8")
        return value

    def _check_disjoint(self, enclaves: Mapping[int, EnclaveConfig], given: Collection[int], at: str) -> None:
        """Raise the error of two ``enclaves`` that have a CPU, at one of those ``given`` below ``at``."""
        for one, other in itertools.combinations(enclaves.values(), 2):
            if both := one.cpus & other.cpus:
                id = other.id if other.id in given else one.id
                raise self._error(f"{at}.{id}.cpus", f"enclaves {one.id} and {other.id} would both have CPU {both}")

    def _cpus(self, table: Mapping[str, Any], at: str) -> CpuSet:
        text = table["cpus"]
        try:
            cpus = CpuSet.parse(text) if isinstance(text, str) else CpuSet()
        except CpuListError as error:
            raise self._error(f"{at}.cpus", str(error)) from None
        if not cpus:
            raise self._error(f"{at}.cpus", "not a list of CPUs", 'write for example cpus = "0-3"')
        return cpus

    def _texts(self, table: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        given = table.get(key, [])
        values = given if isinstance(given, list) else [given]
        if (key in table and not values) or not all(type(value) in (str, int) and value != "" for value in values):
            raise self._error(f"{at}.{key}", "neither a text nor a list of texts")
        return tuple(map(str, values))

    def _flag(self, table: Mapping[str, Any], key: str, at: str) -> bool:
        if type(table[key]) is not bool:
            raise self._error(f"{at}.{key}", "neither true nor false")
        return bool(table[key])

    def _parsed(self, table: Mapping[str, Any], key: str, at: str, parse: Callable[[Any], Any]) -> Any:
        try:
            return parse(table[key])
        except ValueError as error:
            raise self._error(f"{at}.{key}", str(error)) from None


def _fingerprint(name: str) -> str:
    """A text that changes with the policy's file; a file that cannot be read is reported when it is run."""
    path = Path(name.partition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
