#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install what ghostbpf needs and this machine lacks: Debian packages by name, then a venv that sees
# the distribution's bcc. Without root or apt, name the missing packages and exit.
set -eu

PYTHON=${PYTHON:-/usr/bin/python3}
VENV=${VENV:-.venv}

# a file that shows that a package is installed, then the package
needs="
/usr/lib/python3/dist-packages/bcc/__init__.py python3-bpfcc
- python3-venv
- python3-dev
/usr/bin/cc gcc
/usr/sbin/bpftool bpftool
/usr/bin/mmdebstrap mmdebstrap
/usr/include/rocksdb/c.h librocksdb-dev
/usr/bin/c++ g++
/usr/bin/tmux tmux
"
# With sched_ext in this kernel, the demo and the benchmark run here, with perf.
[ ! -e /sys/kernel/sched_ext ] || needs="$needs/usr/bin/perf linux-perf
"

missing=
have() {
	case $2 in
	python3-venv) "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ;;
	python3-dev) [ -e "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ;;
	*) [ -e "$1" ] ;;
	esac
}
while read -r witness package; do
	[ -n "$package" ] || continue
	have "$witness" "$package" || missing="$missing $package"
done <<END
$needs
END

if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "ghostbpf needs these Debian packages:$missing" >&2
		echo "  try: sudo apt-get install$missing" >&2
		exit 1
	fi
	echo "setup: installing$missing"
	log=$(mktemp)
	if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing; } \
		>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		exit 1
	fi
	rm -f "$log"
fi

echo "setup: Python packages into $VENV"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv --system-site-packages "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[mcp,plot,top,test,dev,docs]'
# The programs of experiments, for guests, which have no compiler.
for programs in bench.programs micro.programs rocksdb.programs races; do
	"$VENV/bin/python" -m "ghostbpf.experiments.$programs" ||
		echo "setup: the programs of ${programs%.programs} are compiled when they run" >&2
done
