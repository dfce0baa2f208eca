// SPDX-License-Identifier: Apache-2.0
/*
 * A test with a race: two clerks sell the last ticket of a show, and each looks before it sells. The second clerk comes
 * so much later that it always finds the ticket sold - unless the scheduler lets the first one wait at the wrong moment.
 *
 *     cc -O2 -pthread -o tickets examples/tickets.c
 *     ./tickets                                  passes
 *     sudo ghostbpf run chaos -- ./tickets       fails now and then, and says how to repeat it
 *     sudo ghostbpf run chaos -- ./tickets lock  passes: here a clerk looks and sells under a lock
 *
 * A second argument is the time in ms by which the second clerk is late.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHOWS 8
#define PRINTING_US 1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool uses_lock;
static useconds_t late_us = 20000;
static volatile int tickets;

static void sell(void)
{
	if (tickets) {
		usleep(PRINTING_US);
		tickets--;
	}
}

static void *clerk(void *delay_us)
{
	if (delay_us)
		usleep((useconds_t)(size_t)delay_us);
	if (uses_lock)
		pthread_mutex_lock(&lock);
	sell();
	if (uses_lock)
		pthread_mutex_unlock(&lock);
	return NULL;
}

static void start(pthread_t *thread, useconds_t delay_us)
{
	if (pthread_create(thread, NULL, clerk, (void *)(size_t)delay_us)) {
		fputs("tickets: cannot create a thread\n", stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	uses_lock = argc > 1 && !strcmp(argv[1], "lock");
	if (argc > 2)
		late_us = atoi(argv[2]) * 1000;
	for (int show = 1; show <= SHOWS; show++) {
		pthread_t first, second;

		tickets = 1;
		start(&first, 0);
		start(&second, late_us);
		pthread_join(first, NULL);
		pthread_join(second, NULL);
		if (tickets) {
			printf("show %d: %d tickets are left\n", show, tickets);
			return 1;
		}
	}
	return 0;
}
