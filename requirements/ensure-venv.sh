# shellcheck shell=bash
# Sourced by build.sh and test.sh: makes .venv/ from the hash-locked requirements when it is missing or stale.

find_python() {
	local candidate
	for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
		[[ -n $candidate ]] || continue
		if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			printf '%s\n' "$candidate"
			return
		fi
	done
	printf 'sparkwright: no Python 3.11 or newer was found.\n' >&2
	printf 'What to do: install python3 and python3-venv, or name one: PYTHON=/path/to/python3.12 %s\n' "$0" >&2
	return 69
}

# Usage: ensure_venv CHECKOUT
ensure_venv() {
	local checkout=$1 python lock stamp
	python=$(find_python) || return
	lock=$checkout/requirements/dev.txt
	stamp=$checkout/.venv/made-from
	if [[ -x $checkout/.venv/bin/sparkwright ]] && cmp -s "$lock" "$stamp"; then
		return
	fi
	printf 'Making .venv from requirements/dev.txt (about a minute the first time)\n' >&2
	if ! "$python" -m venv --clear "$checkout/.venv"; then
		printf 'sparkwright: %s cannot make a virtual environment.\n' "$python" >&2
		printf 'What to do: install its venv module (Debian, Ubuntu: apt-get install python3-venv)\n' >&2
		return 69
	fi
	local pip=("$checkout/.venv/bin/python" -m pip --disable-pip-version-check --quiet)
	if ! "${pip[@]}" install --require-hashes --requirement "$lock"; then
		printf 'sparkwright: the packages of requirements/dev.txt could not be installed (see above).\n' >&2
		printf 'What to do: make the Python package index reachable, then run %s again\n' "$0" >&2
		return 69
	fi
	"${pip[@]}" install --no-deps --no-build-isolation --editable "$checkout"
	cp "$lock" "$stamp"
}
