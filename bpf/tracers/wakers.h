/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_WAKERS_H
#define GHOSTBPF_WAKERS_H

struct wake_key {
	u32 waker; /* tids; tgids in a breakdown by process */
	u32 wakee;
	char waker_comm[16];
	char wakee_comm[16];
};

#endif
