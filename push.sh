#!/usr/bin/env bash
# Publish a tested image, or carry it to other Sparks. ./push.sh --help explains everything.
set -Eeuo pipefail

main() {
	local checkout
	checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
	# shellcheck source=requirements/ensure-venv.sh
	source "$checkout/requirements/ensure-venv.sh"
	ensure_venv "$checkout"
	exec "$checkout/.venv/bin/sparkwright" push "$@"
}

main "$@"
