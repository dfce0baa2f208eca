#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# generate.sh DEST: write man pages and shell completions to the directory DEST. $PYTHON must find ghostbpf.
set -eu

dest=$1
python=${PYTHON:-python3}

mkdir -p "$dest/man" "$dest/completions/bash" "$dest/completions/zsh" "$dest/completions/fish"
"$python" -m ghostbpf.tools.manpages "$dest/man"

# click's scripts: they call the installed command for each completion.
completion() {
	_GHOSTBPF_COMPLETE=$1_source "$python" -m ghostbpf.tools.cli >"$dest/completions/$1/$2"
}
completion bash ghostbpf
completion zsh _ghostbpf
completion fish ghostbpf.fish
