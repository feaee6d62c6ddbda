#!/usr/bin/env bash
# The one test command. Everything it needs is made here or fetched by the tests; nothing needs a GPU.
#
#   ./test.sh --fast   lint, types and unit tests: about two minutes, no network after the first run
#   ./test.sh          all of that, and real sources, compilers, machine code, and the image (as root); what CI runs
#   ./test.sh --all    all of that, and what takes longer than CI should (the whole wheel)
#
# Further arguments go to pytest, for instance: ./test.sh --fast -k audit
set -Eeuo pipefail

main() {
	local checkout
	checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
	# shellcheck source=requirements/ensure-venv.sh
	source "$checkout/requirements/ensure-venv.sh"
	if [[ -n ${CI:-} && $EUID -eq 0 ]] && ! command -v ccache >/dev/null && command -v apt-get >/dev/null; then
		# A throw-away machine: the compiler cache is part of what is tested. Elsewhere nothing is installed.
		apt-get update --quiet=2
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends ccache
	fi
	ensure_venv "$checkout"
	cd -- "$checkout"
	exec .venv/bin/python tests/run_tiers.py "$@"
}

main "$@"
