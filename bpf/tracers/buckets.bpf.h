/* SPDX-License-Identifier: GPL-2.0-only */
/* The buckets of histograms: eight for each power of two, so that a percentile is exact to an eighth. */
#ifndef GHOSTBPF_BUCKETS_BPF_H
#define GHOSTBPF_BUCKETS_BPF_H

/* The power of two below the value, and the three bits that follow it. */
static u32 bucket_of(u64 value)
{
	u64 rest = value;
	u32 power = 0;

	if (value < 8)
		return value;
	if (rest >> 32) { power += 32; rest >>= 32; }
	if (rest >> 16) { power += 16; rest >>= 16; }
	if (rest >> 8) { power += 8; rest >>= 8; }
	if (rest >> 4) { power += 4; rest >>= 4; }
	if (rest >> 2) { power += 2; rest >>= 2; }
	power += rest >> 1;
	return (power - 2) * 8 + (value >> (power - 3) & 7);
}

#endif
