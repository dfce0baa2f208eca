/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Biff as a struct_ops scheduler of its own, without the core: a benchmark of the core's slots.
 *
 * It decides what biff.bpf.c decides. It is good for measuring the cost of tail calls and membership look-ups, the
 * difference to biff. It is not good for running anything: it has one enclave, no affinity fallback and no agents. It
 * demonstrates that a policy's C does not depend on the core's programs.
 */
#include "abi.h"
#include "biff.bpf.c"

BPF_PROG(biff_init)
{
	return scx_bpf_create_dsq(PENDING, -1);
}
