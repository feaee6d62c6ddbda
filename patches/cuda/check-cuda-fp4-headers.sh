#!/usr/bin/env bash
# Title: CUDA's own FP4 header is missing, shadowed or hidden, or an environment variable adds targets to every compilation
# Kind: native
# Category: environment
# Reference: cuda_fp4.h of CUDA >= 12.8; FlashInfer include/flashinfer/arch_condition.h
# Remove-When: no build and no FlashInfer JIT uses a toolkit that others have changed
# Guarded-By: tests/patches/test_check_cuda_fp4_headers.py
#
# NVFP4 code needs NVIDIA's cuda_fp4.h and CCCL's support for its type __nv_fp4_e2m1, which CCCL switches on when it
# can include that header. Images for the DGX Spark have shipped home-made headers in its place, with wrong values (E2M1
# code 1 is 0.5, not 0.25), and have set NVCC_PREPEND_FLAGS=-arch=sm_121a, with which nvcc also emits plain
# compute_121 code: FlashInfer's headers stop there with an #error, and a header patch was then made to hide it.
# This repairs nothing. It says what is wrong, and refuses.
set -euo pipefail

readonly TREE=${2:-}

usage() {
	printf 'usage: %s check|apply|revert CUDA_HOME\n' "${0##*/}" >&2
	exit 64
}

# Prints the first fault found; nothing when there is none.
fault() {
	local include=$TREE/include header=$TREE/include/cuda_fp4.h implementation=$TREE/include/cuda_fp4.hpp
	local version cccl folder other name word
	version=$(sed -nE 's/^#define CUDART_VERSION +([0-9]+).*/\1/p' "$include/cuda_runtime_api.h" 2>/dev/null) || true
	if [[ -z $version ]]; then
		printf 'include/cuda_runtime_api.h is missing or names no CUDART_VERSION: install the whole toolkit'
	elif ((version < 12080)); then
		printf 'CUDA %d.%d has no cuda_fp4.h: use 13.0 or newer' $((version / 1000)) $((version % 1000 / 10))
	elif [[ ! -f $header || ! -f $implementation ]]; then
		printf 'include/cuda_fp4.h or cuda_fp4.hpp is missing: install the whole toolkit, do not write a substitute'
	elif ! is_nvidias "$header" "$implementation"; then
		printf 'include/cuda_fp4.h is not the one of CUDA %d.%d: reinstall the toolkit' \
			$((version / 1000)) $((version % 1000 / 10))
	fi | grep . && return

	cccl=$include/cccl
	[[ -d $cccl ]] || cccl=$include
	if ! grep -qs '_CCCL_HAS_INCLUDE(<cuda_fp4.h>)' "$cccl/cuda/std/__cccl/extended_data_types.h"; then
		printf 'CCCL below %s does not look for cuda_fp4.h: install the CCCL of this toolkit' "${cccl#"$TREE"/}"
		return
	fi

	while read -r folder; do
		other=$folder/cuda_fp4.h
		if [[ -n $folder && -e $other && ! $other -ef $header ]]; then
			printf '%s comes before the toolkit and is another cuda_fp4.h: remove it from the include path' "$other"
			return
		fi
	done < <(include_folders "$cccl")

	for name in NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS; do
		for word in ${!name:-}; do
			case $word in
			-arch | -arch=* | --gpu-architecture | --gpu-architecture=* | -code | -code=* | --gpu-code | --gpu-code=* | \
				-gencode | -gencode=* | --generate-code | --generate-code=*)
				printf '%s holds %s, which adds targets to every compilation: unset it' "$name" "$word"
				return
				;;
			-DCCCL_DISABLE_NVFP4_SUPPORT*)
				printf '%s holds %s, which hides cuda_fp4.h from CCCL: unset it' "$name" "$word"
				return
				;;
			esac
		done
	done
}

is_nvidias() {
	local header=$1 implementation=$2
	grep -q '^#define __CUDA_FP4_TYPES_EXIST__' "$header" &&
		grep -q '^struct __nv_fp4_e2m1;' "$header" &&
		grep -q '__nv_cvt_float_to_fp4(' "$header" &&
		grep -q '#include "cuda_fp4.hpp"' "$header" &&
		grep -q '__nv_cvt_float_to_fp4(' "$implementation" &&
		grep -qF 'cvt.rn.satfinite.e2m1x2.f32' "$implementation"
}

# Folders that a compiler searches before the toolkit's own, one a line.
include_folders() {
	local cccl=$1 name word next=
	printf '%s\n' "$cccl" "$TREE/include/crt" "$TREE/bin"
	for name in CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH; do
		tr : '\n' <<<"${!name:-}"
	done
	for word in ${NVCC_PREPEND_FLAGS:-} ${NVCC_APPEND_FLAGS:-}; do
		[[ -z $next ]] || printf '%s\n' "$word"
		next=
		case $word in
		-I | -isystem | --include-path | --system-include) next=yes ;;
		-I=* | -isystem=* | --include-path=* | --system-include=*) printf '%s\n' "${word#*=}" ;;
		-I*) printf '%s\n' "${word#-I}" ;;
		esac
	done
}

(($# == 2)) || usage
if [[ ! -d $TREE ]]; then
	printf '%s is not a folder: name the CUDA_HOME\n' "$TREE" >&2
	exit 66
fi
found=$(fault)
case $1 in
check)
	if [[ -n $found ]]; then
		printf 'drifted\t%s\n' "$found"
	else
		printf "upstream\tNVIDIA's cuda_fp4.h is there, nothing comes before it, CCCL sees it, no flags are added\n"
	fi
	;;
apply)
	if [[ -n $found ]]; then
		printf 'refused: %s\n' "$found" >&2
		exit 3
	fi
	;;
revert) ;;
*) usage ;;
esac
