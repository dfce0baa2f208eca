/* SPDX-License-Identifier: GPL-2.0-only */
struct wake_key {
	u32 waker; /* tids, or tgids */
	u32 wakee;
	char waker_comm[16];
	char wakee_comm[16];
};
