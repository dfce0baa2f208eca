/* SPDX-License-Identifier: GPL-2.0-only */
/* The same Biff as a struct_ops of its own, with no core under it: what the core's slots cost is the difference. */
#include "biff.bpf.c"

BPF_PROG(biff_init)
{
	return scx_bpf_create_dsq(PENDING, -1);
}
