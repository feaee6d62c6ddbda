#!/usr/bin/env bash
# The image's entrypoint: serve (default), ray-head, ray-worker, bash, or any command as it is.
#
#   docker run ... IMAGE serve --max-num-seqs 8      options after the mode go to `vllm serve`
#   entrypoint.sh --dry-run serve                    print what would run, as JSON, and end
#   entrypoint.sh health                             the healthcheck, for every mode
#
# docs/configuration.md lists the variables. Whatever parses or decides is in the package; this file finds the Python
# that holds it and becomes it, so that signals reach the served process.
set -Eeuo pipefail

# Usage: find_python FOLDER; sets `python` to the one beside the package: the image's, else the checkout's.
find_python() {
	for python in "${SPARKWRIGHT_PYTHON:-}" /opt/venv/bin/python "$1/.venv/bin/python"; do
		if [[ -n $python && -x $python ]]; then
			return
		fi
	done
	printf 'sparkwright: no Python with the package was found.\n' >&2
	printf 'What to do: use the image, or make the environment: ./test.sh --fast\n' >&2
	return 69
}

# No subshells: each would delay the start.
main() {
	local here=${BASH_SOURCE[0]} python
	if [[ -L $here ]]; then
		here=$(readlink -f -- "$here")
	fi
	[[ $here == */* ]] || here=./$here
	find_python "${here%/*}"
	# vllm and ray stand beside that Python; what the caller put on PATH goes first.
	export PATH=$PATH:${python%/*}
	exec "$python" -m sparkwright.entrypoint "$@"
}

main "$@"
