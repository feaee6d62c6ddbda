#!/usr/bin/env bash
# Run a command with TREE as its root, in mount and process namespaces of its own that end with it.
# Usage: enter_engine.sh TREE STATE COMMAND...; STATE becomes /state there, and STATE/run its /run.
set -Eeuo pipefail

# A bare chroot will not do: what a container runs in is looked up from the root of the namespace.
become_root() {
	local tree=$1 state=$2
	mount --bind "$tree" "$tree"
	mount --rbind /dev "$tree/dev"
	mount -t proc proc "$tree/proc"
	mount --rbind /sys "$tree/sys"
	mkdir -p "$tree/state" "$tree/old" "$state/run"
	mount --bind "$state" "$tree/state"
	mount --bind "$state/run" "$tree/run"
	cd -- "$tree"
	pivot_root . old
	cd /
	umount -l /old
}

main() {
	if [[ $1 == --inside ]]; then
		shift
		become_root "$1" "$2"
		exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "${@:3}"
	fi
	# Whoever ends, by whatever signal, takes the rest along: the caller this, this the processes within, and the last of
	# them the mounts.
	exec setpriv --pdeathsig KILL \
		unshare --mount --propagation private --pid --fork --kill-child=KILL "${BASH_SOURCE[0]}" --inside "$@"
}

main "$@"
